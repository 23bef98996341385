"""Layers that call the C++ operators: the plain ones' subclasses, with another `forward`.

A layer keeps its parameters, names and hooks; only its class changes. Where an operator does not
fit (another device or type, exporting, dropout inside), the plain `forward` runs.
"""

from __future__ import annotations

import logging
from typing import Any

import paddle
from paddle import nn

from passl_mae.fast.bias import use_product_biases
from passl_mae.fast.library import COMMAND, load, try_load
from passl_mae.models.layers import Attention, Mlp


def choose(model: nn.Layer, wish: str, static: bool = False) -> tuple[int, str]:
    """Accelerates a model if that is wished and possible; returns what to log: (level, line).

    On another device than the CPU the layers stay, and the line speaks of the input (`input.fuse`).

    Args:
        wish: "auto" (on the CPU: the operators if they are built, else only faster bias gradients),
            "on" or "off" (paddle's layers as they are).
        static: the model will be `paddle.jit.to_static`, which stumbles over those gradients.

    Raises:
        ValueError: "on" where it cannot be; says why.
    """
    if wish == "off":
        return logging.INFO, "CPU operators: off"
    error, device = try_load(wish), paddle.device.get_device()
    if wish == "on" and device != "cpu":
        raise ValueError(
            f"Global.cpu_ops is on, but: they are for the CPU, and the device is {device}"
        )
    if error is not None and device == "cpu" and not static:
        use_product_biases(model)
    if isinstance(error, FileNotFoundError):
        gain = "training about twice" if device == "cpu" else "preparing images several times"
        return logging.INFO, f"CPU operators: not built; `{COMMAND}` makes {gain} as fast"
    if error is not None:
        return logging.WARNING, f"CPU operators: off, training goes on without them; {error}"
    if device != "cpu":
        return logging.INFO, f"CPU operators: to prepare images for {device}, {load()}"
    accelerate(model)
    return logging.INFO, f"CPU operators: {load()}"


def accelerate(model: nn.Layer) -> nn.Layer:
    """Gives the layers of a built model their fast classes, in place; returns the model.

    Only layers of exactly the types below change: what a user derived from them stays.

    Raises:
        OSError: the operators are not built or cannot be loaded.
    """
    load()
    for layer in model.sublayers(include_self=True):
        layer.__class__ = FAST.get(type(layer), type(layer))
    return model


def is_accelerated(model: nn.Layer) -> bool:
    return any(type(layer) in FAST.values() for layer in model.sublayers(include_self=True))


def run(operator: str, *inputs: Any) -> paddle.Tensor:
    """The first output of an operator; its others are for its gradient."""
    if hasattr(paddle._C_ops, "_run_custom_op"):
        outputs = paddle._C_ops._run_custom_op(operator, *inputs)
    else:  # PaddlePaddle 2.6
        outputs = paddle.base.core.eager._run_custom_op(operator, *inputs)
    return outputs[0] if isinstance(outputs, (list, tuple)) else outputs


def _fit(*tensors: paddle.Tensor | None) -> bool:
    """Whether the operators take these: float32 on the CPU, and not while exporting."""
    return paddle.in_dynamic_mode() and all(
        t is not None and t.dtype == paddle.float32 and t.place.is_cpu_place() for t in tensors
    )


def _drops(dropout: nn.Dropout) -> bool:
    return dropout.training and dropout.p > 0


def _is_hooked(layer: nn.Layer) -> bool:
    return bool(layer._forward_pre_hooks or layer._forward_post_hooks)


class FastLinear(nn.Linear):
    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        if not _fit(x, self.weight, self.bias):
            return nn.Linear.forward(self, x)
        return run("passl_mae_linear", x, self.weight, self.bias)


class FastLayerNorm(nn.LayerNorm):
    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        if len(self._normalized_shape) != 1 or not _fit(x, self.weight, self.bias):
            return nn.LayerNorm.forward(self, x)
        return run("passl_mae_layer_norm", x, self.weight, self.bias, self._epsilon)


class FastMlp(Mlp):
    """Both products, their biases and GELU in one operator; the activations are not kept."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        weights = (self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        exact_gelu = type(self.act) is nn.GELU and not self.act._approximate
        inner = (self.fc1, self.act, self.drop1, self.fc2)
        if not exact_gelu or _drops(self.drop1) or not _fit(x, *weights):
            return Mlp.forward(self, x)
        if any(_is_hooked(layer) for layer in inner):  # who watches them sees them run
            return Mlp.forward(self, x)
        return self.drop2(run("passl_mae_mlp", x, *weights))


class FastAttention(Attention):
    """From the packed projection to the heads' outputs in one operator, without transposes."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        if _drops(self.attn_drop) or _is_hooked(self.attn_drop) or not _fit(x, self.qkv.weight):
            return Attention.forward(self, x)
        x = run("passl_mae_attention", self.qkv(x), self.num_heads)
        return self.proj_drop(self.proj(x))


class FastDepthwiseConv2D(nn.Conv2D):
    """Where every channel has a kernel of its own, and a stride alone makes the image smaller."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        pads = self._pads(x)
        if pads is None or not _fit(x, self.weight):
            return nn.Conv2D.forward(self, x)
        return run("passl_mae_depthwise", x, self.weight, self._stride[0], *pads)

    def _pads(self, x: paddle.Tensor) -> tuple[int, int] | None:
        """Rows and columns of zeros before x [B, C, H, W]; None where the operator does not fit."""
        kernel, stride = self._kernel_size[0], self._stride[0]
        depthwise = self._groups == self._in_channels == self._out_channels
        square = self._kernel_size == [kernel] * 2 and self._stride == [stride] * 2
        usual = list(self._dilation) == [1, 1] and self._padding_mode == "zeros"
        if not (depthwise and square and usual) or self.bias is not None or x.ndim != 4:
            return None
        if self._data_format != "NCHW":
            return None
        if self._padding == "SAME":  # as TensorFlow's: what is missing, the lesser half before
            missing = [
                max((size - 1) // stride * stride + kernel - size, 0) for size in x.shape[2:]
            ]
            return missing[0] // 2, missing[1] // 2
        same_size = kernel % 2 == 1 and self._updated_padding in (kernel // 2, [kernel // 2] * 2)
        return (kernel // 2, kernel // 2) if same_size else None


FAST: dict[type, type] = {
    nn.Linear: FastLinear,
    nn.LayerNorm: FastLayerNorm,
    Mlp: FastMlp,
    Attention: FastAttention,
    nn.Conv2D: FastDepthwiseConv2D,
}
