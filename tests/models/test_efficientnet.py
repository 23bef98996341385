"""EfficientNet: the paper's sizes, and the logits of others' weights against float64 NumPy."""

import hashlib

import numpy as np
import numpy_efficientnet as slow
import paddle
import pytest

from passl_mae.models import efficientnet as eff
from passl_mae.models.efficientnet_weights import efficientnet_weights, layout_of_efficientnet
from passl_mae.models.layers import DropPath
from passl_mae.models.torch_files import write_torch_file
from passl_mae.models.weights import load_into, load_weights

LAYOUTS = {"torchvision": slow.Torchvision, "timm": slow.Timm}
SIZES = {
    "b0": (224, 5_288_548), "b1": (240, 7_794_184), "b2": (260, 9_109_994),
    "b3": (300, 12_233_232), "b4": (380, 19_341_616), "b5": (456, 30_389_784),
    "b6": (528, 43_040_704), "b7": (600, 66_347_960),
}  # fmt: skip


def build(name, **overrides):
    model = getattr(eff, f"efficientnet_{name}")(**overrides)
    model.eval()
    return model


def learned(model):
    """Paddle counts BatchNorm's running statistics among the parameters; papers do not."""
    named = model.named_parameters()
    return {n: p for n, p in named if n.split(".")[-1] not in ("_mean", "_variance")}


def images(height=40, width=52, batch=2, channels=3):
    shape = [batch, channels, height, width]
    return np.random.default_rng(1).standard_normal(shape).astype("float32")


LARGE = ("b4", "b5", "b6", "b7")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LARGE)) for n in SIZES]
)
def test_sizes_are_the_papers(name):
    model = build(name)
    size, parameters = SIZES[name]
    assert sum(p.size for p in learned(model).values()) == parameters
    assert model.img_size == (size, size) and model.classifier is model.head
    assert model.head.weight.shape == [model.num_features, 1000]


def test_rounding_by_hand():
    """320 * 1.2 = 384 and 40 * 1.2 = 48 exact; 16 * 1.2 = 19.2 to 24, as 16 loses over 10 %."""
    assert [eff.round_filters(n, 1.2) for n in (16, 24, 40, 320, 1280)] == [24, 32, 48, 384, 1536]
    assert [eff.round_filters(n, 1.1) for n in (16, 32, 112)] == [16, 32, 120]
    assert eff.round_filters(4, 0.5) == 8
    assert [eff.round_repeats(n, 1.4) for n in (1, 2, 3, 4)] == [2, 3, 5, 6]


def test_the_random_state_dicts_are_laid_out_as_the_libraries_own():
    """sha256 of the sorted lines "key [shape]", taken from torchvision 0.29.1 and timm 1.0.31."""
    wanted = {
        ("b0", "torchvision"): "c82a02375566e02aebb36f2b298626ffdf184ad3699993b7420b365d05c7c854",
        ("b3", "torchvision"): "04710cc2d085f3921ce10d991310c9c4010a2d0f08262471e814d0c43bb35e5a",
        ("b0", "timm"): "0fbc16734a4d987089d14230034f51708e64b7c523600116826b210175b34407",
        ("b3", "timm"): "ecc4f2f07741184e2488ec84c6d3b152a4074e42cadd00f1d68925966faaefae",
    }
    for (name, layout), digest in wanted.items():
        state = slow.random_state(name, LAYOUTS[layout])
        lines = sorted(f"{key} {list(value.shape)}" for key, value in state.items())
        assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == digest, (name, layout)


@pytest.mark.parametrize("padding, epsilon", [("symmetric", 1e-5), ("same", 1e-3)])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", slow.SCALES)
def test_others_weights_give_the_logits_of_the_slow_network(name, layout, padding, epsilon):
    """All of B0 and B3; "same" and 1e-3 is what timm's `tf_` weights are for."""
    state = slow.random_state(name, LAYOUTS[layout], num_classes=7)
    x = images()
    expected = slow.classify(state, x, name, LAYOUTS[layout], padding, epsilon)
    assert 0.1 < np.abs(expected).max() < 100
    model = build(name, num_classes=7, padding=padding, bn_epsilon=epsilon)
    mapped, found = efficientnet_weights(state)
    assert found == layout
    report = load_into(model, mapped)
    assert len(report.loaded) == len(model.state_dict()) and not report.missing
    np.testing.assert_allclose(model(paddle.to_tensor(x)).numpy(), expected, atol=1e-4)


def test_paddings_differ_where_the_stride_meets_an_even_side():
    state, _ = efficientnet_weights(slow.random_state("b0", slow.Timm, num_classes=7))
    logits = []
    for padding in eff.PADDINGS:
        model = build("b0", num_classes=7, padding=padding)
        load_into(model, state)
        logits.append(model(paddle.to_tensor(images())).numpy())
    assert np.abs(logits[0] - logits[1]).max() > 1e-2


def test_a_pth_file_is_read_and_other_keys_are_refused(tmp_path):
    state = slow.random_state("b0", slow.Torchvision, num_classes=7)
    with open(tmp_path / "b0.pth", "wb") as file:
        write_torch_file(state, file, None)
    direct, _ = efficientnet_weights(state)
    from_file, _ = efficientnet_weights(load_weights(tmp_path / "b0.pth"), linear="paddle")
    assert direct.keys() == from_file.keys()
    for key, value in direct.items():
        np.testing.assert_array_equal(value, from_file[key], err_msg=key)
    assert layout_of_efficientnet(direct) == "own"
    assert efficientnet_weights(direct)[0].keys() == direct.keys()
    with pytest.raises(ValueError, match="no EfficientNet in these weights, neither"):
        efficientnet_weights({"conv1.weight": np.zeros(3)})
    for key in ("features.1.0.block.9.0.weight", "features.0.1.momentum", "fc.weight"):
        with pytest.raises(ValueError, match=f"{key} is of no layer of torchvision's"):
            efficientnet_weights({**state, key: np.zeros(3)})
    with pytest.raises(ValueError, match="the weights do not fit the model"):
        load_into(build("b1", num_classes=7), direct)


def test_features_and_classifier_are_apart():
    model = build("b0", num_classes=4, in_chans=1)
    x = paddle.to_tensor(images(33, 64, channels=1))
    features = model.forward_features(x)
    assert features.shape == [2, 1280] == [2, model.num_features]
    assert model.features(x).shape == [2, 1280, 2, 2]
    np.testing.assert_allclose(model(x).numpy(), model.classifier(features).numpy(), atol=1e-6)
    headless = build("b0", num_classes=0, in_chans=1)
    assert headless(x).shape == [2, 1280]
    probe = build("b0", num_classes=4, in_chans=1, head_bn=True)
    assert "head.0._mean" in probe.state_dict() and probe(x).shape == [2, 4]


def test_drop_connect_grows_with_depth_and_acts_in_training_only():
    model = build("b0", num_classes=3, drop_path_rate=0.32, drop_rate=0.0)
    rates = [layer.drop_prob for layer in model.sublayers() if isinstance(layer, DropPath)]
    assert rates == pytest.approx([0.32 * i / 16 for i in range(16)])
    x = paddle.to_tensor(images(32, 32))
    np.testing.assert_array_equal(model(x).numpy(), model(x).numpy())
    for layer in model.sublayers():
        layer.training = isinstance(layer, DropPath)
    assert np.abs(model(x).numpy() - model(x).numpy()).max() > 0


def test_it_learns_by_all_of_its_parameters():
    paddle.seed(0)
    model = eff.efficientnet_b0(num_classes=3, drop_path_rate=0.0)
    model.train()
    model(paddle.to_tensor(images(64, 64, 4))).square().mean().backward()
    for name, param in learned(model).items():
        assert param.grad is not None and np.isfinite(param.grad.numpy()).all(), name
        # the biases of a gate and all that stands before a BatchNorm may well be small, not 0
        assert np.abs(param.grad.numpy()).max() > 0, name


def test_activations_far_below_zero_have_a_gradient():
    """PaddlePaddle's own silu gives NaN there, which ended a run after some epochs."""
    model = build("b0")
    for layer in model.features.sublayers():
        if isinstance(layer, paddle.nn.BatchNorm2D):
            layer.bias.set_value(paddle.full_like(layer.bias, -200.0))
        if isinstance(layer, eff.SqueezeExcite):
            layer.reduce.bias.set_value(paddle.full_like(layer.reduce.bias, -200.0))
    model.train()
    model(paddle.to_tensor(images(4, 64, 4))).sum().backward()
    for name, param in learned(model).items():
        assert np.isfinite(param.grad.numpy()).all(), name


def test_the_start_is_the_official_one():
    """N(0, sqrt(2 / (k * k * outputs))), of depthwise filters sqrt(2 / (k * k)); a uniform head."""
    paddle.seed(0)
    model = build("b0")
    top = model.features[8].conv.weight.numpy()
    assert top.std() == pytest.approx(np.sqrt(2 / 1280), rel=0.02) and abs(top.mean()) < 1e-3
    depthwise = model.features[6][1].depthwise.conv.weight.numpy()  # [1152, 1, 5, 5]
    assert depthwise.std() == pytest.approx(np.sqrt(2 / 25), rel=0.02)
    head = model.head.weight.numpy()
    bound = 1 / np.sqrt(1000)
    assert np.abs(head).max() <= bound and head.std() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert (model.head.bias.numpy() == 0).all()
    few = build("b0", num_classes=10).head.weight.numpy()  # not 1 / sqrt(10): loss 5, not 2.3
    assert np.abs(few).max() <= bound and few.std() == pytest.approx(bound / 3**0.5, rel=0.02)


@pytest.mark.parametrize("arguments, match", [
    (dict(padding="valid"), "unknown padding 'valid': choose one of symmetric, same"),
    (dict(width_coefficient=0), "width_coefficient must be positive, got 0"),
    (dict(depth_coefficient=-1.0), "depth_coefficient must be positive, got -1.0"),
    (dict(drop_rate=1.0), r"must be in \[0, 1\), got 1.0"),
    (dict(in_chans=0), "in_chans must be at least 1"),
    (dict(img_size=(224,)), "img_size must be a positive int"),
])  # fmt: skip
def test_models_that_cannot_be_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        eff.EfficientNet(**arguments)


def test_images_of_other_channels_are_refused():
    with pytest.raises(ValueError, match=r"takes images \[B, 3, H, W\], got \[2, 1, 40, 52\]"):
        build("b0")(paddle.to_tensor(images(channels=1)))
