"""ResNets against paddle.vision's, and BatchNorm in groups against BatchNorm of each group."""

import numpy as np
import paddle
import pytest

from passl_mae.models.resnet import GroupedBatchNorm2D, ResNet, resnet18, resnet50
from passl_mae.optim.freeze import freeze


@pytest.mark.parametrize("depth", [18, 50])
def test_the_network_is_paddle_visions(depth):
    paddle.seed(depth)
    theirs = getattr(paddle.vision.models, f"resnet{depth}")(num_classes=7)
    own = ResNet(depth, num_classes=7)
    state = {name.replace("fc.", "head."): v for name, v in theirs.state_dict().items()}
    assert set(state) == set(own.state_dict())
    own.set_state_dict(state)
    x = paddle.rand([2, 3, 64, 64])
    for training in (True, False):
        for model in (theirs, own):
            model.train() if training else model.eval()
        np.testing.assert_allclose(own(x).numpy(), theirs(x).numpy(), atol=1e-5)
    for name, value in theirs.state_dict().items():
        found = own.state_dict()[name.replace("fc.", "head.")]
        np.testing.assert_allclose(found.numpy(), value.numpy(), atol=1e-6, err_msg=name)


def test_the_stem_for_small_images_keeps_their_size():
    model = resnet18(stem="cifar", width=4, img_size=32, num_classes=0, in_chans=1)
    sizes = []
    model.layer1.register_forward_post_hook(lambda layer, x, y: sizes.append(y.shape))
    features = model(paddle.zeros([2, 1, 32, 32]))
    assert sizes == [[2, 4, 32, 32]] and features.shape == [2, 32] == [2, model.num_features]
    assert model.img_size == (32, 32) and model.in_chans == 1
    assert resnet50(width=2, num_classes=3).num_features == 64


def test_groups_normalise_themselves_and_keep_the_means_of_their_statistics():
    groups, size, channels = 4, 12, 3
    rng = np.random.default_rng(0)
    x = rng.normal(2.0, 3.0, (size, channels, 5, 5)).astype(np.float32)
    norm = GroupedBatchNorm2D(channels, groups)
    norm.weight.set_value(rng.random(channels, np.float32))
    norm.bias.set_value(rng.random(channels, np.float32))
    norm.train()
    found = norm(paddle.to_tensor(x)).numpy()
    expected, means, variances = np.empty_like(x), [], []
    for group in range(groups):
        part = x[group::groups].astype(np.float64)
        mean, variance = part.mean(axis=(0, 2, 3)), part.var(axis=(0, 2, 3))
        shape = (1, channels, 1, 1)
        normal = (part - mean.reshape(shape)) / np.sqrt(variance.reshape(shape) + 1e-5)
        scaled = normal * norm.weight.numpy().reshape(shape) + norm.bias.numpy().reshape(shape)
        expected[group::groups] = scaled
        means.append(mean)
        variances.append(variance)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(norm._mean.numpy(), 0.1 * np.mean(means, 0), rtol=1e-4)
    np.testing.assert_allclose(norm._variance.numpy(), 0.9 + 0.1 * np.mean(variances, 0), rtol=1e-4)
    norm.eval()
    evaluated = norm(paddle.to_tensor(x[:5])).numpy()  # no groups in evaluation
    plain = GroupedBatchNorm2D(channels)
    plain.set_state_dict(norm.state_dict())
    plain.eval()
    np.testing.assert_array_equal(evaluated, plain(paddle.to_tensor(x[:5])).numpy())


def test_gradients_pass_through_groups():
    x = np.random.default_rng(1).standard_normal((6, 2, 3, 3)).astype(np.float32)
    weights = np.random.default_rng(2).standard_normal(x.shape).astype(np.float32)
    norm, plain = GroupedBatchNorm2D(2, 3), GroupedBatchNorm2D(2)
    norm.train(), plain.train()
    whole = paddle.to_tensor(x, stop_gradient=False)
    (norm(whole) * paddle.to_tensor(weights)).sum().backward()
    for group in range(3):
        part = paddle.to_tensor(x[group::3], stop_gradient=False)
        (plain(part) * paddle.to_tensor(weights[group::3])).sum().backward()
        np.testing.assert_allclose(whole.grad.numpy()[group::3], part.grad.numpy(), atol=1e-5)
    np.testing.assert_allclose(norm.weight.grad.numpy(), plain.weight.grad.numpy(), atol=1e-4)


def test_a_frozen_encoder_keeps_its_statistics():
    model = resnet18(width=4, stem="cifar", num_classes=3, head_bn=True)
    frozen = freeze(model, "encoder")
    assert "layer4.1.bn2.weight" in frozen and not any("head" in name for name in frozen)
    model.train()
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    model(paddle.rand([4, 3, 16, 16])).sum().backward()
    changed = {n for n, v in model.state_dict().items() if (v.numpy() != before[n]).any()}
    assert changed == {"head.0._mean", "head.0._variance"}
    assert model.conv1.weight.grad is None and model.head[1].weight.grad is not None


def test_what_does_not_fit_is_refused():
    norm = GroupedBatchNorm2D(2, 4)
    norm.train()
    with pytest.raises(ValueError, match="a batch of 6 does not divide into 4 groups"):
        norm(paddle.zeros([6, 2, 3, 3]))
    with pytest.raises(ValueError, match="at least 1 group, got 0"):
        GroupedBatchNorm2D(2, 0)
    with pytest.raises(ValueError, match="depth of 18 or 50: 34"):
        ResNet(34)
    with pytest.raises(ValueError, match="unknown stem 'big': choose one of imagenet, cifar"):
        ResNet(18, stem="big")
    with pytest.raises(ValueError, match="freeze is all-but-last-2 and ResNet has 0 blocks"):
        freeze(resnet18(width=4), "all-but-last-2")
