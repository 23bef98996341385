"""Files of weights: `.pdparams`/`.pd`, `.safetensors` and `.pth`, read and written as NumPy arrays.

Nothing here runs code that a file brings along, and PyTorch is not needed.
"""

from __future__ import annotations

import importlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Union

import numpy as np

from passl_mae.files import replacing
from passl_mae.models.torch_files import (
    DroppedRecord,
    TensorRef,
    open_torch_file,
    widen_bfloat16,
    write_torch_file,
)
from passl_mae.safe_pickle import safe_load

PADDLE_SUFFIXES = (".pdparams", ".pd", ".pdopt")
TORCH_SUFFIXES = (".pth", ".pt")
SAFETENSORS_SUFFIXES = (".safetensors",)
_WRAPPERS = ("model", "state_dict")  # where training scripts keep the weights in a larger dict
_PADDLE_NAME_TABLE = "StructuredToParameterName@@"
_PADDLE_SPLIT_TABLE = "UnpackBigParamInfor@@"

_SAFETENSORS_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4",
    "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?",
}  # fmt: skip

PathLike = Union[str, "os.PathLike[str]"]


def load_file(path: PathLike, notes: list[str] | None = None) -> dict[str, np.ndarray]:
    """Reads the weights of a file, in the file's own layout (see `convert`) and order.

    Args:
        path: `.pdparams`/`.pd`/`.pdopt` (paddle.save), `.pth`/`.pt` (torch.save, both forms) or
            `.safetensors`. Weights under the key `model` or `state_dict` are found there.
        notes: if given, what was left aside or changed is appended, one line each.

    bfloat16, which NumPy lacks, is widened to float32 (exact, and noted).

    Raises:
        ValueError: the file is damaged, could run code, holds no weights, or is of an unknown kind.
        OSError: it cannot be read.
        ModuleNotFoundError: `.safetensors` without the safetensors package.
    """
    path, notes = Path(path), [] if notes is None else notes
    suffix = path.suffix.lower()
    if suffix in TORCH_SUFFIXES:
        with open_torch_file(path) as (tree, read):
            found = _find_state(tree, TensorRef, path, notes)
            half = sum(_is_bfloat16(ref) for ref in found.values())
            state = {name: read(ref) for name, ref in found.items()}
    elif suffix in PADDLE_SUFFIXES:
        state, half = _load_paddle(path, notes)
    elif suffix in SAFETENSORS_SUFFIXES:
        state, half = _load_safetensors(path)
    else:
        raise ValueError(f"{path}: unknown kind of weights file; {_known_suffixes()}")
    if half:
        notes.append(f"{half} bfloat16 arrays widened to float32")
    return state


def save_file(state: Mapping[str, Any], path: PathLike, *, key: str | None = None) -> None:
    """Writes weights (arrays or paddle Tensors), whole or not at all; the suffix says the kind.

    Args:
        path: `.pdparams` (read by paddle.load), `.safetensors`, or `.pth` (read by torch.load).
        key: puts the weights inside `{key: ...}`, as the reference's scripts expect (`model`);
            not for safetensors.

    Raises:
        ValueError: an unknown suffix, a value that is no array, or a dtype the kind cannot hold.
        OSError: the file cannot be written; a file that was there before is left as it was.
        ModuleNotFoundError: `.safetensors` without the safetensors package.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    arrays = {name: _as_array(value, name) for name, value in state.items()}
    if suffix in SAFETENSORS_SUFFIXES:
        if key is not None:
            raise ValueError(f"{path}: a safetensors file cannot hold weights under a key ({key})")
        numpy_format = _import_safetensors("numpy")
        with replacing(path) as beside:
            # Made contiguous here: safetensors 0.8 writes transposed views in the wrong order.
            contiguous = {name: _contiguous(value) for name, value in arrays.items()}
            numpy_format.save_file(contiguous, str(beside))
    elif suffix in TORCH_SUFFIXES:
        with replacing(path) as beside, open(beside, "wb") as file:
            write_torch_file(arrays, file, key)
    elif suffix in PADDLE_SUFFIXES:
        with replacing(path) as beside, open(beside, "wb") as file:
            _ArrayPickler(file).dump(arrays if key is None else {key: arrays})
    else:
        raise ValueError(f"{path}: unknown kind of weights file; {_known_suffixes()}")


def layout_of(path: PathLike) -> str | None:
    """The layout that a kind of file holds: "torch", "paddle", or None where it may be either."""
    suffix = Path(path).suffix.lower()
    if suffix in SAFETENSORS_SUFFIXES:
        return None
    return "torch" if suffix in TORCH_SUFFIXES else "paddle"


def _known_suffixes() -> str:
    return f"known are {', '.join(PADDLE_SUFFIXES + TORCH_SUFFIXES + SAFETENSORS_SUFFIXES)}"


def is_array(value: Any) -> bool:
    """A NumPy array or a paddle Tensor (told by its `.numpy()`, so that paddle isn't imported)."""
    return isinstance(value, np.ndarray) or hasattr(value, "numpy")


def _as_array(value: Any, name: str) -> np.ndarray:
    if not is_array(value):
        raise ValueError(f"{name}: weights are arrays, got {type(value).__name__}")
    array = value if isinstance(value, np.ndarray) else np.asarray(value.numpy())
    # paddle hands bfloat16 out as its bits, and no weight is a real uint16
    return widen_bfloat16(array) if array.dtype == np.uint16 else array


def _contiguous(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(array.shape)  # which turns () into (1,)


def _find_state(tree: Any, leaf: type, path: Path, notes: list[str]) -> dict[str, Any]:
    """The dict of arrays in what a training script saved."""
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: holds {type(tree).__name__}, not a dict of weights")
    for wrapper in _WRAPPERS:
        if isinstance(tree.get(wrapper), dict):
            others = [str(name) for name in tree if name != wrapper]
            left = f"; left aside: {', '.join(others)}" if others else ""
            notes.append(f"weights found under the key {wrapper!r}{left}")
            tree = tree[wrapper]
            break
    wrong = [name for name, value in tree.items() if not isinstance(value, leaf)]
    if wrong or not tree or not all(isinstance(name, str) for name in tree):
        what = f"{wrong[0]!r} is no array" if wrong else "it has no named arrays"
        names = ", ".join(map(repr, list(tree)[:8]))
        raise ValueError(f"{path}: not a dict of weights: {what}; its keys: {names or 'none'}")
    return dict(tree)


def _is_bfloat16(ref: TensorRef) -> bool:
    return getattr(ref.storage, "kind", None) == "BFloat16Storage"


_PADDLE_NAMES = {("argparse", "Namespace"): DroppedRecord}


def _load_paddle(path: Path, notes: list[str]) -> tuple[dict[str, np.ndarray], int]:
    with open(path, "rb") as file:
        tree = safe_load(file, source=str(path), extra_allowed=_PADDLE_NAMES)
    if isinstance(tree, dict):
        tree = _paddle_arrays(tree)
        if _PADDLE_SPLIT_TABLE in tree:
            raise ValueError(f"{path}: arrays cut into slices (paddle.save with protocol below 4)")
    state = _find_state(tree, np.ndarray, path, notes)
    half = [name for name, value in state.items() if value.dtype == np.uint16]
    for name in half:
        state[name] = widen_bfloat16(state[name])
    return state, len(half)


def _paddle_arrays(tree: dict) -> dict:
    """paddle.save's dict without its table of names, (name, array) pairs as arrays."""
    plain = {}
    for name, value in tree.items():
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], np.ndarray):
            value = value[1]
        elif name in _WRAPPERS and isinstance(value, dict):
            value = _paddle_arrays(value)
        if name != _PADDLE_NAME_TABLE:
            plain[name] = value
    return plain


class _ArrayPickler(pickle.Pickler):
    """Pickles a dict of arrays in protocol 4 with the memory of one array more."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, protocol=4)
        self.fast = True  # no memo: it would hold the bytes of every array until the end

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return _contiguous(value).__reduce__()
        return NotImplemented


def _load_safetensors(path: Path) -> tuple[dict[str, np.ndarray], int]:
    safetensors = _import_safetensors()
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            names = list(file.keys())
            dtypes = {name: file.get_slice(name).get_dtype() for name in names}
            unknown = sorted(set(dtypes.values()) - set(_SAFETENSORS_DTYPES))
            if unknown:
                raise ValueError(f"{path}: numbers of type {', '.join(unknown)} are not supported")
            if "BF16" not in dtypes.values():
                return {name: file.get_tensor(name) for name in names}, 0
        state = {}  # its NumPy side knows no bfloat16: take the raw bytes
        for name, item in safetensors.deserialize(path.read_bytes()):
            values = np.frombuffer(item["data"], _SAFETENSORS_DTYPES[item["dtype"]])
            values = widen_bfloat16(values) if item["dtype"] == "BF16" else values
            state[name] = values.reshape(item["shape"])
        return state, sum(dtype == "BF16" for dtype in dtypes.values())
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: damaged or not a safetensors file: {error}") from error


def _import_safetensors(submodule: str = "") -> Any:
    try:
        return importlib.import_module("safetensors" + (f".{submodule}" if submodule else ""))
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "reading or writing .safetensors needs the safetensors package: pip install safetensors"
        ) from None
