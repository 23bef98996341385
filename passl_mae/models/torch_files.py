"""PyTorch's .pth files, read and written without PyTorch.

Both forms of `torch.save` are read: the zip archive (since 1.6) and the older one, a row of pickles
followed by the raw numbers. No pickle is obeyed: see `passl_mae.safe_pickle`.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from passl_mae.safe_pickle import UnsafePickleError, safe_load

# Storage name -> NumPy dtype code; bfloat16, which NumPy lacks, is read as uint16 and widened.
_STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "u2",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_START = b"\x80\x02\x8a\x0a" + _LEGACY_MAGIC.to_bytes(10, "little")
_ZIP_START = b"PK\x03\x04"
# What zipfile raises on damaged archives: it trusts their offsets, flags and names.
_ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError,
)  # fmt: skip


class TensorRef(NamedTuple):
    """A tensor as the pickle describes it; its numbers are read only if they are wanted.

    What is in it comes from the file: nothing is believed before `_strided` has checked it.
    """

    storage: Any
    offset: Any
    size: Any
    stride: Any


class _StorageRef(NamedTuple):
    kind: str
    key: str
    numel: int


_ReadStorage = Callable[[_StorageRef], np.ndarray]  # -> its bytes, uint8 [n]


# The stand-ins hold no attributes and no `__dict__`, so that a pickle cannot change them.
class _RebuildTensor:
    """torch._utils._rebuild_tensor(_v2)."""

    __slots__ = ()

    def __call__(self, storage, offset, size, stride, *grad_and_hooks: Any) -> TensorRef:
        return TensorRef(storage, offset, size, stride)


class _RebuildParameter:
    """torch._utils._rebuild_parameter."""

    __slots__ = ()

    def __call__(self, data: Any, requires_grad: Any, hooks: Any) -> Any:
        return data


class DroppedRecord:
    """argparse.Namespace, which official and PASSL checkpoints hold as `args`: not kept."""

    __slots__ = ()

    def __new__(cls, *args: Any) -> DroppedRecord:
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


_TORCH_NAMES: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): _RebuildTensor(),
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    ("argparse", "Namespace"): DroppedRecord,
    **{("torch", name): name for name in _STORAGES},
}


@contextmanager
def open_torch_file(path: Path) -> Iterator[tuple[Any, Callable[[TensorRef], np.ndarray]]]:
    """Opens a .pth file: (what was saved, with `TensorRef`s for tensors; a function to read one).

    Raises:
        ValueError: the file is damaged, is none of PyTorch's, or could run code.
    """
    with open(path, "rb") as file:
        start = file.read(len(_LEGACY_START))
        file.seek(0)
        if start.startswith(_ZIP_START):
            tree, read_storage = _open_zip(file, path)
        elif start == _LEGACY_START:
            tree, read_storage = _open_legacy(file, path)
        else:
            raise ValueError(f"{path}: not a file written by torch.save, or cut off at its start")
        cache: dict[str, np.ndarray] = {}  # tensors that share a storage share it here

        def read(ref: TensorRef) -> np.ndarray:
            try:
                return _read_tensor(ref, read_storage, cache)
            except _ZIP_ERRORS as error:
                raise ValueError(f"{path}: damaged: {error}") from error

        yield tree, read


def _persistent_load(pid: Any) -> _StorageRef:
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
        raise UnsafePickleError("it holds more than weights (a whole module?)")
    kind, key, _, numel = pid[1:5]
    if kind not in _STORAGES or not isinstance(key, str) or type(numel) is not int:
        raise ValueError(f"a storage is described as {pid[1:5]!r}")
    if len(pid) == 6 and pid[5] is not None:
        raise ValueError("a storage is a view of another (written by PyTorch before 0.4)")
    return _StorageRef(kind, key, numel)


def _open_zip(file: BinaryIO, path: Path) -> tuple[Any, _ReadStorage]:
    size = os.fstat(file.fileno()).st_size
    try:
        archive = zipfile.ZipFile(file)
        members = {info.filename: info for info in archive.infolist()}
    except _ZIP_ERRORS as error:
        raise ValueError(f"{path}: damaged or cut off: {error}") from error
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"{path}: a zip file, but not one written by torch.save")
    prefix = pickles[0][: -len("data.pkl")]
    # torch.save stores without compression: anything else could unfold to any size.
    if sum(info.file_size for info in members.values()) > size:
        raise ValueError(f"{path}: a zip file whose content is larger than itself")
    try:
        order = archive.read(prefix + "byteorder") if prefix + "byteorder" in members else b"little"
        data = archive.read(pickles[0])
    except _ZIP_ERRORS as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    if order != b"little":
        raise ValueError(f"{path}: written on a big-endian machine, which is not supported")
    tree = safe_load(
        data, source=str(path), extra_allowed=_TORCH_NAMES, persistent_load=_persistent_load
    )

    def read_storage(ref: _StorageRef) -> np.ndarray:
        info = members.get(f"{prefix}data/{ref.key}")
        if info is None:
            raise ValueError(f"storage {ref.key} is missing")
        values = np.empty(info.file_size, np.uint8)
        with archive.open(info) as member:
            filled = member.readinto(memoryview(values)) if values.size else 0
            if filled != values.size or member.read(1):  # reading to the end checks the CRC
                raise ValueError(f"storage {ref.key} is cut off")
        return values

    return tree, read_storage


def _open_legacy(file: BinaryIO, path: Path) -> tuple[Any, _ReadStorage]:
    size = os.fstat(file.fileno()).st_size
    storages: dict[str, _StorageRef] = {}

    def persistent_load(pid: Any) -> _StorageRef:
        ref = _persistent_load(pid)
        if storages.setdefault(ref.key, ref) != ref:
            raise ValueError(f"storage {ref.key} is described twice")
        return ref

    source = str(path)
    safe_load(file, source=source)  # the magic number, known
    version, system = safe_load(file, source=source), safe_load(file, source=source)
    if version != 1001 or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError(f"{path}: a form of torch.save that is not supported (version {version})")
    tree = safe_load(
        file, source=source, extra_allowed=_TORCH_NAMES, persistent_load=persistent_load
    )
    keys = safe_load(file, source=source)
    if not isinstance(keys, list) or set(map(str, keys)) != set(storages):
        raise ValueError(f"{path}: damaged: its list of storages does not fit its tensors")
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        head = file.read(8)
        numel = struct.unpack("<q", head)[0] if len(head) == 8 else -1
        num_bytes = numel * np.dtype(_STORAGES[storages[key].kind]).itemsize
        start = file.tell()
        if numel < 0 or start + num_bytes > size:
            raise ValueError(f"{path}: damaged or cut off at storage {key}")
        places[key] = (start, num_bytes)
        file.seek(start + num_bytes)

    def read_storage(ref: _StorageRef) -> np.ndarray:
        start, num_bytes = places[ref.key]
        file.seek(start)
        values = np.fromfile(file, np.uint8, num_bytes)
        if values.size != num_bytes:
            raise ValueError(f"storage {ref.key} is cut off")
        return values

    return tree, read_storage


def _read_tensor(ref: TensorRef, read_storage: _ReadStorage, cache: dict) -> np.ndarray:
    if not isinstance(ref.storage, _StorageRef):
        raise ValueError("a tensor has no storage")
    kind, key, numel = ref.storage
    if ref.storage not in cache:
        values = read_storage(ref.storage)
        dtype = np.dtype(_STORAGES[kind]).newbyteorder("<")
        if values.size != numel * dtype.itemsize:
            raise ValueError(f"storage {key} holds {values.size} bytes for {numel} numbers")
        cache[ref.storage] = values.view(dtype)
    array = _strided(cache[ref.storage], ref)
    return widen_bfloat16(array) if kind == "BFloat16Storage" else array


def _strided(storage: np.ndarray, ref: TensorRef) -> np.ndarray:
    """The tensor as a view of its storage, its extent checked before it is made."""
    size, stride, offset = ref.size, ref.stride, ref.offset
    numbers = [offset]
    if isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= 32:
        numbers += [*size, *stride]
    else:
        raise ValueError(f"a tensor has the size {size!r} and the stride {stride!r}")
    if not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
        raise ValueError(f"a tensor has the size {size!r}, stride {stride!r}, offset {offset!r}")
    if 0 in size:
        return np.zeros(size, storage.dtype)
    count = 1
    for n in size:
        count *= n
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if last >= storage.size or count > storage.size:  # the latter: expanded by a stride of 0
        raise ValueError(f"a tensor of {list(size)} reaches beyond its storage of {storage.size}")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides)


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """bfloat16 numbers, given as uint16 bits, as float32; exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def write_torch_file(state: Mapping[str, np.ndarray], file: BinaryIO, key: str | None) -> None:
    """Writes arrays as `torch.save` writes a state dict of CPU tensors (zip form).

    With `key` the state dict stands inside `{key: ...}`. `torch.load(weights_only=True)` reads it.

    Raises:
        ValueError: an array of a dtype that has no storage in PyTorch.
    """
    pickled = [b"\x80\x02"]
    if key is not None:
        pickled += [b"}", _text(key)]
    pickled += [_ORDERED_DICT, b"("]
    for index, (name, array) in enumerate(state.items()):
        pickled += [_text(name), _pickled_tensor(array, index, name)]
    pickled += [b"u", b"s." if key is not None else b"."]
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), b"".join(pickled))
        archive.writestr(zipfile.ZipInfo("archive/byteorder"), b"little")
        for index, array in enumerate(state.values()):
            # One array at a time: transposed views are copied here and freed again.
            values = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            info = zipfile.ZipInfo(f"archive/data/{index}")
            info.file_size = values.nbytes
            with archive.open(info, "w") as member:
                member.write(values.reshape(-1).view(np.uint8).data)
        archive.writestr(zipfile.ZipInfo("archive/version"), b"3\n")


# The few opcodes of pickle protocol 2 that a state dict needs.
_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def _text(value: str) -> bytes:
    raw = value.encode("utf-8")
    return b"X" + struct.pack("<I", len(raw)) + raw


def _whole(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _pickled_tensor(array: np.ndarray, index: int, name: str) -> bytes:
    code = "?" if array.dtype == np.bool_ else array.dtype.str[1:]
    kinds = [kind for kind, known in _STORAGES.items() if known == code and code != "u2"]
    if not kinds:
        raise ValueError(f"{name}: PyTorch's files have no numbers of type {array.dtype}")
    strides, step = [], 1
    for n in reversed(array.shape):
        strides.insert(0, step)
        step *= max(n, 1)
    storage = (
        b"(" + _text("storage") + b"ctorch\n" + kinds[0].encode() + b"\n" + _text(str(index))
        + _text("cpu") + _whole(array.size) + b"tQ"
    )  # fmt: skip
    sizes = b"(" + b"".join(map(_whole, array.shape)) + b"t"
    steps = b"(" + b"".join(map(_whole, strides)) + b"t"
    arguments = storage + b"K\x00" + sizes + steps + b"\x89" + _ORDERED_DICT
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"
