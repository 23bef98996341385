"""The data sets by name, and the reader of CIFAR-10."""

from __future__ import annotations

import os
import tarfile
import zlib
from pathlib import Path

import numpy as np

from passl_mae.data.download import fetch
from passl_mae.data.image_sets import ImageFiles
from passl_mae.data.in_memory import InMemoryDataset
from passl_mae.data.shapes import Shapes
from passl_mae.safe_pickle import safe_load

_FOLDER = "cifar-10-batches-py"
_MEMBERS = {
    "train": [f"data_batch_{i}" for i in range(1, 6)],
    "test": ["test_batch"],
}
# The official files are 31 MB each.
_MAX_MEMBER_BYTES = 1 << 28
_WAYS_OUT = (
    "download cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html and give its "
    "path, or use the built-in data set Shapes, which needs no file"
)


class Cifar10(InMemoryDataset):
    """CIFAR-10 (Krizhevsky 2009): 32 x 32 colour images of ten classes, 50,000 / 10,000.

    Args:
        split: "train" or "test".
        path: `cifar-10-python.tar.gz` (read without unpacking it to disk), the extracted folder
            `cifar-10-batches-py`, or the folder that holds either. None: PaddlePaddle's copy is
            downloaded, checked by its MD5, and kept in `~/.cache/paddle/dataset/cifar`.

    Raises:
        FileNotFoundError: nothing is at `path`, a batch is absent from the folder, or there is no
            path and the download fails.
        ValueError: an unknown split; a file that is cut off, is not CIFAR-10, or could run code.
    """

    CLASS_NAMES = (
        "airplane", "automobile", "bird", "cat", "deer",
        "dog", "frog", "horse", "ship", "truck",
    )  # fmt: skip
    # Of all pixels of the 50,000 training images.
    MEAN = (0.4914, 0.4822, 0.4465)
    STD = (0.2470, 0.2435, 0.2616)

    def __init__(self, split: str = "train", path: str | os.PathLike[str] | None = None) -> None:
        if split not in _MEMBERS:
            raise ValueError(f"unknown split {split!r} of Cifar10: choose one of train, test")
        images, labels = _read_split(_download() if path is None else Path(path), split)
        super().__init__(images, labels, self.CLASS_NAMES, self.MEAN, self.STD)
        self.split = split


def _download() -> Path:
    """The path of the archive, where PaddlePaddle keeps it; fetched if it is not there yet."""
    from paddle.dataset.common import DATA_HOME
    from paddle.vision.datasets.cifar import CIFAR10_MD5, CIFAR10_URL

    file = Path(DATA_HOME) / "cifar" / CIFAR10_URL.rsplit("/", 1)[1]
    try:
        return fetch(CIFAR10_URL, file, CIFAR10_MD5)
    except OSError as error:
        raise FileNotFoundError(
            f"Cifar10 was given no path and the download of {CIFAR10_URL} failed ({error}): "
            f"{_WAYS_OUT}"
        ) from error


def _read_split(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """images uint8 [N, 32, 32, 3] and labels int64 [N]."""
    if path.is_dir():
        for inner in (path / _FOLDER, path / "cifar-10-python.tar.gz"):
            if inner.exists() and not (path / _MEMBERS[split][0]).exists():
                path = inner
                break
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder for Cifar10; {_WAYS_OUT}")
    names = _MEMBERS[split]
    contents = _read_folder(path, names) if path.is_dir() else _read_archive(path, names)
    batches = [_decode(contents[name], f"{path}/{name}") for name in names]
    pixels = np.concatenate([data for data, _ in batches])  # [N, 3072]
    images = np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return images, np.concatenate([labels for _, labels in batches])


def _read_folder(folder: Path, names: list[str]) -> dict[str, bytes]:
    contents = {}
    for name in names:
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(
                f"{file}: absent, so the folder is not all of CIFAR-10; {_WAYS_OUT}"
            )
        _check_bytes(file.stat().st_size, str(file))
        contents[name] = file.read_bytes()
    return contents


def _read_archive(path: Path, names: list[str]) -> dict[str, bytes]:
    """The bytes of the wanted members; only exact names and regular files, nothing is extracted."""
    wanted = {f"{_FOLDER}/{name}": name for name in names}
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = wanted.get(member.name)
                if name is None or name in contents:
                    continue
                if not member.isfile():
                    raise ValueError(f"{path}: {member.name} is not a regular file; {_WAYS_OUT}")
                _check_bytes(member.size, f"{path}/{name}")
                contents[name] = archive.extractfile(member).read()
                if len(contents) == len(names):
                    break
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        if isinstance(error, PermissionError):
            raise
        reason = " ".join(str(error).split())  # tarfile lists every format it tried, on lines
        raise ValueError(
            f"{path}: cut off or not a tar archive ({reason}); copy or download it again"
        ) from error
    missing = [name for name in names if name not in contents]
    if missing:
        raise ValueError(
            f"{path}: cut off or not CIFAR-10, it has no {_FOLDER}/{missing[0]}; {_WAYS_OUT}"
        )
    return contents


def _check_bytes(size: int, source: str) -> None:
    if size > _MAX_MEMBER_BYTES:
        raise ValueError(f"{source}: not CIFAR-10, {size} bytes are too many for one batch of it")


def _decode(content: bytes, source: str) -> tuple[np.ndarray, np.ndarray]:
    """data uint8 [N, 3072] (red, green, blue planes, row by row) and labels int64 [N]."""
    batch = safe_load(content, source=source, encoding="bytes")
    if not isinstance(batch, dict) or b"data" not in batch or b"labels" not in batch:
        raise ValueError(f"{source}: not CIFAR-10, expected a dictionary with data and labels")
    data, labels = batch[b"data"], batch[b"labels"]
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
        found = (
            f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        )
        raise ValueError(f"{source}: not CIFAR-10, data is {found} instead of uint8 (N, 3072)")
    if len(data) == 0:
        raise ValueError(f"{source}: not CIFAR-10, it holds no images")
    if not isinstance(labels, list) or len(labels) != len(data):
        raise ValueError(f"{source}: not CIFAR-10, labels is not a list of {len(data)} numbers")
    if not all(type(label) is int and 0 <= label <= 9 for label in labels):
        raise ValueError(f"{source}: not CIFAR-10, a label is not a whole number in 0 .. 9")
    return data, np.array(labels, dtype=np.int64)


DATASETS = {
    "Cifar10": Cifar10,
    "Shapes": Shapes,
    "ImageFolder": ImageFiles,  # which files these are: image_lists.py
    "ImageList": ImageFiles,
}
