"""Data sets of image files of any size: read when they are needed, or once into a cache."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Optional

import numpy as np

from passl_mae.data.image_files import (
    MAX_PIXELS,
    Plan,
    check_channels,
    cover,
    decode,
    resize_box,
)
from passl_mae.data.image_lists import ImageIndex
from passl_mae.data.random import BatchRandom
from passl_mae.data.transforms import RandomResizedCrop
from passl_mae.data.workers import Workers, shared_workers

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_CHUNK = 32  # most files a task: what travels back at once from a process


class Reading(NamedTuple):
    """How files become images of one size: all that decides about the pixels.

    size: (H, W) of the result.
    crop_pct: the share of each side that the central crop keeps, in (0, 1].
    channels: 1 grey, 3 RGB, 4 RGBA.
    max_pixels: larger images are refused.
    whole: (H, W) that an image is resized to cover before the crop; None follows from `crop_pct`.
    pad_fill: an image is resized to fit into that instead, and this value put around it.
    """

    size: tuple[int, int]
    crop_pct: float = 1.0
    channels: int = 3
    max_pixels: int = MAX_PIXELS
    whole: Optional[tuple[int, int]] = None
    pad_fill: Optional[int] = None

    @property
    def covered(self) -> tuple[int, int]:
        """(H, W) that an image is resized to cover, or padded to; what a cache holds."""
        height, width = self.size
        return self.whole or (round(height / self.crop_pct), round(width / self.crop_pct))

    @property
    def plan(self) -> Optional[Plan]:
        """Which part of an image is seen: what covers `covered`, or None for all of it, padded."""
        return cover(self.covered) if self.pad_fill is None else None


class Crops(NamedTuple):
    """Random crops of some images: draws float32 [b, 22] are those of `crop.draw`."""

    crop: RandomResizedCrop
    draws: np.ndarray


class ImageFiles:
    """Images that are read from their files each time, in other processes.

    `fetch` gives them as an evaluation sees them: resized to cover `reading.covered`, and the
    centre cut out. With `crops` it gives random parts of the whole images instead.

    Args:
        index: the files and labels.
        mean, std: per channel, 0..1; None takes ImageNet's, for 3 channels.
        num_workers: processes that read; 0 reads in the calling thread.

    Raises:
        ValueError: mean and std are needed and not given; from `fetch`, a file that cannot be read.
        ChildProcessError: from `fetch`, a process died.
    """

    MEAN, STD = IMAGENET_MEAN, IMAGENET_STD
    crops_on_read = True
    skipped: tuple[str, ...] = ()  # what was wrong with the files that were left out

    def __init__(
        self,
        index: ImageIndex,
        reading: Reading,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        num_workers: int = 0,
    ) -> None:
        check_channels(reading.channels)
        if reading.channels != 3 and (mean is None or std is None):
            raise ValueError(
                f"images of {reading.channels} channels need Data.mean and Data.std; "
                "tools/dataset_stats.py computes them"
            )
        self.index = index
        self.reading = reading
        self.labels = index.labels
        self.class_names = index.class_names
        self.mean = tuple(mean or IMAGENET_MEAN)
        self.std = tuple(std or IMAGENET_STD)
        self.image_size = reading.size
        self.in_chans = reading.channels
        self.workers = shared_workers(num_workers)

    def __len__(self) -> int:
        return len(self.labels)

    def without(self, problems: dict[int, str]) -> ImageFiles:
        """The data set without some of its images: what is wrong, by their places in it.

        Raises:
            ValueError: no image is left.
        """
        if not problems:
            return self
        kept = [i for i in range(len(self)) if i not in problems]
        first = problems[min(problems)]
        if not kept:
            raise ValueError(f"none of {len(self)} images can be read; the first: {first}")
        paths = [self.index.paths[i] for i in kept]
        rest = copy.copy(self)
        rest.index = self.index._replace(paths=paths, labels=self.labels[kept])
        rest.labels = rest.index.labels
        rest.skipped = tuple(problems[i] for i in sorted(problems))
        return rest

    def fetch(
        self, indices: np.ndarray, crops: Crops | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [B, H, W, C] and labels int64 [B] of the images at `indices` int64 [B]."""
        paths = [self.index.paths[i] for i in indices]
        parts = max(1, min(_CHUNK, -(-len(paths) // (2 * max(1, self.workers.count)))))
        items = (
            (
                paths[first : first + parts],
                self.reading,
                crops and Crops(crops.crop, crops.draws[first : first + parts]),
            )
            for first in range(0, len(paths), parts)
        )
        return np.concatenate(list(self.workers.map(_read, items))), self.labels[indices]


class CachedImages:
    """Images of one size in an array, such as a memory-mapped one: the second epoch's speed.

    What `fetch` gives is what `ImageFiles.fetch` gives, except that random crops are parts of the
    cached centre, not of the whole image.

    Args:
        images: uint8 [N, *reading.covered, C].
        source: where they come from; labels, names and statistics are taken from it.
        rows: int64, the place in `images` of each image of `source`; None for all in order.
    """

    crops_on_read = True

    def __init__(
        self, images: np.ndarray, source: ImageFiles, rows: np.ndarray | None = None
    ) -> None:
        self.images = images
        self.rows = np.arange(len(source)) if rows is None else rows
        self.reading = source.reading
        self.index, self.skipped = source.index, source.skipped
        self.labels, self.class_names = source.labels, source.class_names
        self.mean, self.std = source.mean, source.std
        self.image_size, self.in_chans = source.image_size, source.in_chans

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(
        self, indices: np.ndarray, crops: Crops | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [B, H, W, C] and labels int64 [B] of the images at `indices` int64 [B]."""
        rows, labels = self.rows[indices], self.labels[indices]
        if crops is None:
            return centre(self.images[rows], self.reading), labels
        crop = crops.crop
        boxes = np.stack(crop.boxes(*self.images.shape[1:3], crops.draws), axis=1).tolist()
        images = (self.images[row] for row in rows)
        cut = [
            resize_box(image, box, crop.size, crop.interpolation)
            for image, box in zip(images, boxes)
        ]
        return np.stack(cut), labels


class CropOnRead:
    """A data set whose images are randomly cropped as they are read, for a `TrainLoader`.

    A batch needs one size and the files have any, so this one augmentation comes before the batch
    is made. Its draws are those of the transform `RandomResizedCrop` in the first place.
    """

    def __init__(self, dataset, crop: RandomResizedCrop) -> None:
        assert dataset.crops_on_read
        self.dataset = dataset
        self.crop = crop
        self.image_size = crop.size

    def __len__(self) -> int:
        return len(self.dataset)

    def fetch_random(
        self, indices: np.ndarray, random: BatchRandom
    ) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [B, *crop.size, C] and labels int64 [B]."""
        return self.dataset.fetch(indices, crops=Crops(self.crop, self.crop.draw(random)))


def read_covered(
    paths: Sequence[str], reading: Reading, workers: Workers
) -> Iterator[tuple[np.ndarray, list[str | None]]]:
    """Piece by piece (images uint8 [b, *reading.covered, C], what is wrong with each or None).

    Unreadable images are all zeros: it is the caller's to refuse or to leave them out.
    """
    items = ((paths[i : i + _CHUNK], reading) for i in range(0, len(paths), _CHUNK))
    return workers.map(_try_covered, items)


def what_is_wrong(
    paths: Sequence[str], reading: Reading, workers: Workers
) -> Iterator[list[str | None]]:
    """Piece by piece what is wrong with each file, or None; all of its pixels are decoded."""
    items = ((paths[i : i + _CHUNK], reading) for i in range(0, len(paths), _CHUNK))
    return workers.map(_try, items)


def _read(paths: list[str], reading: Reading, crops: Crops | None) -> np.ndarray:
    if crops is None:
        return centre(np.stack([_covered(path, reading) for path in paths]), reading)
    return np.stack([_crop(path, reading, crops, row) for row, path in enumerate(paths)])


def _covered(path: str, reading: Reading) -> np.ndarray:
    channels, size, fill = reading.channels, reading.covered, reading.pad_fill
    return decode(path, channels, size, reading.plan, reading.max_pixels, pad_fill=fill)


def _crop(path: str, reading: Reading, crops: Crops, row: int) -> np.ndarray:
    def plan(height: int, width: int) -> tuple[int, ...]:
        boxes = crops.crop.boxes(height, width, crops.draws[row : row + 1])
        return tuple(int(side[0]) for side in boxes)

    size, kernel = crops.crop.size, crops.crop.interpolation
    return decode(path, reading.channels, size, plan, reading.max_pixels, kernel, tight=True)


def centre(images: np.ndarray, reading: Reading) -> np.ndarray:
    """Of images [B, *covered, C] the centre, at `reading.size`."""
    height, width = images.shape[1:3]
    h, w = reading.size
    if reading.whole is not None:
        h, w = round(height * reading.crop_pct), round(width * reading.crop_pct)
    top, left = (height - h) // 2, (width - w) // 2
    if (h, w) == reading.size:
        return images[:, top : top + h, left : left + w]
    box = (top, left, h, w)
    return np.stack([resize_box(image, box, reading.size) for image in images])


def _try(paths: list[str], reading: Reading) -> list[str | None]:
    return _try_covered(paths, reading)[1]


def _try_covered(paths: list[str], reading: Reading) -> tuple[np.ndarray, list[str | None]]:
    images = np.zeros((len(paths), *reading.covered, reading.channels), np.uint8)
    problems: list[str | None] = [None] * len(paths)
    for i, path in enumerate(paths):
        try:
            images[i] = _covered(path, reading)
        except ValueError as error:
            problems[i] = str(error)
    return images, problems
