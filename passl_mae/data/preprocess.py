"""What an image goes through before a trained network sees it, and the file that keeps this.

A network without its sizes, its mean and std and the names of its classes is of no use, so they
travel with it: as `preprocess.json` in a run's folder, inside `export.json` in an export's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple, Union

import numpy as np
from PIL import Image

from passl_mae.data.image_files import MAX_PIXELS, MODES, convert, decode, show
from passl_mae.data.image_lists import index_folder
from passl_mae.data.image_sets import Reading, centre
from passl_mae.data.random import BatchRandom
from passl_mae.data.transforms import Normalize

FILE = "preprocess.json"

Item = Union[str, Image.Image, np.ndarray]  # a path, an image, bytes [H, W, C]


class Preprocessing(NamedTuple):
    """reading: sizes, crop and channels; mean, std: per channel, 0..1.

    class_names: one a class; none of a network without classes.
    """

    reading: Reading
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: list[str]

    def normalize(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, C] -> float32 [N, C, H, W]."""
        return Normalize(self.mean, self.std)(images, BatchRandom((0,), len(images)))

    def to_json(self) -> dict[str, Any]:
        """For a JSON file; `from_json` takes it back."""
        reading = self.reading
        return {
            "img_size": list(reading.size),
            "in_chans": reading.channels,
            "resize_to_cover": list(reading.covered),
            "crop_pct": reading.crop_pct,
            "pad_fill": reading.pad_fill,
            "mean": list(self.mean),
            "std": list(self.std),
            "max_pixels": reading.max_pixels,
            "class_names": list(self.class_names),
        }


def from_json(content: Any, source: str) -> Preprocessing:
    """What `to_json` gave.

    Raises:
        ValueError: it is not that, with `source` as the place.
    """
    try:
        channels, crop_pct = content["in_chans"], content["crop_pct"]
        sizes = [_size(content[key]) for key in ("img_size", "resize_to_cover")]
        mean, std = (tuple(map(float, content[key])) for key in ("mean", "std"))
        names, max_pixels = content["class_names"], content["max_pixels"]
        pad_fill = content.get("pad_fill")  # files of before there was padding have none
        if pad_fill is not None and not (type(pad_fill) is int and 0 <= pad_fill <= 255):
            raise ValueError(f"pad_fill {pad_fill}")
        whole = type(max_pixels) is int and 0 < max_pixels <= MAX_PIXELS
        if channels not in MODES or not 0 < crop_pct <= 1 or not whole:
            raise ValueError(f"in_chans {channels}, crop_pct {crop_pct}, max_pixels {max_pixels}")
        if len(mean) != channels or len(std) != channels or not all(s > 0 for s in std):
            raise ValueError(f"{channels} channels, mean {mean}, std {std}")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("class_names is a list of names")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source} does not say how to prepare images: {error!r}") from None
    reading = Reading(sizes[0], crop_pct, channels, max_pixels, sizes[1], pad_fill)
    return Preprocessing(reading, mean, std, names)


def _size(value: Any) -> tuple[int, int]:
    height, width = value
    if not all(type(side) is int and 0 < side < 1 << 16 for side in value):
        raise ValueError(f"a size of {value}")
    return height, width


def gather(images: Any) -> list[Item]:
    """Whatever is given as images, one by one: a folder is all the image files in it.

    Args:
        images: a path of a file or a folder, a PIL image, bytes [H, W, C] or [N, H, W, C], or
            several of these.

    Raises:
        ValueError: none, something else, an array of another shape or dtype, a folder without
            images.
    """
    items = list(_items(images))
    if not items:
        raise ValueError("no images were given")
    return items


def _items(images: Any) -> Iterator[Item]:
    if isinstance(images, (str, os.PathLike)):
        path = os.fspath(images)
        yield from index_folder(path, labels=False).paths if os.path.isdir(path) else [path]
    elif isinstance(images, Image.Image):
        yield images
    elif isinstance(images, np.ndarray):
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[-1] not in MODES:
            raise ValueError(
                "an array of images is uint8 [N, H, W, C] or [H, W, C] with 1, 3 or 4 channels, "
                f"got {images.dtype} {list(images.shape)}"
            )
        if 0 in images.shape[-3:]:
            raise ValueError(f"images without pixels: {list(images.shape)}")
        yield from images if images.ndim == 4 else [images]
    elif isinstance(images, (list, tuple, Iterator)):
        for image in images:
            yield from _items(image)
    else:
        raise ValueError(
            "images are given as paths, PIL images or uint8 arrays, alone or in a list, not as "
            f"{type(images).__name__}"
        )


def name_of(item: Item, place: int) -> str:
    """The path, or "image 3" of those that were given."""
    return item if isinstance(item, str) else f"image {place}"


def read(
    items: list[Item], first: int, reading: Reading
) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """(uint8 [b, *size, C] of those that can be read, (place, what is wrong) of the others).

    As in an evaluation: resized to cover, the centre cut out. first: place of the first item.
    """
    good, problems = [], []
    for place, item in enumerate(items, first):
        try:
            good.append(covered(item, name_of(item, place), reading))
        except ValueError as error:
            problems.append((place, str(error)))
    if not good:
        return np.zeros((0, *reading.size, reading.channels), np.uint8), problems
    return centre(np.stack(good), reading), problems


def covered(item: Item, name: str, reading: Reading) -> np.ndarray:
    """An image as it is before the centre is cut out: uint8 [*reading.covered, C].

    Given again, as an array, it stays as it is: who uses an image many times reads it once.

    Raises:
        ValueError: it cannot be read, with its name.
    """
    size = reading.covered
    how = {"max_pixels": reading.max_pixels, "pad_fill": reading.pad_fill}
    if isinstance(item, str):
        return decode(item, reading.channels, size, reading.plan, **how)
    if isinstance(item, np.ndarray):
        if item.shape == (*size, reading.channels):
            return item
        pixels = np.ascontiguousarray(item[..., 0] if item.shape[2] == 1 else item)
        item = Image.fromarray(pixels)
    return convert(item, reading.channels, size, reading.plan, name=show(name), **how)
