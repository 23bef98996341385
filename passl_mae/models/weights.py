"""Weights into and out of models: layouts, extraction of the encoder, other sizes, checked loading.

A state is a dict from the tutorial's and the reference's keys to NumPy arrays or paddle Tensors.
Linear weights are [in, out] in Paddle's layout and [out, in] in PyTorch's.
"""

from __future__ import annotations

import os
import re
from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from passl_mae.models.adapt import (
    adapt_channels,
    grid_of,
    resize_pos_embed,
)
from passl_mae.models.torch_files import widen_bfloat16
from passl_mae.models.weight_files import PathLike, is_array, layout_of, load_file, save_file

if TYPE_CHECKING:
    from paddle import nn

__all__ = [
    "ConvertReport", "ExtractReport", "LoadReport", "adapt_channels", "convert",
    "extract_encoder", "extract_mae_pt", "extract_query_encoder", "is_moco", "layout_of",
    "load_file", "load_into", "load_weights", "refuse_same_file", "resize_pos_embed", "save_file",
    "save_weights",
]  # fmt: skip

_ENCODER_KEY = re.compile(r"patch_embed\..+|cls_token|pos_embed|blocks\.\d+\..+")
_QUERY = "encoder_q."
_ENCODER_NEEDS = ("patch_embed.proj.weight", "cls_token", "pos_embed", "blocks.0.attn.qkv.weight")
_POSITION_TABLES = ("pos_embed", "decoder_pos_embed")
_PATCH_PROJECTION = "patch_embed.proj.weight"


@dataclass(frozen=True)
class ConvertReport:
    """What `convert` did with each key."""

    transposed: list[str]
    unchanged: list[str]

    def __str__(self) -> str:
        fates = dict.fromkeys(self.transposed, "transposed")
        fates.update(dict.fromkeys(self.unchanged, "as it was"))
        lines = [f"  {fate:<10}  {key}" for key, fate in fates.items()]
        total = f"{len(self.transposed)} transposed, {len(self.unchanged)} as they were"
        return "\n".join([*lines, total])


def convert(
    state: Mapping[str, np.ndarray], to: str = "paddle"
) -> tuple[dict[str, np.ndarray], ConvertReport]:
    """Turns weights between the layouts of PyTorch and Paddle; keys and dtypes stay.

    Linear weights (two axes, a key ending in `weight`) are transposed, as views, without a copy;
    converting twice is the identity, so both directions do the same.

    Args:
        to: "paddle" (from PyTorch) or "torch" (from Paddle).

    Raises:
        ValueError: another `to`.
    """
    if to not in ("paddle", "torch"):
        raise ValueError(f"to must be 'paddle' or 'torch', got {to!r}")
    linear = [k for k, value in state.items() if k.split(".")[-1] == "weight" and value.ndim == 2]
    turned = set(linear)
    converted = {key: value.T if key in turned else value for key, value in state.items()}
    return converted, ConvertReport(linear, [key for key in state if key not in turned])


def to_float16(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """float32 and float64 arrays rounded to float16, at half the space; others as they are.

    Raises:
        ValueError: a value beyond float16's largest, 65504.
    """
    rounded = {}
    for key, value in state.items():
        wide = value.dtype in (np.float32, np.float64)
        if wide and value.size and np.abs(value).max() > np.finfo(np.float16).max:
            raise ValueError(f"{key} holds {np.abs(value).max():g}, too large for float16")
        rounded[key] = value.astype(np.float16) if wide else value
    return rounded


def load_weights(path: PathLike, notes: list[str] | None = None) -> dict[str, np.ndarray]:
    """`load_file`, in Paddle's layout: what stands in a `.pth` is converted.

    A `.safetensors` file is taken as it is; one in PyTorch's layout needs `convert` first.
    """
    state = load_file(path, notes)
    if layout_of(path) == "torch":
        state, report = convert(state, to="paddle")
        if notes is not None:
            notes.append(f"{len(report.transposed)} Linear weights transposed (PyTorch's layout)")
    return state


def save_weights(state: Mapping[str, Any], path: PathLike) -> None:
    """`save_file` for weights in Paddle's layout: what goes into a `.pth` is converted."""
    if layout_of(path) == "torch":
        state, _ = convert({key: _numpy(value) for key, value in state.items()}, to="torch")
    save_file(state, path)


def refuse_same_file(source: PathLike, target: PathLike) -> None:
    """Raises ValueError where writing `target` would overwrite `source`."""
    if os.path.exists(target) and os.path.samefile(source, target):
        raise ValueError(f"{target} is the input itself: choose another file for the output")


@dataclass(frozen=True)
class ExtractReport:
    """What `extract_encoder` took from a pretraining model's weights."""

    taken: list[str]
    dropped: list[str]
    newly_initialised: list[str]

    def __str__(self) -> str:
        parts = {
            "taken": self.taken,
            "dropped": self.dropped,
            "newly initialised by the classifier": self.newly_initialised,
        }
        lines = []
        for title, keys in parts.items():
            lines.append(f"{title}: {len(keys)}")
            lines += [f"  {key}" for key in keys]
        return "\n".join(lines)


def extract_encoder(
    state: Mapping[str, Any], *, global_pool: bool = True
) -> tuple[dict[str, Any], ExtractReport]:
    """Takes from pretraining weights exactly what the classifier can use, whatever their order.

    That is `patch_embed.*, cls_token, pos_embed, blocks.*`; the encoder's `norm` goes with them
    only for a classifier that pools by the class token (`global_pool=False`), which has such a
    layer. Values are passed on as they are.

    Raises:
        ValueError: there is no MAE encoder in `state`; the text says what it has and lacks.
    """
    lacking = [key for key in _ENCODER_NEEDS if key not in state]
    if is_moco(state):
        raise ValueError(
            "these are MoCo's weights, not MAE's: take their query encoder (extract_query_encoder; "
            "tools/extract_encoder.py --method moco)"
        )
    if lacking:
        raise ValueError(
            f"no MAE encoder in these weights: they lack {_some(lacking)}; "
            f"they have {_some(list(state)) or 'nothing'}"
        )
    norm = () if global_pool else ("norm.weight", "norm.bias")
    taken = {k: value for k, value in state.items() if _ENCODER_KEY.fullmatch(k) or k in norm}
    new = ["fc_norm.weight", "fc_norm.bias"] if global_pool else [k for k in norm if k not in taken]
    dropped = [key for key in state if key not in taken]
    return taken, ExtractReport(list(taken), dropped, [*new, "head.weight", "head.bias"])


def is_moco(state: Collection[str]) -> bool:
    """Whether the keys are those of MoCo's weights."""
    return any(key.startswith(_QUERY) for key in state)


def extract_query_encoder(state: Mapping[str, Any]) -> tuple[dict[str, Any], ExtractReport]:
    """Takes from MoCo's weights the query encoder without its head, which a classifier can use.

    Raises:
        ValueError: these are not MoCo's weights.
    """
    if not is_moco(state):
        raise ValueError(
            f"no MoCo query encoder in these weights, which have {_some(list(state)) or 'nothing'};"
            " of MAE's take the encoder (extract_encoder; tools/extract_encoder.py --method mae)"
        )
    head = _QUERY + "head."
    taken = {k: v for k, v in state.items() if k.startswith(_QUERY) and not k.startswith(head)}
    dropped = [key for key in state if key not in taken]
    taken = {key[len(_QUERY) :]: value for key, value in taken.items()}
    return taken, ExtractReport(list(taken), dropped, ["head.weight", "head.bias"])


def extract_mae_pt(ckpt: Mapping[str, Any]) -> OrderedDict[str, Any]:
    """The tutorial's name for `extract_encoder`, without the report; values keep their type.

    Raises:
        ValueError: there is no MAE encoder in `ckpt`.
    """
    return OrderedDict(extract_encoder(ckpt)[0])


@dataclass(frozen=True)
class LoadReport:
    """What `load_into` did: keys loaded, declared missing or extra, adapted (how), cast (how)."""

    loaded: list[str]
    missing: list[str]
    extra: list[str]
    adapted: dict[str, str] = field(default_factory=dict)
    cast: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"loaded {len(self.loaded)} arrays"]
        if self.missing:
            lines.append(f"newly initialised: {', '.join(self.missing)}")
        if self.extra:
            lines.append(f"not used: {', '.join(self.extra)}")
        lines += [f"{key}: {what}" for key, what in self.adapted.items()]
        casts = Counter(self.cast.values())
        lines += [f"{count} arrays cast from {what}" for what, count in casts.items()]
        return "\n".join(lines)


def load_into(
    model: nn.Layer,
    state: Mapping[str, Any],
    *,
    allow_missing: Collection[str] = (),
    allow_extra: Collection[str] = (),
    resize_pos_embed: bool = False,
    old_grid: tuple[int, int] | None = None,
    channels: str | None = None,
) -> LoadReport:
    """Sets a model's parameters and buffers from `state` (Paddle's layout): all of them or none.

    Numbers are cast to the dtype that the model holds (as AMP O2 makes them), so load before the
    optimizer takes its first step: it copies its float32 master weights from the parameters then.

    Args:
        allow_missing, allow_extra: keys, or names of layers (`head` for `head.*`), that the file
            may lack (the model keeps its own) or may have beyond the model (not used).
        resize_pos_embed: position tables of another grid are interpolated to the model's.
        old_grid: (rows, columns) of the file's tables, where it is not square.
        channels: "average" or "repeat": how to adapt a patch projection made for another number
            of channels (see `adapt_channels`).

    Raises:
        ValueError: anything missing, extra or of another shape that was not declared; nothing has
            been set then.
    """
    # Without the hook of AMP O2, whose state_dict hands out float32 copies.
    own = model.state_dict(use_hook=False)
    missing = [key for key in own if key not in state]
    extra = [key for key in state if key not in own]
    _refuse_undeclared(missing, extra, allow_missing, allow_extra)
    values, adapted, problems = {}, {}, []
    for key in own:
        if key not in state:
            continue
        value, wanted = state[key], list(own[key].shape)
        if not is_array(value) or _numpy(value).dtype.kind not in "fiub":
            raise ValueError(f"{key}: weights are arrays of numbers, got {type(value).__name__}")
        if key in _POSITION_TABLES and resize_pos_embed:
            value, text = _resized_to(model, key, value, old_grid)
            adapted.update(text)
        elif key == _PATCH_PROJECTION and channels and list(value.shape)[1:2] != wanted[1:2]:
            adapted[key] = f"{value.shape[1]} channels to {wanted[1]} ({channels})"
            value = adapt_channels(_numpy(value), wanted[1], channels)
        if list(value.shape) != wanted:
            problems.append(f"{key} is {list(value.shape)}, the model's {wanted}{_hint(key)}")
        values[key] = value
    if problems:
        raise ValueError(
            f"the weights do not fit the model: {len(problems)} of another shape: {_some(problems)}"
        )
    cast = {key: _set_value(own[key], value) for key, value in values.items()}
    cast = {key: what for key, what in cast.items() if what}
    return LoadReport(list(values), missing, extra, adapted, cast)


def _refuse_undeclared(missing: list, extra: list, may_lack: Collection, may_have: Collection):
    missing = [key for key in missing if not _declared(key, may_lack)]
    extra = [key for key in extra if not _declared(key, may_have)]
    texts = []
    if missing:
        texts.append(f"{len(missing)} missing: {_some(missing)}")
    if extra:
        texts.append(f"{len(extra)} that the model does not have: {_some(extra)}")
    if texts:
        raise ValueError(f"the weights do not fit the model: {'; '.join(texts)}")


def _declared(key: str, names: Collection[str]) -> bool:
    assert not isinstance(names, str), "a collection of names, not one name"
    return any(key == name or key.startswith(name + ".") for name in names)


def _some(items: list[str], count: int = 4) -> str:
    rest = f", ... ({len(items) - count} more)" if len(items) > count else ""
    return ", ".join(items[:count]) + rest


def _hint(key: str) -> str:
    if key in _POSITION_TABLES:
        return " (another image or patch size: ask for resize_pos_embed=True)"
    if key == _PATCH_PROJECTION:
        return " (another number of channels: ask for channels='average' or channels='repeat')"
    return ""


def _resized_to(
    model: nn.Layer, key: str, table: Any, old_grid: tuple[int, int] | None
) -> tuple[Any, dict[str, str]]:
    new_grid = tuple(model.patch_embed.grid_size)
    if old_grid is None and table.shape[1] == new_grid[0] * new_grid[1] + 1:
        return table, {}
    old_grid = grid_of(table, old_grid)
    if old_grid == new_grid:
        return table, {}
    resized = resize_pos_embed(_numpy(table), old_grid, new_grid)
    return resized, {key: f"grid {old_grid[0]}x{old_grid[1]} to {new_grid[0]}x{new_grid[1]}"}


def _numpy(value: Any) -> np.ndarray:
    array = value if isinstance(value, np.ndarray) else value.numpy()
    return widen_bfloat16(array) if array.dtype == np.uint16 else array


def _set_value(parameter: Any, value: Any) -> str:
    """Sets one parameter, cast to its dtype; says so if that changed it."""
    import paddle

    array = _numpy(value)
    tensor = paddle.to_tensor(np.ascontiguousarray(array), place=paddle.CPUPlace())
    given, wanted = str(tensor.dtype).split(".")[-1], str(parameter.dtype).split(".")[-1]
    parameter.set_value(tensor.reshape(parameter.shape).astype(parameter.dtype))
    return "" if given == wanted else f"{given} to {wanted}"
