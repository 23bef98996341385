"""Each operator against its formula in float64 NumPy: values, gradients, odd sizes, extremes."""

import math

import numpy as np
import paddle
import pytest

from passl_mae.fast.layers import run

pytestmark = pytest.mark.usefixtures("operators")
erf = np.vectorize(math.erf, otypes=[np.float64])


def draw(*shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def call(operator, arrays, grad, *attributes):
    """Output and gradients of all inputs, as arrays."""
    inputs = [paddle.to_tensor(a, stop_gradient=False) for a in arrays]
    y = run(operator, *inputs, *attributes)
    grads = paddle.grad([y], inputs, [paddle.to_tensor(grad)])
    return [y.numpy(), *[g.numpy() for g in grads]]


def assert_close(found, expected, tolerance=2e-6):
    assert len(found) == len(expected)
    for number, (a, b) in enumerate(zip(found, expected)):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1.0), number


def linear(x, w, b, grad):
    x, w, b, grad = (a.astype(np.float64) for a in (x, w, b, grad))
    rows, grads = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    return [x @ w + b, grad @ w.T, rows.T @ grads, grads.sum(0)]


@pytest.mark.parametrize(
    ("rows", "inner", "out"),
    [
        (1, 1, 1),
        (5, 7, 3),
        (13, 33, 31),
        (12, 32, 32),
        (49, 192, 576),
        (300, 257, 65),
        (97, 5, 801),
    ],
)
def test_linear(rows, inner, out):
    arrays = draw(1, rows, inner), draw(inner, out, seed=1, scale=inner**-0.5), draw(out, seed=2)
    grad = draw(1, rows, out, seed=3)
    assert_close(call("passl_mae_linear", arrays, grad), linear(*arrays, grad), 4e-6)


@pytest.mark.parametrize("dim", [1, 2, 7, 16, 33, 96, 192, 1000])
@pytest.mark.parametrize("rows", [1, 3, 195])
def test_layer_norm(rows, dim):
    x, scale, bias, grad = draw(rows, dim), draw(dim, seed=1), draw(dim, seed=2), draw(rows, dim)
    found = call("passl_mae_layer_norm", (x, scale, bias), grad, 1e-6)
    tolerance = 1e-4 if dim <= 2 else 1e-5  # rstd is large there, the gradient nearly 0
    assert_close(found, layer_norm(x, scale, bias, grad), tolerance)


def layer_norm(x, scale, bias, grad):
    x, scale, bias, grad = (a.astype(np.float64) for a in (x, scale, bias, grad))
    rstd = 1 / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    normed = (x - x.mean(-1, keepdims=True)) * rstd
    g = grad * scale
    dx = rstd * (g - g.mean(-1, keepdims=True) - normed * (g * normed).mean(-1, keepdims=True))
    return [normed * scale + bias, dx, (grad * normed).sum(0), grad.sum(0)]


def test_layer_norm_of_rows_far_from_zero_and_of_constant_rows():
    x = np.concatenate([draw(2, 192) + 1000, np.full((1, 192), 3, np.float32)])
    scale, bias, grad = np.ones(192, np.float32), np.zeros(192, np.float32), draw(3, 192, seed=1)
    found = call("passl_mae_layer_norm", (x, scale, bias), grad, 1e-6)
    assert_close(found[:1], layer_norm(x, scale, bias, grad)[:1], 1e-4)
    assert (found[0][2] == 0).all()


def mlp(x, w1, b1, w2, b2, grad):
    x, w1, b1, w2, b2, grad = (a.astype(np.float64) for a in (x, w1, b1, w2, b2, grad))
    hidden = x @ w1 + b1
    cdf = (1 + erf(hidden / math.sqrt(2))) / 2
    active = hidden * cdf
    dhidden = grad @ w2.T * (cdf + hidden * np.exp(-(hidden**2) / 2) / math.sqrt(2 * math.pi))
    return [
        *(active @ w2 + b2, dhidden @ w1.T, x.T @ dhidden, dhidden.sum(0)),
        *(active.T @ grad, grad.sum(0)),
    ]


@pytest.mark.parametrize(("rows", "dim", "hidden", "out"), [(1, 1, 1, 1), (70, 24, 97, 19)])
def test_mlp(rows, dim, hidden, out):
    arrays = [draw(rows, dim), draw(dim, hidden, seed=1, scale=dim**-0.5), draw(hidden, seed=2)]
    arrays += [draw(hidden, out, seed=3, scale=hidden**-0.5), draw(out, seed=4)]
    grad = draw(rows, out, seed=5)
    assert_close(call("passl_mae_mlp", arrays, grad), mlp(*arrays, grad), 4e-6)


def test_gelu_from_minus_30_to_30():
    x = np.linspace(-30, 30, 6001, dtype=np.float32)[:, None]
    one, zero = np.ones((1, 1), np.float32), np.zeros(1, np.float32)
    y, dx, *_ = call("passl_mae_mlp", (x, one, zero, one, zero), np.ones_like(x))
    expected = mlp(x, one, zero, one, zero, np.ones_like(x))
    assert np.abs(y - expected[0]).max() < 2e-6
    assert np.abs(dx - expected[1]).max() < 1e-6


def attention(qkv, grad, heads):
    batch, tokens, packed = qkv.shape
    shape = (batch, tokens, 3, heads, packed // 3 // heads)
    q, k, v = qkv.astype(np.float64).reshape(shape).transpose(2, 0, 3, 1, 4)
    g = grad.astype(np.float64).reshape(batch, tokens, heads, -1).transpose(0, 2, 1, 3)
    scale = q.shape[-1] ** -0.5
    logits = q @ k.swapaxes(-1, -2) * scale
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dp = g @ v.swapaxes(-1, -2)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * scale
    dqkv = np.stack([ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ g])
    out = (p @ v).transpose(0, 2, 1, 3).reshape(batch, tokens, -1)
    return [out, dqkv.transpose(1, 3, 0, 2, 4).reshape(qkv.shape)]


@pytest.mark.parametrize("tokens", [1, 5, 17, 65, 300])
@pytest.mark.parametrize(("heads", "head_dim"), [(1, 1), (2, 8), (3, 24), (4, 32), (3, 64)])
@pytest.mark.parametrize("batch", [1, 3])
def test_attention(batch, tokens, heads, head_dim):
    qkv = draw(batch, tokens, 3 * heads * head_dim)
    grad = draw(batch, tokens, heads * head_dim, seed=1)
    found = call("passl_mae_attention", [qkv], grad, heads)
    assert_close(found, attention(qkv, grad, heads), 3e-6)


def test_attention_with_large_logits_and_with_equal_tokens():
    for qkv in (draw(2, 17, 72, scale=30), np.repeat(draw(2, 1, 72), 17, axis=1)):
        grad = draw(2, 17, 24, seed=1)
        found = call("passl_mae_attention", [qkv], grad, 3)
        assert_close(found, attention(qkv, grad, 3), 1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_comes_out(bad):
    x = draw(40, 24)
    x[20, 5] = bad
    w, b = np.ones((24, 24), np.float32), draw(24, seed=2)
    grad = np.ones((40, 24), np.float32)
    for name, arrays, attributes in [
        ("passl_mae_linear", (x, w, b), ()),
        ("passl_mae_mlp", (x, w, b, w, b), ()),
        ("passl_mae_layer_norm", (x, b, b), (1e-6,)),
        ("passl_mae_attention", (x.reshape(1, 40, 24),), (2,)),
    ]:
        if name.endswith("attention"):
            grad = np.ones((1, 40, 8), np.float32)
        found = call(name, arrays, grad, *attributes)
        if not (name.endswith("mlp") and bad == -np.inf):  # GELU(-inf): 0 in the limit
            assert not np.isfinite(found[0]).all(), name
        rows_without = np.delete(found[0].reshape(40, -1), 20, axis=0)
        if not name.endswith("attention"):  # and nowhere else
            assert np.isfinite(rows_without).all(), name


def test_what_is_not_finite_comes_out_of_the_gradients():
    grad = draw(40, 24)
    grad[3, 3] = np.nan
    w, b = draw(24, 24), draw(24, seed=2)
    for name, arrays, attributes in [
        ("passl_mae_linear", (draw(40, 24), w, b), ()),
        ("passl_mae_mlp", (draw(40, 24), w, b, w, b), ()),
        ("passl_mae_layer_norm", (draw(40, 24), b, b), (1e-6,)),
    ]:
        _, *grads = call(name, arrays, grad, *attributes)
        assert all(np.isnan(g).any() for g in grads), name


def test_wrong_inputs_are_refused():
    x, w, b = (paddle.to_tensor(a) for a in (draw(4, 8), draw(8, 6), draw(6)))
    for arguments in [(x, w, x), (x, b, b), (b, w, b), (x.astype("float64"), w, b)]:
        with pytest.raises(Exception, match=r"must be|another shape"):
            run("passl_mae_linear", *arguments)
    with pytest.raises(Exception, match="must be"):
        run("passl_mae_attention", paddle.to_tensor(draw(1, 4, 10)), 3)
