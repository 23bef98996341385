"""Whether the operators give what the plain layers give: outputs and all gradients."""

from __future__ import annotations

import copy

import numpy as np
import paddle
from paddle import nn

from passl_mae.fast.layers import accelerate
from passl_mae.models.layers import Attention, Mlp


def differences(tokens: int = 17, dim: int = 192, heads: int = 3) -> dict[str, float]:
    """Per operator, the largest difference over outputs and gradients, each relative to its peak.

    About 1e-6 is what two orders of adding float32 numbers give.
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
    return {**found, "depthwise": _difference(depthwise, images)}


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
