"""Bias gradients by a product: the numbers of a hand-worked case, of NumPy and of a whole model."""

import copy

import numpy as np
import paddle
import pytest
from paddle import nn

from passl_mae.fast.bias import AddBias, ProductBiasLinear, use_product_biases
from passl_mae.models.mae import MAE_Pretrain


def test_by_hand():
    y = paddle.to_tensor([[[1.0, 2.0]], [[3.0, 4.0]]], stop_gradient=False)  # [2, 1, 2]
    bias = paddle.to_tensor([10.0, 20.0], stop_gradient=False)
    out = AddBias.apply(y, bias)
    assert out.tolist() == [[[11.0, 22.0]], [[13.0, 24.0]]]
    (out * paddle.to_tensor([[[1.0, 2.0]], [[3.0, 5.0]]])).sum().backward()
    assert bias.grad.tolist() == [4.0, 7.0]
    assert y.grad.tolist() == [[[1.0, 2.0]], [[3.0, 5.0]]]


@pytest.mark.parametrize("shape", [(7, 5), (2, 9, 5), (2, 3, 4, 5)], ids=str)
def test_a_linear_layer_and_its_gradients_are_numpys(shape):
    rng = np.random.default_rng(0)
    x, weight, bias, grad = (
        rng.standard_normal(s).astype(np.float32) for s in (shape, (5, 6), (6,), (*shape[:-1], 6))
    )
    layer = use_product_biases(nn.Linear(5, 6))
    assert type(layer) is ProductBiasLinear
    layer.weight.set_value(weight)
    layer.bias.set_value(bias)
    given = paddle.to_tensor(x, stop_gradient=False)
    out = layer(given)
    out.backward(paddle.to_tensor(grad))
    rows = grad.reshape(-1, 6).astype(np.float64)
    np.testing.assert_allclose(out.numpy(), x @ weight + bias, rtol=0, atol=2e-6)
    np.testing.assert_allclose(layer.bias.grad.numpy(), rows.sum(0), rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        layer.weight.grad.numpy(), x.reshape(-1, 5).T @ rows, rtol=0, atol=1e-5
    )
    np.testing.assert_allclose(given.grad.numpy(), grad @ weight.T, rtol=0, atol=1e-5)


def test_a_model_has_paddles_loss_and_gradients():
    paddle.seed(0)
    plain = MAE_Pretrain(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3,
        decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    images = paddle.to_tensor(rng.standard_normal((4, 3, 32, 32)).astype(np.float32))
    noise = paddle.to_tensor(rng.random((4, 16)).astype(np.float32))
    fast = use_product_biases(copy.deepcopy(plain))
    assert not any(type(layer) is nn.Linear for layer in fast.sublayers())
    losses = []
    for model in (plain, fast):
        loss = model(images, 0.75, noise)[0]
        loss.backward()
        losses.append(float(loss))
    assert losses[0] == losses[1]
    found = dict(fast.named_parameters())
    largest = max(np.abs(p.grad.numpy()).max() for p in plain.parameters() if not p.stop_gradient)
    for name, parameter in plain.named_parameters():
        if not parameter.stop_gradient:
            difference = np.abs(parameter.grad.numpy() - found[name].grad.numpy()).max()
            assert difference <= 1e-6 * largest, name


def test_what_does_not_learn_gets_no_gradient():
    frozen, head = nn.Linear(3, 4), nn.Linear(4, 2)
    for parameter in frozen.parameters():
        parameter.stop_gradient = True
    model = use_product_biases(nn.Sequential(frozen, head))
    model(paddle.ones([5, 3])).sum().backward()
    assert frozen.bias.grad is None and frozen.weight.grad is None
    assert head.bias.grad.tolist() == [5.0, 5.0]
    only_bias = use_product_biases(nn.Linear(3, 4))
    only_bias.weight.stop_gradient = True
    only_bias(paddle.ones([5, 3])).sum().backward()
    assert only_bias.bias.grad.tolist() == [5.0] * 4
    with paddle.no_grad():
        assert only_bias(paddle.ones([5, 3])).stop_gradient


def test_layers_without_a_bias_and_derived_ones_stay():
    class Own(nn.Linear):
        pass

    own, without = (
        use_product_biases(Own(3, 2)),
        use_product_biases(nn.Linear(3, 2, bias_attr=False)),
    )
    assert type(own) is Own
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    out = without(paddle.to_tensor(x))
    np.testing.assert_allclose(out.numpy(), x @ without.weight.numpy(), atol=1e-6)
