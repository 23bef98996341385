"""Faster bias gradients on the CPU, by paddle's products: where the C++ operators are not built."""

from __future__ import annotations

import paddle
from paddle import nn
from paddle.autograd import PyLayer


class AddBias(PyLayer):
    """y [..., n] + bias [n]; the bias's gradient is ones [1, m] @ the gradient [m, n].

    PaddlePaddle sums that gradient in a loop of its own, which takes a fifth of a training step on
    the CPU; the product is the same sum, in another order.
    """

    @staticmethod
    def forward(ctx, y: paddle.Tensor, bias: paddle.Tensor) -> paddle.Tensor:
        return y + bias

    @staticmethod
    def backward(ctx, grad: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        rows = grad.reshape([-1, grad.shape[-1]])
        ones = paddle.ones([1, rows.shape[0]], rows.dtype)
        return grad, paddle.matmul(ones, rows).reshape([-1])


class ProductBiasLinear(nn.Linear):
    """`nn.Linear` whose bias learns through `AddBias`."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        if not self._bias_learns(x):
            return nn.Linear.forward(self, x)
        return AddBias.apply(paddle.matmul(x, self.weight), self.bias)

    def _bias_learns(self, x: paddle.Tensor) -> bool:
        """Whether a gradient reaches the bias, on the CPU and not in a static graph."""
        if not paddle.in_dynamic_mode() or not paddle.is_grad_enabled():
            return False
        if self.bias is None or self.bias.stop_gradient or not x.place.is_cpu_place():
            return False
        return not (x.stop_gradient and self.weight.stop_gradient)


def use_product_biases(model: nn.Layer) -> nn.Layer:
    """Gives the linear layers of a built model the faster gradient, in place; returns the model.

    Only layers of exactly `nn.Linear` change: what a user derived from it stays.
    """
    for layer in model.sublayers(include_self=True):
        if type(layer) is nn.Linear:
            layer.__class__ = ProductBiasLinear
    return model
