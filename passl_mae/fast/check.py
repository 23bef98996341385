"""Whether the operators give what the plain layers and transforms give, gradients included."""

from __future__ import annotations

import copy

import numpy as np
import paddle
from paddle import nn

from passl_mae.data.random import BatchRandom
from passl_mae.data.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip
from passl_mae.fast.input import fuse
from passl_mae.fast.layers import accelerate
from passl_mae.models.layers import Attention, Mlp


def differences(tokens: int = 17, dim: int = 192, heads: int = 3) -> dict[str, float]:
    """Per operator, the largest difference over outputs and gradients, each relative to its peak.

    About 1e-6 is what two orders of adding float32 numbers give; the input has to give 0.
    """
    layers = {
        "linear": nn.Linear(dim, 3 * dim),
        "layer_norm": nn.LayerNorm(dim, epsilon=1e-6),
        "mlp": Mlp(dim, 4 * dim),
        "attention": Attention(dim, heads, qkv_bias=True),
    }
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, tokens, dim)).astype(np.float32)
    found = {name: _difference(layer, x) for name, layer in layers.items()}
    images = rng.standard_normal((3, dim, 9, 7)).astype(np.float32)
    depthwise = nn.Conv2D(dim, dim, 5, 2, padding=2, groups=dim, bias_attr=False)
    found["depthwise"] = _difference(depthwise, images)
    return {**found, "input": _input_difference()}


def _input_difference() -> float:
    images = np.random.default_rng(2).integers(0, 256, (8, 9, 11, 3), dtype=np.uint8)
    steps = (RandomCrop(10, 3), RandomHorizontalFlip(), Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    plain = Compose(steps)
    fast, slow = (t(images, BatchRandom((0,), 8)) for t in (fuse(plain, "on"), plain))
    return relative_difference(fast, slow)


def _difference(layer: nn.Layer, x: np.ndarray) -> float:
    plain = run_both_ways(layer, x)
    fast = run_both_ways(accelerate(copy.deepcopy(layer)), x)
    return max(relative_difference(fast[name], plain[name]) for name in plain)


def run_both_ways(layer: nn.Layer, x: np.ndarray) -> dict[str, np.ndarray]:
    """Output, input gradient and parameter gradients of a layer, for a fixed output gradient."""
    image = paddle.to_tensor(x, stop_gradient=False)
    y = layer(image)
    grad = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
    layer.clear_gradients()
    paddle.autograd.backward([y], [paddle.to_tensor(grad)])
    found = {"output": y.numpy(), "input": image.grad.numpy()}
    learned = [(name, p) for name, p in layer.named_parameters() if not p.stop_gradient]
    return {**found, **{name: p.grad.numpy() for name, p in learned}}


def relative_difference(a: np.ndarray, b: np.ndarray) -> float:
    """max |a - b| / max |b|; NaN where either is not finite."""
    if a.size == 0:
        return 0.0
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))
