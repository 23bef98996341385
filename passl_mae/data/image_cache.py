"""A data set's images, resized once and kept on disk as bytes, to be mapped into memory.

`NAME.npy` holds uint8 [N, H, W, C], `NAME.json` what it was made from: settings, and each file's
path, size and time of change. Opening compares these with the files as they are now; a cache that
does not fit is built anew, and one that was interrupted left nothing that counts.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock

from passl_mae.data.image_files import show
from passl_mae.data.image_sets import CachedImages, ImageFiles, read_covered
from passl_mae.files import replacing
from passl_mae.terminal import bar

_VERSION = 1


def cached_images(
    dataset: ImageFiles,
    folder: str | os.PathLike[str],
    name: str,
    skip: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> CachedImages:
    """The images of `dataset` from the cache `name` of a folder, which is built if it has to be.

    Args:
        skip: leave unreadable files out (they are the result's `skipped`); otherwise they are an
            error.
        say: told why a cache is built, and that it is done.

    Raises:
        ValueError: an unreadable file (named), or not enough room on the disk.
        OSError: the folder cannot be written to.
    """
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    array, index = folder / f"{name}.npy", folder / f"{name}.json"
    with FileLock(folder / f"{name}.lock"):
        made_from = _made_from(dataset)
        reason = _what_differs(array, index, made_from)
        if reason is not None:
            say(f"building the cache {array} of {len(dataset)} images: {reason}")
            _build(dataset, array, index, made_from, skip)
            say(f"built the cache {array}")
        problems = _read_index(index)["problems"]
        images = np.load(array, mmap_mode="r", allow_pickle=False)
    bad = {int(row): problem for row, problem in problems.items()}
    if bad and not skip:
        raise ValueError(f"{next(iter(bad.values()))}; Data.on_error=skip leaves such files out")
    kept = dataset.without(bad)
    rows = np.setdiff1d(np.arange(len(dataset)), np.fromiter(bad, np.int64, len(bad)))
    return CachedImages(images, kept, rows)


def file_states(paths: Sequence[str]) -> list[list]:
    """[path, bytes, time of change in ns] of each file; -1 where there is nothing behind a link."""
    states = []
    for path in paths:
        try:
            found = os.stat(path)
            states.append([path, found.st_size, found.st_mtime_ns])
        except OSError:
            states.append([path, -1, -1])
    return states


def _made_from(dataset: ImageFiles) -> dict:
    reading = dataset.reading
    settings = [*reading.covered, reading.channels, reading.max_pixels]
    settings += [] if reading.pad_fill is None else [reading.pad_fill]
    return {
        "version": _VERSION, "settings": settings, "files": file_states(dataset.index.paths)
    }  # fmt: skip


def _what_differs(array: Path, index: Path, made_from: dict) -> str | None:
    """Why the cache has to be built, or None."""
    if not (array.exists() and index.exists()):
        return "there is none yet"
    try:
        before = _read_index(index)
        images = np.load(array, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError):
        return "the old one is damaged"
    if [before["version"], before["settings"]] != [made_from["version"], made_from["settings"]]:
        return "the old one has other settings"
    old, new = before["files"], made_from["files"]
    if [file[0] for file in old] != [file[0] for file in new]:
        return f"the old one is of other files ({len(old)})"
    changed = [b[0] for a, b in zip(old, new) if a != b]
    if changed:
        return f"{len(changed)} files have changed, such as {show(changed[0])}"
    height, width, channels = made_from["settings"][:3]
    if images.dtype != np.uint8 or images.shape != (len(new), height, width, channels):
        return "the old one is damaged"
    return None


def _read_index(index: Path) -> dict:
    content = json.loads(index.read_text(encoding="utf-8"))
    whole = (
        isinstance(content, dict)
        and {*content} == {"version", "settings", "files", "problems"}
        and isinstance(content["files"], list)
        and all(isinstance(file, list) and len(file) == 3 for file in content["files"])
        and isinstance(content["problems"], dict)
        and all(row.isdecimal() for row in content["problems"])
    )
    if not whole:
        raise ValueError(f"{index}: not the index of a cache")
    return content


def _build(dataset: ImageFiles, array: Path, index: Path, made_from: dict, skip: bool) -> None:
    for stale in array.parent.glob(f".{array.stem}.*.tmp"):  # of a process that was killed
        stale.unlink(missing_ok=True)
    index.unlink(missing_ok=True)  # from here to the new one, the array does not count
    array.unlink(missing_ok=True)
    shape = (len(dataset), *dataset.reading.covered, dataset.reading.channels)
    needed, free = int(np.prod(shape)), shutil.disk_usage(array.parent).free
    if needed > free:
        raise ValueError(
            f"{array.parent}: the cache takes {needed >> 20} MiB and the disk has {free >> 20} "
            "left: set Data.cache to another folder, or a smaller Data.cache_size"
        )
    problems: dict[int, str] = {}
    drawn = bar(len(dataset), "cache", "image")
    with drawn, replacing(array) as beside, beside.open("wb") as stream:
        first = 0
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for images, found in read_covered(dataset.index.paths, dataset.reading, dataset.workers):
            problems.update({first + i: text for i, text in enumerate(found) if text})
            if problems and not skip:
                text = next(iter(problems.values()))
                raise ValueError(f"{text}; Data.on_error=skip leaves such files out")
            stream.write(images.tobytes())
            first += len(images)
            drawn.update(len(images))
    with replacing(index) as beside:
        beside.write_text(json.dumps({**made_from, "problems": problems}), encoding="utf-8")
