"""An optimizer's state under the model's own parameter names.

PaddlePaddle keys it by `Tensor.name`, a counter of the process ("linear_27.w_0_moment1_0"): a
model built second, as in a notebook, has other names, and its state would not be found again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle
from paddle import nn

_MASTER = "master_weights"
_SCHEDULE = "LR_Scheduler"  # the trainer keeps the schedule itself


def optimizer_state(own: Mapping[str, Any], model: nn.Layer) -> dict[str, np.ndarray]:
    """{"blocks.0.norm1.weight/moment1_0": array, ...}; the float32 masters of O2 too.

    Args:
        own: `state_dict()` of the model's optimizer.
    """
    known = {param.name: name for name, param in model.named_parameters()}
    state: dict[str, np.ndarray] = {}
    for key, value in own.items():
        if key == _MASTER:
            for param_name, master in value.items():
                state[f"{known[param_name]}/{_MASTER}"] = master.numpy()
        elif key != _SCHEDULE:
            param_name = _owner(key, known)
            state[f"{known[param_name]}/{key[len(param_name) + 1 :]}"] = value.numpy()
    return state


def load_optimizer_state(
    optimizer: paddle.optimizer.Optimizer, model: nn.Layer, state: dict[str, np.ndarray]
) -> None:
    """Puts back what `optimizer_state` gave, into an optimizer that has not taken a step.

    Raises:
        ValueError: the state belongs to another model.
    """
    params = dict(model.named_parameters())
    renamed: dict = {}
    masters: dict[str, paddle.Tensor] = {}
    for key, value in state.items():
        name, _, accumulator = key.partition("/")
        if name not in params:
            raise ValueError(f"the optimizer state is of another model: it holds {name}")
        if accumulator == _MASTER:
            master = paddle.to_tensor(value)
            master.name = f"{params[name].name}_fp32_master_0"  # its moments are looked up by this
            masters[params[name].name] = master
        else:
            renamed[f"{params[name].name}_{accumulator}"] = paddle.to_tensor(value)
    if masters:
        renamed[_MASTER] = masters
    current = optimizer.state_dict()
    if _SCHEDULE in current:  # paddle wants one; the trainer sets the schedule itself
        renamed[_SCHEDULE] = current[_SCHEDULE]
    optimizer.set_state_dict(renamed)


def float32_weights(
    own: Mapping[str, Any], model: nn.Layer, exact: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The model's state with every floating-point value in float32.

    At AMP level O2 the weights themselves are rounded: the optimizer's masters are taken instead,
    and for what does not learn (position tables, frozen layers) the values in `exact`.

    Args:
        own: `state_dict()` of the model's optimizer.
    """
    masters = own.get(_MASTER, {})
    param_names = {name: param.name for name, param in model.named_parameters()}
    state: dict[str, np.ndarray] = {}
    for name, value in model.state_dict().items():
        if name in exact:
            state[name] = exact[name]
            continue
        value = masters.get(param_names.get(name), value)
        is_float = value.dtype in (paddle.float16, paddle.bfloat16, paddle.float64)
        state[name] = (value.astype("float32") if is_float else value).numpy()
    return state


def parameters_that_stay(model: nn.Layer) -> dict[str, np.ndarray]:
    """The parameters that do not change: position tables, frozen layers.

    To paddle BatchNorm's running statistics are parameters that do not learn; they move.
    """
    moving = ("_mean", "_variance")
    return {
        name: param.numpy()
        for name, param in model.named_parameters()
        if param.stop_gradient and name.split(".")[-1] not in moving
    }


def _owner(key: str, known: dict[str, str]) -> str:
    """The parameter that an accumulator's name ("linear_0.w_0_moment1_0") begins with."""
    for match in re.finditer("_", key):
        if key[: match.start()] in known:
            return key[: match.start()]
    raise AssertionError(f"{key} belongs to no parameter of the model")
