"""An exponential moving average of the weights, to evaluate and to keep."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import paddle
from paddle import nn


class ModelEMA:
    """ema = d * ema + (1 - d) * weight after every step, in float32 (Polyak & Juditsky 1992).

    d is min(decay, (1 + t) / (10 + t)) at step t, so that the random start is forgotten in short
    runs too. Buffers (BatchNorm's statistics) are averaged like weights; whole numbers are copied.

    Raises:
        ValueError: `decay` outside [0, 1).
    """

    def __init__(self, model: nn.Layer, decay: float):
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"ema_decay must be in [0, 1), got {decay}")
        self.decay = decay
        self._model = model
        self._shadow = {name: _float32(value) for name, value in model.state_dict().items()}

    @paddle.no_grad()
    def update(self, step: int) -> None:
        """After step number `step` (from 1 on) has changed the model's weights."""
        keep = min(self.decay, (1 + step) / (10 + step))
        for name, value in self._model.state_dict().items():
            shadow = self._shadow[name]
            if shadow.is_floating_point():
                shadow.scale_(keep)
                shadow.add_(value.astype("float32") * (1.0 - keep))
            else:
                shadow.set_value(value)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights inside the block, and its own again behind it."""
        own = {name: value.clone() for name, value in self._model.state_dict().items()}
        _assign(self._model, self._shadow)
        try:
            yield
        finally:
            _assign(self._model, own)

    def state_dict(self) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in self._shadow.items()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Raises ValueError if the state is of another model."""
        if state.keys() != self._shadow.keys():
            different = sorted(state.keys() ^ self._shadow.keys())
            raise ValueError(f"the averaged weights are of another model: {different[0]} differs")
        for name, value in state.items():
            self._shadow[name].set_value(value)


def _float32(value: paddle.Tensor) -> paddle.Tensor:
    copy = value.detach().clone()
    return copy.astype("float32") if copy.is_floating_point() else copy


@paddle.no_grad()
def _assign(model: nn.Layer, values: Mapping[str, paddle.Tensor]) -> None:
    for name, own in model.state_dict().items():
        own.set_value(values[name].astype(own.dtype))
