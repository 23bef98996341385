"""The depthwise convolution: a hand-worked case, NumPy, paddle's layer, a whole network."""

import copy

import numpy as np
import paddle
import pytest
from paddle import nn

from passl_mae.fast import accelerate
from passl_mae.fast.check import relative_difference, run_both_ways
from passl_mae.fast.layers import FastDepthwiseConv2D, run
from passl_mae.models.efficientnet import EfficientNet

pytestmark = pytest.mark.usefixtures("operators")


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def convolve(x, w, stride, pads):
    """float64, tap by tap over a padded copy; [B, C, H, W] and [C, 1, k, k]."""
    kernel, (height, width) = w.shape[2], x.shape[2:]
    padded = np.zeros((*x.shape[:2], height + 2 * kernel, width + 2 * kernel))
    padded[:, :, pads[0] : pads[0] + height, pads[1] : pads[1] + width] = x
    out = np.zeros((*x.shape[:2], -(-height // stride), -(-width // stride)))
    for i in range(out.shape[2]):
        for j in range(out.shape[3]):
            top, left = i * stride, j * stride
            window = padded[:, :, top : top + kernel, left : left + kernel]
            out[:, :, i, j] = (window * w[None, :, 0]).sum((2, 3))
    return out


def test_by_hand():
    x = paddle.to_tensor([[[[1.0, 2.0], [3.0, 4.0]]]], stop_gradient=False)
    w = paddle.arange(1.0, 10.0).reshape([1, 1, 3, 3])
    w.stop_gradient = False
    y = run("passl_mae_depthwise", x, w, 1, 1, 1)
    # top left: 5 * 1 + 6 * 2 + 8 * 3 + 9 * 4
    assert y.tolist() == [[[[77.0, 67.0], [47.0, 37.0]]]]
    y[0, 0, 0, 0].backward()
    assert x.grad.tolist() == [[[[5.0, 6.0], [8.0, 9.0]]]]
    assert w.grad.tolist() == [[[[0.0, 0.0, 0.0], [0.0, 1.0, 2.0], [0.0, 3.0, 4.0]]]]


@pytest.mark.parametrize(
    "kernel, pads", [(1, (0, 0)), (3, (1, 1)), (3, (0, 1)), (5, (2, 2)), (5, (1, 2))]
)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (2, 5), (7, 3), (17, 33)], ids=str)
def test_numpy_and_finite_differences(kernel, pads, stride, size):
    x, w = draw(2, 3, *size), draw(3, 1, kernel, kernel, seed=1)
    expected = convolve(x, w, stride, pads)
    grad = draw(*expected.shape, seed=2)
    inputs = [paddle.to_tensor(a, stop_gradient=False) for a in (x, w)]
    y = run("passl_mae_depthwise", *inputs, stride, *pads)
    np.testing.assert_allclose(y.numpy(), expected, rtol=0, atol=1e-5)
    dx, dw = paddle.grad([y], inputs, [paddle.to_tensor(grad)])
    # The convolution is linear in x and in w: along any direction the difference is the gradient.
    along_x, along_w = draw(*x.shape, seed=3), draw(*w.shape, seed=4)
    slope_x = (grad * convolve(along_x, w, stride, pads)).sum()
    slope_w = (grad * convolve(x, along_w, stride, pads)).sum()
    assert (dx.numpy() * along_x).sum() == pytest.approx(slope_x, rel=1e-4, abs=1e-3)
    assert (dw.numpy() * along_w).sum() == pytest.approx(slope_w, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("padding", ["SAME", "usual"])
@pytest.mark.parametrize(
    "kernel, stride, size", [(3, 1, 9), (3, 2, 8), (5, 2, 7), (5, 2, 1), (5, 1, 2)]
)
def test_paddles_layer(padding, kernel, stride, size):
    pad = "SAME" if padding == "SAME" else kernel // 2
    plain = nn.Conv2D(40, 40, kernel, stride, padding=pad, groups=40, bias_attr=False)
    fast = accelerate(copy.deepcopy(plain))
    assert type(fast) is FastDepthwiseConv2D
    x = draw(3, 40, size, size + 1)
    assert fast._pads(paddle.to_tensor(x)) is not None
    found, expected = run_both_ways(fast, x), run_both_ways(plain, x)
    assert all(relative_difference(found[name], expected[name]) < 2e-6 for name in expected)


@pytest.mark.parametrize(
    "arguments",
    [
        dict(groups=1),
        dict(groups=4),
        dict(groups=8, bias_attr=None),
        dict(groups=8, padding=0),
        dict(groups=8, padding=[1, 2]),
        dict(groups=8, padding="VALID"),
        dict(groups=8, dilation=2),
        dict(groups=8, stride=[1, 2]),
        dict(groups=8, kernel_size=[3, 5]),
        dict(groups=8, kernel_size=4, padding=2),
        dict(groups=8, padding_mode="reflect"),
        dict(groups=8, data_format="NHWC"),
    ],
    ids=str,
)
def test_other_convolutions_stay_paddles(arguments):
    settings = {"kernel_size": 3, "padding": 1, "bias_attr": False, **arguments}
    plain = nn.Conv2D(8, 8, **settings)
    fast = accelerate(copy.deepcopy(plain))
    x = draw(2, 8, 8, 8)
    assert fast._pads(paddle.to_tensor(x)) is None
    assert (fast(paddle.to_tensor(x)).numpy() == plain(paddle.to_tensor(x)).numpy()).all()


def test_a_network_and_its_gradients():
    paddle.seed(0)
    plain = EfficientNet(width_coefficient=0.25, depth_coefficient=0.3, img_size=64, num_classes=5)
    plain.train()
    for layer in plain.sublayers():  # drop-connect and dropout draw the same in both
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
        if hasattr(layer, "drop_prob"):
            layer.drop_prob = 0.0
    fast = accelerate(copy.deepcopy(plain))
    used = [la for la in fast.sublayers() if type(la) is FastDepthwiseConv2D and la._groups > 1]
    assert len(used) == 8
    x = draw(16, 3, 64, 64)
    found, expected = run_both_ways(fast, x), run_both_ways(plain, x)
    assert relative_difference(found["output"], expected["output"]) < 1e-4
    largest = max(np.abs(value).max() for name, value in expected.items() if name != "output")
    for name in expected:
        if name != "output":
            assert np.abs(found[name] - expected[name]).max() < 1e-3 * largest, name


THREADS = """
import hashlib, numpy as np, paddle
from passl_mae.fast import load
from passl_mae.fast.layers import run
load()
rng = np.random.default_rng(0)
x, w = (rng.standard_normal(s).astype(np.float32) for s in ((16, 24, 9, 9), (24, 1, 5, 5)))
x, w = (paddle.to_tensor(a, stop_gradient=False) for a in (x, w))
y = run("passl_mae_depthwise", x, w, 1, 2, 2)
(y * y).sum().backward()
print(hashlib.sha256(b"".join(t.numpy().tobytes() for t in (y, x.grad, w.grad))).hexdigest())
"""


def test_with_two_threads_the_bits_are_the_same(run_python):
    assert run_python(THREADS, 1) == run_python(THREADS, 2)


@pytest.mark.parametrize(
    "arguments, match",
    [
        (([2, 3, 4], [3, 1, 3, 3], 1, 1, 1), "batch, channels, h, w"),
        (([2, 3, 4, 4], [4, 1, 3, 3], 1, 1, 1), "weight must be"),
        (([2, 3, 4, 4], [3, 1, 3, 3], 0, 1, 1), "stride must be positive"),
        (([2, 3, 4, 4], [3, 1, 3, 3], 1, 3, 1), "padding 0 to kernel - 1"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(arguments, match):
    x, w, *numbers = arguments
    with pytest.raises((RuntimeError, OSError), match=match):
        run("passl_mae_depthwise", paddle.ones(x), paddle.ones(w), *numbers)
