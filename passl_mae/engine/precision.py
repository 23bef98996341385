"""Mixed precision: what is cast, and the scaling that float16 gradients need."""

from __future__ import annotations

import contextlib

import numpy as np
import paddle
from paddle import nn


class Precision:
    """AMP level "off", "O1" (operators choose) or "O2" (weights are rounded, masters in float32).

    A GradScaler works for float16 only: bfloat16 has float32's range.
    """

    def __init__(self, level: str, dtype: str, init_loss_scaling: float):
        self.level = level
        self.dtype = dtype
        scaling = level != "off" and dtype == "float16"
        self.scaler = paddle.amp.GradScaler(
            enable=scaling, init_loss_scaling=init_loss_scaling if scaling else 1.0
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
        return {key: float(value) for key, value in self.scaler.state_dict().items()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        if state and self.scaler.is_enable():
            types = {key: type(value) for key, value in self.scaler.state_dict().items()}
            types["scale"] = lambda scale: np.array([scale], np.float32)
            self.scaler.load_state_dict({key: make(state[key]) for key, make in types.items()})
