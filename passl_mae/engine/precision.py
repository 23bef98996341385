"""Mixed precision: what is cast, and the scaling that float16 gradients need."""

from __future__ import annotations

import contextlib
import warnings

import numpy as np
import paddle
from paddle import nn

from passl_mae.logger import get_logger


class Precision:
    """AMP level "off", "O1" (operators choose) or "O2" (weights are rounded, masters in float32).

    A GradScaler works for float16 only: bfloat16 has float32's range. Where the device cannot do it
    (PaddlePaddle has no mixed precision on the CPU), training goes on in float32 with a warning.
    """

    def __init__(self, level: str, dtype: str, init_loss_scaling: float):
        self.level = level
        self.dtype = dtype
        self.init_loss_scaling = init_loss_scaling
        if level != "off" and not self._works():
            get_logger().warning(
                f"AMP.level {level} with {dtype} has no effect on {paddle.device.get_device()}: "
                "training in float32 (mixed precision needs a GPU that knows the type)"
            )
            self.level = "off"
        scaling = self.level != "off" and dtype == "float16"
        self.scaler = paddle.amp.GradScaler(
            enable=scaling, init_loss_scaling=init_loss_scaling if scaling else 1.0
        )

    def _works(self) -> bool:
        x = paddle.ones([8, 8])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # paddle's own; ours says what follows from it
            with self.autocast():
                return paddle.matmul(x, x).dtype != paddle.float32

    def refuse_floor(self) -> None:
        """ValueError where the scaler has halved the scale down to 1, where paddle stops halving.

        Gradients that overflow there do so at any scale: each update would be left out, silently.
        """
        if self.scaler.is_enable() and 1.0 >= self.state_dict()["scale"] < self.init_loss_scaling:
            raise ValueError(
                "float16 gradients overflow at every loss scale, which fell from "
                f"{self.init_loss_scaling:g} to 1: nothing is learned any more; set "
                "AMP.dtype=bfloat16, lower the learning rate or set Optimizer.clip_grad, and go on "
                "from an earlier checkpoint"
            )

    def decorate(
        self, model: nn.Layer, optimizer: paddle.optimizer.Optimizer
    ) -> tuple[nn.Layer, paddle.optimizer.Optimizer]:
        if self.level != "O2":
            return model, optimizer
        return paddle.amp.decorate(
            model, optimizer, level="O2", dtype=self.dtype, master_weight=True
        )

    def autocast(self) -> contextlib.AbstractContextManager:
        if self.level == "off":
            return contextlib.nullcontext()
        return paddle.amp.auto_cast(level=self.level, dtype=self.dtype)

    def state_dict(self) -> dict[str, float]:
        """The scaler's numbers; empty where it is off (paddle turns it off on the CPU)."""
        numbers = self.scaler.state_dict()  # "scale" is an array of one
        return {key: float(np.reshape(value, -1)[0]) for key, value in numbers.items()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        if state and self.scaler.is_enable():
            types = {key: type(value) for key, value in self.scaler.state_dict().items()}
            types["scale"] = lambda scale: np.array([scale], np.float32)
            self.scaler.load_state_dict({key: make(state[key]) for key, make in types.items()})
