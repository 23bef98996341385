"""Writing files whole: a reader, or a crash, never sees half of one. Reading and hashing them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to; fsyncs it and renames it to `path` at the end.

    If the block fails, what was written is removed and `path` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path):
        try:
            yield beside
            fsync(beside)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
        fsync(path.parent)


def write_json(path: str | Path, content: Any) -> None:
    """A JSON file, whole or not at all."""
    with replacing(path) as beside:
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_json(file: str | Path) -> dict[str, Any]:
    """The mapping of a JSON file.

    Raises:
        ValueError: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: not a JSON object")
    return content


def hash_file(path: str | Path, digest: hashlib._Hash) -> str:
    """Takes a file's bytes into a digest of hashlib's, piece by piece; its hexadecimal digits."""
    with open(path, "rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """An OSError of the block says which file it is about: that of a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        if error.errno is None:  # NumPy's "1000 requested and 24 written"
            raise OSError(f"{path}: {error}") from error
        error.filename = str(path)
        raise


def fsync(path: Path) -> None:
    """Makes a file's bytes, or a folder's entries, survive a crash."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder
        return
    # Windows wants a writable handle; elsewhere a folder only opens for reading.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
