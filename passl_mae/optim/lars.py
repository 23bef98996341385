"""LARS (You et al. 2017, arXiv 1708.03888) as MAE's linear probe uses it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import paddle
from paddle.nn.clip import GradientClipBase
from paddle.optimizer import Optimizer
from paddle.optimizer.lr import LRScheduler


class LARS(Optimizer):
    """SGD with momentum whose step is scaled, layer by layer, to the size of the weights.

        update = grad + weight_decay * weight              for weights of 2 axes and more;
        update = update * trust_coefficient * |weight| / |update|     (1 where a norm is 0)
        update = grad                                      for biases and norms (1 axis)
        velocity = momentum * velocity + update
        weight = weight - learning_rate * velocity

    This is the reference's form; Paddle's own `lars_momentum` differs (it takes the norms of the
    gradient and the decay apart, and scales 1-D parameters too).

    Args:
        learning_rate: a float or an LRScheduler.
        parameters: parameters, or dicts of them with their own `learning_rate` (a factor) and
            `weight_decay`.
        multi_precision: float16 and bfloat16 parameters (AMP O2) are updated in float32.

    Raises:
        ValueError: a negative rate, decay or trust coefficient, or momentum outside [0, 1).
    """

    _VELOCITY = "velocity"

    def __init__(
        self,
        learning_rate: float | LRScheduler = 0.1,
        parameters: Iterable[paddle.Tensor] | Iterable[dict[str, Any]] | None = None,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        grad_clip: GradientClipBase | None = None,
        multi_precision: bool = True,
        name: str | None = None,
    ):
        if parameters is None:
            raise ValueError("LARS needs parameters=model.parameters()")
        if not isinstance(learning_rate, LRScheduler) and learning_rate < 0:
            raise ValueError(f"learning_rate must not be negative, got {learning_rate}")
        if weight_decay < 0 or trust_coefficient < 0:
            raise ValueError(
                "weight_decay and trust_coefficient must not be negative, got "
                f"{weight_decay} and {trust_coefficient}"
            )
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        self._momentum = momentum
        self._weight_decay = weight_decay
        self._trust_coefficient = trust_coefficient
        self._decay_of: dict[str, float] = {}  # of parameters in groups
        self._prepared: set[str] = set()  # names of parameters that have a velocity
        # weight_decay=None: Paddle would add it to the gradients of 1-D parameters as well
        super().__init__(
            learning_rate=learning_rate,
            parameters=parameters,
            weight_decay=None,
            grad_clip=grad_clip,
            name=name,
        )
        self._multi_precision = multi_precision

    def _add_param_group(self, param_group: dict[str, Any]) -> None:
        decay = param_group.pop("weight_decay", self._weight_decay)
        super()._add_param_group(param_group)
        for parameter in self._param_groups[-1]["params"]:
            self._decay_of[parameter.name] = decay

    def _update_param_group(self, parameters: dict[str, Any]) -> Any:
        return parameters["params"]

    def _has_master(self, parameter: paddle.Tensor) -> bool:
        return self._multi_precision and self._is_dtype_fp16_or_bf16(parameter.dtype)

    def _create_accumulators(self, block: Any, parameters: Any) -> None:
        if isinstance(parameters, dict):
            parameters = self._update_param_group(parameters)
        for parameter in parameters:
            if parameter.name in self._prepared:
                continue
            master = self._has_master(parameter)
            weight = self._create_master_weight(parameter) if master else parameter
            self._add_accumulator(self._VELOCITY, weight)
            self._prepared.add(parameter.name)

    @paddle.no_grad()
    def _append_optimize_op(self, block: Any, param_and_grad: Any) -> None:
        if isinstance(param_and_grad, dict):
            param_and_grad = self._update_param_group(param_and_grad)
        parameter, grad = param_and_grad
        learning_rate = self._create_param_lr(param_and_grad)
        velocity = self._get_accumulator_master(self._VELOCITY, parameter)
        master = self._has_master(parameter)
        weight = self._master_weights[parameter.name] if master else parameter
        update = grad.astype(weight.dtype)
        if len(parameter.shape) > 1:
            update = self._scaled(weight, update, parameter.name)
        velocity.set_value(self._momentum * velocity + update)
        weight.set_value(weight - learning_rate.astype(weight.dtype) * velocity)
        if master:
            parameter.set_value(weight.astype(parameter.dtype))

    def _scaled(self, weight: paddle.Tensor, grad: paddle.Tensor, name: str) -> paddle.Tensor:
        update = grad + self._decay_of.get(name, self._weight_decay) * weight
        weight_norm = paddle.sqrt((weight * weight).sum())
        update_norm = paddle.sqrt((update * update).sum())
        usable = paddle.logical_and(weight_norm > 0, update_norm > 0)
        one = paddle.ones_like(weight_norm)
        safe_norm = paddle.where(usable, update_norm, one)
        ratio = paddle.where(usable, self._trust_coefficient * weight_norm / safe_norm, one)
        return update * ratio
