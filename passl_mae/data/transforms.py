"""Augmentation and normalisation of whole batches in NumPy.

A transform is called as `t(images, random)`: uint8 [B, H, W, C] in and out, until `Normalize` gives
float32 [B, C, H, W]. `random` is the step's `BatchRandom`; transforms draw from it in the order
they stand, and those for evaluation draw nothing. Crops, shifts and flips are in `whole_pixels.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from passl_mae.data.random import BatchRandom, keyed_generator
from passl_mae.data.resample import KERNELS, resample
from passl_mae.data.whole_pixels import (
    RandomCrop,
    RandomHorizontalFlip,
    RandomShift,
    RandomVerticalFlip,
    Size,
    pair,
)

__all__ = [
    "Compose",
    "Normalize",
    "RandomCrop",
    "RandomErasing",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "RandomShift",
    "RandomVerticalFlip",
    "Resize",
    "denormalize",
]

_BOX_ATTEMPTS = 10


def _range(bounds: Sequence[float], what: str, highest: float = np.inf) -> tuple[float, float]:
    low, high = bounds
    if not 0 < low <= high <= highest:
        limit = "" if highest == np.inf else f" <= {highest:g}"
        raise ValueError(f"{what} must be (low, high) with 0 < low <= high{limit}, got {bounds}")
    return float(low), float(high)


def _kernel(interpolation: str) -> str:
    if interpolation not in KERNELS:
        raise ValueError(
            f"unknown interpolation {interpolation!r}: choose one of {', '.join(sorted(KERNELS))}"
        )
    return interpolation


def _between(bounds: Sequence[float], uniform: np.ndarray) -> np.ndarray:
    return bounds[0] + (bounds[1] - bounds[0]) * uniform.astype(np.float64)


def _draw_boxes(random: BatchRandom) -> np.ndarray:
    """float32 [b, 22]: what the boxes of `_first_boxes` are made of; the images do not matter."""
    parts = (random.uniform(count) for count in (_BOX_ATTEMPTS, _BOX_ATTEMPTS, 2))
    return np.concatenate(list(parts), axis=1)


def _first_boxes(
    size: tuple[int, int],
    margin: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    draws: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """(top, left, box height, box width int64 [B], found bool [B]): the first drawn that fits.

    Shares of the area are uniform in `scale`, aspects (width to height) log-uniform in `ratio`; a
    box fits if it is smaller than the image of `size` by `margin`, and lies anywhere in it.
    """
    height, width = size
    shares, aspects, place = np.split(draws, (_BOX_ATTEMPTS, 2 * _BOX_ATTEMPTS), axis=1)
    area = height * width * _between(scale, shares)  # [B, attempts]
    aspect = np.exp(_between(np.log(ratio), aspects))
    place = place.astype(np.float64)
    ws = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    hs = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (ws >= 1) & (ws <= width - margin) & (hs >= 1) & (hs <= height - margin)
    first = fits.argmax(axis=1)
    row = np.arange(len(first))
    h, w = hs[row, first], ws[row, first]
    top = (place[:, 0] * (height - h + 1)).astype(np.int64)
    left = (place[:, 1] * (width - w + 1)).astype(np.int64)
    return top, left, h, w, fits.any(axis=1)


class Compose:
    """One transform after another."""

    def __init__(self, transforms: Sequence) -> None:
        self.transforms = list(transforms)

    def __call__(self, images: np.ndarray, random: BatchRandom) -> np.ndarray:
        for transform in self.transforms:
            images = transform(images, random)
        return images


class RandomResizedCrop:
    """A random part of the image of random area and aspect, resized (Szegedy et al. 2015).

    A box is drawn ten times, with its share of the area uniform in `scale` and its aspect (width to
    height) log-uniform in `ratio`; the first that fits is taken, and if none does the largest
    central box whose aspect lies in `ratio`. Resizing is Pillow's: it filters when it shrinks, and
    never looks beyond the box. MAE pretrains with scale (0.2, 1) and bicubic (He et al. 2021, A.1).

    Args:
        size: of the result, int or (H, W).
        scale: lowest and highest share of the image's area, within (0, 1].
        ratio: lowest and highest aspect.
        interpolation: "bicubic" or "bilinear".

    Raises:
        ValueError: a range that is empty or out of bounds, an unknown interpolation.
    """

    def __init__(
        self,
        size: Size,
        scale: Sequence[float] = (0.2, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        interpolation: str = "bicubic",
    ) -> None:
        self.size = pair(size, "size")
        self.scale = _range(scale, "scale", highest=1.0)
        self.ratio = _range(ratio, "ratio")
        self.interpolation = _kernel(interpolation)

    @staticmethod
    def draw(random: BatchRandom) -> np.ndarray:
        """float32 [b, 22]: the chance in the crops of these samples, whatever their sizes."""
        return _draw_boxes(random)

    def boxes(self, height: int, width: int, draws: np.ndarray) -> tuple[np.ndarray, ...]:
        """(top, left, box height, box width) of the crops of `draw`, each int64 [B]."""
        top, left, h, w, found = _first_boxes((height, width), 0, self.scale, self.ratio, draws)

        low, high = self.ratio
        aspect_fit = min(max(width / height, low), high)
        h_fit = max(1, min(height, round(width / aspect_fit)))
        w_fit = max(1, min(width, round(height * aspect_fit)))
        h, w = np.where(found, h, h_fit), np.where(found, w, w_fit)
        top = np.where(found, top, (height - h_fit) // 2)
        left = np.where(found, left, (width - w_fit) // 2)
        return top, left, h, w

    def __call__(self, images: np.ndarray, random: BatchRandom) -> np.ndarray:
        boxes = self.boxes(images.shape[1], images.shape[2], self.draw(random))
        return resample(images, *boxes, self.size, self.interpolation)


class Resize:
    """Resize every image: to (H, W), or for an int so that the shorter side is that long.

    The filter is Pillow's, antialiased. Draws nothing.

    Raises:
        ValueError: a size below 1, an unknown interpolation.
    """

    def __init__(self, size: Size, interpolation: str = "bicubic") -> None:
        pair(size, "size")
        self.size = size
        self.interpolation = _kernel(interpolation)

    def __call__(self, images: np.ndarray, random: BatchRandom) -> np.ndarray:
        b, h, w, _ = images.shape
        if isinstance(self.size, int):
            short = min(h, w)
            size = (self.size * h // short, self.size * w // short)
        else:
            size = pair(self.size, "size")
        if size == (h, w):
            return images
        zero, one = np.zeros(b, np.int64), np.ones(b, np.int64)
        return resample(images, zero, zero, h * one, w * one, size, self.interpolation)


class Normalize:
    """uint8 [B, H, W, C] to float32 [B, C, H, W]: (x / 255 - mean) / std, channel by channel.

    `table` float32 [C, 256] is what each byte of each channel becomes.

    Args:
        mean, std: per channel, on the 0..1 scale.

    Raises:
        ValueError: the lengths differ or a std is not positive; on a batch, its channels are not
            those of `mean`.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        _check_statistics(mean, std)
        # A byte has 256 values: looking them up is exact, and the arithmetic is done once.
        levels = np.arange(256) / 255
        self.table = np.stack([(levels - m) / s for m, s in zip(mean, std)]).astype(np.float32)

    def check(self, images: np.ndarray) -> None:
        """Raises what a call raises."""
        assert images.dtype == np.uint8, "Normalize takes bytes and comes last"
        _check_channels(images.shape[3], len(self.table))

    def __call__(self, images: np.ndarray, random: BatchRandom) -> np.ndarray:
        self.check(images)
        b, h, w, c = images.shape
        out = np.empty((b, c, h, w), np.float32)
        for channel, table in enumerate(self.table):
            out[:, channel] = table[images[..., channel]]
        return out


class RandomErasing:
    """Replace a random box of some images by noise (Zhong et al. 2017, arXiv 1708.04896).

    Comes after `Normalize`: float32 [B, C, H, W]. As in timm a box is drawn up to ten times, with
    its share of the area uniform in `scale` and its aspect log-uniform in `ratio`, until one is
    smaller than the image on both sides; if none is, the image stays. MAE finetunes with p = 0.25
    and pixel noise (He et al. 2021, A.1).

    Args:
        p: probability that an image is erased.
        scale: lowest and highest share of the image's area, within (0, 1].
        ratio: lowest and highest aspect, width to height.
        mode: "pixel" fills with normal noise of mean 0 and variance 1, "const" with 0, the mean.

    Raises:
        ValueError: a probability or range out of bounds, an unknown mode; bytes instead of floats.
    """

    def __init__(
        self,
        p: float = 0.25,
        scale: Sequence[float] = (0.02, 1 / 3),
        ratio: Sequence[float] = (0.3, 1 / 0.3),
        mode: str = "pixel",
    ) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"erasing probability must lie in 0..1, got {p}")
        if mode not in ("pixel", "const"):
            raise ValueError(f"unknown erasing mode {mode!r}: choose one of const, pixel")
        self.p = p
        self.scale = _range(scale, "scale", highest=1.0)
        self.ratio = _range(ratio, "ratio")
        self.mode = mode

    def __call__(self, images: np.ndarray, random: BatchRandom) -> np.ndarray:
        if images.dtype != np.float32:
            raise ValueError(
                f"RandomErasing takes float32 [B, C, H, W], got {images.dtype}: put it after "
                "Normalize"
            )
        height, width = images.shape[2:]
        erased = random.uniform() < self.p
        draws = _draw_boxes(random)
        size = (height, width)
        tops, lefts, hs, ws, found = _first_boxes(size, 1, self.scale, self.ratio, draws)
        # A seed an image, so that only the noise that is seen is drawn, whatever the global batch.
        seeds = random.integers(0, 1 << 62)
        out = images.copy()
        for i in np.flatnonzero(erased & found):
            box = out[i, :, tops[i] : tops[i] + hs[i], lefts[i] : lefts[i] + ws[i]]
            if self.mode == "const":
                box[...] = 0
            else:
                box[...] = keyed_generator((seeds[i],)).standard_normal(box.shape, np.float32)
        return out


def denormalize(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Undo `Normalize` for the eye: float [B, C, H, W] to float32 [B, H, W, C], clipped to 0..1.

    Raises:
        ValueError: as for `Normalize`.
    """
    _check_statistics(mean, std)
    _check_channels(images.shape[1], len(mean))
    pixels = np.asarray(images, np.float32).transpose(0, 2, 3, 1)  # [B, H, W, C]
    return np.clip(pixels * np.asarray(std, np.float32) + np.asarray(mean, np.float32), 0.0, 1.0)


def _check_statistics(mean: Sequence[float], std: Sequence[float]) -> None:
    if len(mean) != len(std) or len(mean) == 0:
        raise ValueError(f"mean and std need one number a channel, got {len(mean)} and {len(std)}")
    if min(std) <= 0:
        raise ValueError(f"every std must be positive, got {tuple(std)}")


def _check_channels(found: int, expected: int) -> None:
    if found != expected:
        raise ValueError(
            f"the images have {found} channels but mean and std have {expected}: give one a channel"
        )
