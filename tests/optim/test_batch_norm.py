"""Frozen BatchNorm: its statistics stay to the bit, and training sees what evaluation does."""

import numpy as np
import paddle
import pytest
from paddle import nn

from passl_mae.models.vit import PlainBatchNorm
from passl_mae.optim.batch_norm import freeze_batch_norm


def network():
    paddle.seed(0)
    model = nn.Sequential(
        nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4), nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1D(5)
    )
    rng = np.random.default_rng(0)
    for layer in (model[1], model[4]):
        size = layer._mean.shape
        layer._mean.set_value(rng.normal(size=size).astype("float32"))
        layer._variance.set_value(rng.uniform(0.5, 2.0, size).astype("float32"))
    return model


def images(seed=1):
    return paddle.to_tensor(np.random.default_rng(seed).normal(size=(8, 3, 6, 6)).astype("float32"))


def step(model):
    """One of SGD in training mode; returns the logits before it."""
    learning = [p for p in model.parameters() if not p.stop_gradient]
    optimizer = paddle.optimizer.SGD(0.1, parameters=learning)
    model.train()
    logits = model(images())
    (logits**2).mean().backward()
    optimizer.step()
    optimizer.clear_grad()
    return logits.numpy()


def statistics(model):
    return np.concatenate([t.numpy() for i in (1, 4) for t in (model[i]._mean, model[i]._variance)])


@pytest.mark.parametrize("affine", [False, True])
def test_frozen_layers_work_in_training_as_in_evaluation(affine):
    model = network()
    model.eval()
    evaluated, before = model(images()).numpy(), statistics(model)
    scale, weight = model[1].weight.numpy(), model[0].weight.numpy()
    assert freeze_batch_norm(model, affine) == ["1", "4"]
    np.testing.assert_allclose(step(model), evaluated, atol=1e-5)
    step(model)
    np.testing.assert_array_equal(statistics(model), before)
    assert (model[0].weight.numpy() != weight).any()  # the rest learns
    assert (model[1].weight.numpy() == scale).all() == affine


def test_others_move_their_statistics():
    model = network()
    before = statistics(model)
    model.eval()
    evaluated = model(images()).numpy()
    assert np.abs(step(model) - evaluated).max() > 0.1
    assert (statistics(model) != before).all()


def test_gradients_are_those_of_an_affine_map():
    """A frozen layer is x * s + t: the gradient by x is s, whatever else is in the batch."""
    layer = nn.BatchNorm2D(2)
    layer._variance.set_value(paddle.to_tensor([4.0, 0.25]))
    freeze_batch_norm(layer)
    layer.train()
    x = paddle.rand([3, 2, 2, 2])
    x.stop_gradient = False
    layer(x).sum().backward()
    expected = np.broadcast_to(np.array([0.5, 2.0]).reshape(1, 2, 1, 1), [3, 2, 2, 2])
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-4)


def test_a_layer_with_its_own_switch_is_switched():
    class Switched(nn.BatchNorm1D):
        fixed = False

        def forward(self, x):
            raise NotImplementedError

    model = nn.Sequential(Switched(3))
    assert freeze_batch_norm(model) == ["0"] and model[0].fixed


def test_what_cannot_be_frozen_is_refused_and_nothing_is_frozen():
    with pytest.raises(ValueError, match="Linear has no BatchNorm to freeze"):
        freeze_batch_norm(nn.Linear(2, 2))
    model = nn.Sequential(nn.BatchNorm1D(3), PlainBatchNorm(3))
    with pytest.raises(ValueError, match="1: PlainBatchNorm cannot be frozen"):
        freeze_batch_norm(model)
    assert not model[0]._use_global_stats
