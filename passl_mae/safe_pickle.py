"""Reading pickles from other people: containers, numbers, text and NumPy's arrays, no more.

Loading a pickle with `pickle.load` runs whatever code its author put there. Here every name that a
pickle asks for is looked up in a short table and answered with a stand-in of ours, never imported:
the stand-ins check their arguments, so not even NumPy's own C code sees unchecked state.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Optional, Union

import numpy as np


class UnsafePickleError(ValueError):
    """The pickle asks for something outside the table; nothing of it was run."""


# Ways round `find_class` (extension registry, persistent ids), old forms that need no support
# (INST, OBJ), and buffers that only a caller could hand over.
_REFUSED_OPCODES = {
    "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "INST", "OBJ", "NEWOBJ_EX",
    "NEXT_BUFFER", "READONLY_BUFFER",
}  # fmt: skip
_MEMO_OPCODES = {"PUT", "BINPUT", "LONG_BINPUT"}
# Booleans, integers, floats, complex numbers, bytes and text of fixed length; neither objects nor
# records.
_DTYPE_CODE = re.compile(r"[|<>=]?(\?|[biufc]\d{1,2}|[SU]\d{1,9})")
_LOAD_ERRORS = (
    pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError, ValueError,
    OverflowError, MemoryError, RecursionError,
)  # fmt: skip


class _DType:
    """A dtype on its way into an array: code first, byte order by BUILD."""

    __slots__ = ("value",)

    def __init__(self, value: np.dtype) -> None:
        self.value = value

    def __setstate__(self, state: tuple) -> None:
        order, parts = _text(state[1]), state[2:5]
        if order not in ("<", ">", "|", "=") or parts != (None, None, None):
            raise ValueError("only plain numeric dtypes are supported")
        self.value = self.value.newbyteorder(order)


class _Array(np.ndarray):
    """An array between _reconstruct and BUILD; handed out as a plain ndarray at the end."""

    __slots__ = ()

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, raw = state
        raw = raw.encode("latin1") if isinstance(raw, str) else raw  # Python 2, encoding latin1
        _check_extent(shape, dtype, raw)
        super().__setstate__((1, shape, dtype.value, bool(is_fortran), bytes(raw)))


def _text(value: Any) -> str:
    """Names inside Python 2's pickles arrive as bytes."""
    text = value.decode("ascii") if isinstance(value, bytes) else value
    if not isinstance(text, str):
        raise ValueError(f"expected text, found {type(value).__name__}")
    return text


def _check_extent(shape: Any, dtype: Any, raw: Any) -> None:
    if not isinstance(dtype, _DType) or not isinstance(raw, (bytes, bytearray)):
        raise ValueError("an array's state is not that of a numeric array")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"an array has the shape {shape!r}")
    size = dtype.value.itemsize
    for n in shape:  # whole numbers of Python: no overflow
        size *= n
    if size != len(raw):
        raise ValueError(f"an array of shape {shape} holds {len(raw)} bytes instead of {size}")


# The stand-ins are instances without attributes: a pickle cannot set anything on them (BUILD), nor
# create others of their kind (NEWOBJ takes classes only).
class _NdarrayName:
    __slots__ = ()


class _Reconstruct:
    """numpy.core.multiarray._reconstruct(ndarray, (0,), b"b"): an empty array that BUILD fills."""

    __slots__ = ()

    def __call__(self, subtype: Any, shape: Any, code: Any) -> _Array:
        if subtype is not _NDARRAY or shape != (0,):
            raise ValueError("an array is not built the way NumPy builds it")
        return _Array((0,), np.int8)


class _MakeDType:
    """numpy.dtype(code, align, copy)."""

    __slots__ = ()

    def __call__(self, code: Any, align: Any = False, copy: Any = False) -> _DType:
        code = _text(code)
        if not _DTYPE_CODE.fullmatch(code):
            raise ValueError(f"only plain numeric dtypes are supported, found {code!r}")
        return _DType(np.dtype(code))


class _Scalar:
    """numpy.core.multiarray.scalar(dtype, bytes)."""

    __slots__ = ()

    def __call__(self, dtype: Any, raw: Any) -> np.generic:
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        _check_extent((), dtype, raw)
        return np.frombuffer(raw, dtype.value)[0]


class _FromBuffer:
    """numpy.core.numeric._frombuffer(buffer, dtype, shape, order) of protocol 5."""

    __slots__ = ()

    def __call__(self, raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
        _check_extent(shape, dtype, raw)
        if order not in ("C", "F"):
            raise ValueError(f"an array has the order {order!r}")
        return np.frombuffer(raw, dtype.value).reshape(shape, order=order)


class _Encode:
    """_codecs.encode(text, "latin1"): how protocols 0 to 2 write bytes."""

    __slots__ = ()

    def __call__(self, text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "ascii"):
            raise ValueError("_codecs.encode is supported for latin1 text only")
        return text.encode(encoding)


class _EmptyBytes:
    """bytes(): how protocols 0 to 2 write no bytes."""

    __slots__ = ()

    def __call__(self) -> bytes:
        return b""


class _Tuple:
    """tuple(items): how paddle.save writes a tensor that lies deeper, as (name, array)."""

    __slots__ = ()

    def __call__(self, items: Any) -> tuple:
        if not isinstance(items, (tuple, list)):
            raise ValueError("a tuple is made of something else than a tuple or a list")
        return tuple(items)


_NDARRAY = _NdarrayName()
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _MakeDType(),
    ("_codecs", "encode"): _Encode(),
    ("__builtin__", "bytes"): _EmptyBytes(),
    ("builtins", "tuple"): _Tuple(),
    ("__builtin__", "tuple"): _Tuple(),
    ("collections", "OrderedDict"): OrderedDict,
}
for _core in ("numpy.core", "numpy._core"):  # before and since NumPy 2
    _ALLOWED[_core + ".multiarray", "_reconstruct"] = _Reconstruct()
    _ALLOWED[_core + ".multiarray", "scalar"] = _Scalar()
    _ALLOWED[_core + ".numeric", "_frombuffer"] = _FromBuffer()


class SafeUnpickler(pickle.Unpickler):
    """`pickle.Unpickler` that knows the names of the table above and `extra_allowed`, exactly."""

    def __init__(
        self,
        file: BinaryIO,
        *,
        encoding: str,
        extra_allowed: Mapping[tuple[str, str], Any] | None,
        persistent_load: Optional[Callable[[Any], Any]],
    ) -> None:
        super().__init__(file, encoding=encoding)
        self._allowed = {**_ALLOWED, **(extra_allowed or {})}
        self._persistent_load = persistent_load

    def find_class(self, module: str, name: str) -> Any:
        found = self._allowed.get((module, name))
        if found is None:
            raise UnsafePickleError(f"it asks for {module}.{name}")
        return found

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent_load is None:
            raise UnsafePickleError("it asks for a persistent id")
        return self._persistent_load(pid)


def safe_load(
    file: Union[BinaryIO, bytes],
    *,
    source: str,
    encoding: str = "ASCII",
    extra_allowed: Mapping[tuple[str, str], Any] | None = None,
    persistent_load: Optional[Callable[[Any], Any]] = None,
) -> Any:
    """The object in a pickle that holds containers, numbers, text and NumPy's arrays only.

    Args:
        file: an open, seekable binary file, or the pickle itself.
        source: its name for the error texts.
        encoding: for the str of Python 2: "ASCII", "latin1", or "bytes".
        extra_allowed: (module, name) -> what to answer when the pickle asks for it. Whatever is
            given here a stranger can call with any arguments, and set attributes on.
        persistent_load: answers persistent ids (PyTorch's storages); they are refused without it.

    Raises:
        UnsafePickleError: the pickle asks for any other name; it is a ValueError.
        ValueError: the pickle is cut off, or is none.
    """
    if isinstance(file, (bytes, bytearray)):
        file = io.BytesIO(file)
    start = file.tell()
    try:
        # Counted from here, so that a size written in the file is checked before it is used.
        length = file.seek(0, os.SEEK_END) - start
        file.seek(start)
        _scan(file, length, {"BINPERSID"} if persistent_load else set())
        file.seek(start)
        loaded = SafeUnpickler(
            file, encoding=encoding, extra_allowed=extra_allowed, persistent_load=persistent_load
        ).load()
        return _plain(loaded, {})
    except UnsafePickleError as error:
        raise UnsafePickleError(
            f"{source}: refused, the pickle could run code: {error}; "
            "only containers, numbers, text and NumPy arrays are read"
        ) from None
    except _LOAD_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{source}: cut off or not a pickle of arrays: {reason}") from error


def _scan(file: BinaryIO, length: int, admitted: set[str]) -> None:
    """Read the opcodes without obeying them: refuses what `find_class` would not see."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file), start=1):
        if opcode.name in _REFUSED_OPCODES - admitted:
            raise UnsafePickleError(f"it uses the opcode {opcode.name}")
        # The memo is an array as long as its highest index: a few bytes could ask for gigabytes.
        if opcode.name in _MEMO_OPCODES and argument > count:
            raise ValueError(f"memo index {argument} after {count} opcodes")
        # A frame is read ahead in one piece, of the length it claims.
        if opcode.name == "FRAME" and argument > length:
            raise ValueError(f"a frame of {argument} bytes in a pickle of {length}")


def _plain(value: Any, seen: dict[int, Any]) -> Any:
    """`value` with arrays of our class as ndarray; containers are changed in place."""
    if isinstance(value, _Array):
        return value.view(np.ndarray)
    if isinstance(value, (_DType, *_STAND_INS)):
        raise ValueError("it holds a bare name of NumPy's instead of an array")
    if not isinstance(value, (dict, list, tuple)):
        return value
    if id(value) in seen:
        return seen[id(value)]
    seen[id(value)] = value
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = _plain(item, seen)
    elif isinstance(value, list):
        value[:] = [_plain(item, seen) for item in value]
    elif type(value) is tuple:
        seen[id(value)] = tuple(_plain(item, seen) for item in value)
    return seen[id(value)]


_STAND_INS = tuple({type(item) for item in _ALLOWED.values() if item is not OrderedDict})
