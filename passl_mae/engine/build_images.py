"""From a config to data sets of image files."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple, Optional, Union

import numpy as np

from passl_mae import distributed, runtime
from passl_mae.data.image_cache import cached_images, file_states
from passl_mae.data.image_files import check_channels, show
from passl_mae.data.image_lists import (
    ImageIndex,
    index_folder,
    index_list,
    read_class_names,
    split_folders,
)
from passl_mae.data.image_sets import CachedImages, ImageFiles, Reading, what_is_wrong
from passl_mae.data.in_memory import hold_out
from passl_mae.data.statistics import Sums, sums_of_files
from passl_mae.files import replacing
from passl_mae.logger import get_logger
from passl_mae.schema import DataConfig, RunConfig

IMAGE_SETS = ("ImageFolder", "ImageList")
DEFAULT_CACHE = "~/.cache/passl_mae"
SKIPPED = "skipped_images.txt"
_SHOWN = 10  # unreadable files that the log names

Files = Union[ImageFiles, CachedImages]


class Found(NamedTuple):
    """Files and labels; val and test are None where there are none of their own."""

    train: ImageIndex
    val: Optional[ImageIndex]
    test: Optional[ImageIndex]


def build_image_sets(
    config: RunConfig, size: tuple[int, int], channels: int
) -> tuple[Files, Optional[Files], Optional[Files]]:
    """Training, held-out and test images; the latter two None where there are none of their own.

    Args:
        size, channels: what the model takes.

    Raises:
        ValueError: the files are not laid out as the config says, have no labels where a
            classifier needs them, or cannot be read (with Data.on_error: stop); nothing to test.
    """
    data = config.Data
    check_channels(channels)
    found = find_images(config)
    if data.val_fraction and found.val is not None:
        raise ValueError(
            f"{data.path} has a folder for validation: Data.val_fraction would hold out more, set "
            "it to 0"
        )
    if found.test is None and not data.val_fraction:
        raise ValueError(
            f"{data.path} has no images to test on: set Data.val_fraction (e.g. 0.1) to hold out "
            "a part, or Data.eval.path"
        )
    return tuple(
        None if index is None else _open(data, split, index, size, channels)
        for split, index in found._asdict().items()
    )


def find_images(config: RunConfig) -> Found:
    """The files and labels of the config's data."""
    data, classify = config.Data, config.task == "classify"
    names = None if data.class_names is None else read_class_names(data.class_names)
    if data.name == "ImageFolder":
        folder, val, test = split_folders(data.path)
        train = index_folder(folder, data.labels, names)
        test = data.eval.path or test
    else:
        limit = config.Model.num_classes if classify else None
        train = index_list(data.path, data.image_root, data.labels, names, limit)
        val, test = None, data.eval.path
    if classify and not train.class_names:
        raise ValueError(
            f"{data.path}: the images have no labels, and {config.Model.name} learns from labels: "
            "put each class into a folder of its own, or use a list (docs/own-images.md)"
        )
    names = train.class_names if classify else names
    labels = True if classify else data.labels

    def index(source: str | Path | None) -> ImageIndex | None:
        if source is None:
            return None
        if data.name == "ImageFolder":
            return index_folder(source, labels, names)
        return index_list(source, data.image_root, labels, names)

    return Found(train, index(val), index(test))


def files_digest(config: RunConfig) -> str | None:
    """What changes when an image file or a label does; None for other data sets."""
    if config.Data.name not in IMAGE_SETS:
        return None
    found = [index for index in find_images(config) if index is not None]
    states = [[file_states(index.paths), index.labels.tolist()] for index in found]
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()


def training_sums(config: RunConfig) -> tuple[int, Sums]:
    """(number of images, sums over all their pixels) of the images that are learned from.

    Raises:
        ValueError: the data set is not one of image files, or one of them cannot be read.
    """
    data, channels = config.Data, config.Model.in_chans
    if data.name not in IMAGE_SETS:
        raise ValueError(f"{data.name} brings its mean and std; this is for one's own images")
    check_channels(channels)
    unused = [0.5] * channels
    data = data.model_copy(update={"cache": None, "mean": unused, "std": unused})
    dataset = _open(data, "train", find_images(config).train, (64, 64), channels)
    rows = np.arange(len(dataset))[: data.train.num_images]
    if data.val_fraction:
        rows = rows[hold_out(dataset.labels[rows], data.val_fraction, data.val_seed)[0]]
    paths = [dataset.index.paths[row] for row in rows]
    return len(paths), sums_of_files(paths, channels, dataset.workers, data.max_pixels)


def _open(
    data: DataConfig, split: str, index: ImageIndex, size: tuple[int, int], channels: int
) -> Files:
    dataset = ImageFiles(
        index,
        reading_of(data, size, channels),
        data.mean,
        data.std,
        workers_of(data),
    )
    skip = data.on_error == "skip"
    if data.cache:
        folder = Path(DEFAULT_CACHE if data.cache is True else data.cache)
        with distributed.main_first():
            files = cached_images(dataset, folder, _cache_name(data, split, dataset), skip, _say)
    else:
        files = _readable(dataset) if skip else dataset
    if files.skipped:
        _say(f"{len(files.skipped)} of {len(dataset)} images are left out: {files.skipped[0]} ...")
    return files


def reading_of(data: DataConfig, size: tuple[int, int], channels: int) -> Reading:
    """How the config has image files read for a model of this size."""
    crop_pct = data.crop_pct or (0.875 if data.train.crop == "resized" else 1.0)
    whole = data.cache_size
    if isinstance(whole, int):
        whole = (whole, whole)
    fill = data.pad_fill if data.fit == "pad" else None
    return Reading(size, crop_pct, channels, data.max_pixels, whole and tuple(whole), fill)


def workers_of(data: DataConfig) -> int:
    """Processes that read the files on this rank."""
    if data.num_workers is not None:
        return data.num_workers
    return max(1, runtime.available_cores() // runtime.ranks_on_this_machine())


def _readable(dataset: ImageFiles) -> ImageFiles:
    """Decodes every file once, on rank 0, and leaves out the same on all ranks."""
    problems: dict[int, str] = {}
    with distributed.main_first():
        if distributed.is_main():
            _say(f"reading all {len(dataset)} images once to find unreadable ones (on_error: skip)")
            place = 0
            pieces = what_is_wrong(dataset.index.paths, dataset.reading, dataset.workers)
            for piece in pieces:
                problems.update({place + i: text for i, text in enumerate(piece) if text})
                place += len(piece)
    bad = np.zeros(len(dataset))
    bad[list(problems)] = 1
    everywhere = np.flatnonzero(distributed.sum_over_ranks(bad))
    return dataset.without({int(i): problems.get(int(i), "") for i in everywhere})


def _cache_name(data: DataConfig, split: str, dataset: ImageFiles) -> str:
    """The same for the same images at the same size, in pretraining and in finetuning."""
    places = [data.path, data.image_root, data.eval.path]
    reading = dataset.reading
    key = [
        data.name,
        *(place and str(Path(place).resolve()) for place in places),
        *(*reading.covered, reading.channels, reading.max_pixels),
        *([] if reading.pad_fill is None else [reading.pad_fill]),
    ]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    return f"{split}-{digest}"


def _say(line: str) -> None:
    if get_logger().handlers:
        get_logger().info(line)
    elif distributed.is_main():
        print(line, flush=True)  # before the run's log is open


def describe_images(*datasets) -> list[str]:
    """Lines for the log about the image files of data sets, the training's first, if any are."""
    lines, seen = [], []
    for dataset in datasets:
        files = _files_of(dataset)
        if files is None or any(files is other for other in seen):
            continue
        seen.append(files)
        labels = f"{len(files.class_names)} classes" if files.class_names else "no labels"
        others = f", {files.index.others} other files ignored" if files.index.others else ""
        skipped = f", {len(files.skipped)} unreadable ones left out" if files.skipped else ""
        kept = f", cached at {'x'.join(map(str, files.reading.covered))}"
        kept = kept if isinstance(files, CachedImages) else ""
        prefix = os.path.commonprefix(files.index.paths)  # noqa: RUF071 - dirname cuts it right
        folder = os.path.dirname(prefix) or "."
        lines.append(f"{show(folder)}: {len(files)} image files, {labels}{others}{skipped}{kept}")
        lines += [f"left out: {problem}" for problem in files.skipped[:_SHOWN]]
        if len(files.skipped) > _SHOWN:
            lines.append(f"left out, too: {len(files.skipped) - _SHOWN} more, see {SKIPPED}")
    for other in seen[1:]:
        both = set(seen[0].index.paths).intersection(other.index.paths)
        if both:
            lines.append(f"{len(both)} of the training images are in the evaluation data, too")
    return lines


def write_skipped(folder: Path, *datasets) -> None:
    """`skipped_images.txt`: the unreadable files that were left out; none where there are none."""
    found = {id(files): files for files in map(_files_of, datasets) if files is not None}
    lines = [line for files in found.values() for line in files.skipped]
    if lines and distributed.is_main():
        with replacing(folder / SKIPPED) as beside:
            beside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _files_of(dataset) -> Files | None:
    while hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    return dataset if isinstance(dataset, (ImageFiles, CachedImages)) else None
