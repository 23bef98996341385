"""Transforms that move pixels and change none: crops after padding, shifts, flips.

Such a transform maps the rows and the columns of an image each for itself. It can be called on a
batch like all others, or say by `move` where the pixels come from, for whoever copies them later
(`passl_mae.fast.input`). Both draw the same numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, Union

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from passl_mae.data.random import BatchRandom

Size = Union[int, Sequence[int]]
Maps = tuple[np.ndarray, np.ndarray]


def pair(size: Size, what: str) -> tuple[int, int]:
    """(height, width) of an int or (H, W).

    Raises:
        ValueError: one of them is below 1; the message begins with `what`.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"{what} must be at least 1 pixel high and wide, got {height} x {width}")
    return int(height), int(width)


def identity(height: int, width: int) -> Maps:
    """The maps int64 [1, height], [1, width] of images that stay as they are."""
    return np.arange(height)[None], np.arange(width)[None]


class WholePixels(ABC):
    """A transform that gives every pixel of its result one of the image's, or black."""

    @abstractmethod
    def __call__(self, images: np.ndarray, random: BatchRandom) -> np.ndarray:
        """uint8 [b, H, W, C] -> uint8 [b, h, w, C]."""

    @abstractmethod
    def move(self, rows: np.ndarray, cols: np.ndarray, random: BatchRandom) -> Maps:
        """The maps of what this transform makes of images that came about by `rows` and `cols`.

        Args:
            rows, cols: int64 [b, H] and [b, W], or [1, H] and [1, W] for all images: the row of
                the source that each row comes from, likewise its columns; -1 is black.
            random: draws what a call draws.

        Returns:
            Maps to the same source, [b, h] and [b, w] (or with 1 for all images).
        """


class _Window(NamedTuple):
    """Of every padded image a window: pixels added above and below, left and right; its place."""

    vertical: int
    horizontal: int
    top: np.ndarray  # int64 [b]
    left: np.ndarray  # int64 [b]
    height: int
    width: int


class _PaddedWindow(WholePixels):
    mode: str  # of numpy.pad

    @abstractmethod
    def _draw(self, height: int, width: int, random: BatchRandom) -> _Window:
        """For images of this size."""

    def __call__(self, images: np.ndarray, random: BatchRandom) -> np.ndarray:
        at = self._draw(*images.shape[1:3], random)
        if at.vertical or at.horizontal:
            pads = ((0, 0), (at.vertical,) * 2, (at.horizontal,) * 2, (0, 0))
            images = np.pad(images, pads, mode=self.mode)
        return _windows(images, at.top, at.left, (at.height, at.width))

    def move(self, rows: np.ndarray, cols: np.ndarray, random: BatchRandom) -> Maps:
        at = self._draw(rows.shape[1], cols.shape[1], random)
        return (
            self._cut(rows, at.vertical, at.top, at.height),
            self._cut(cols, at.horizontal, at.left, at.width),
        )

    def _cut(self, places: np.ndarray, padding: int, first: np.ndarray, size: int) -> np.ndarray:
        """Places [b or 1, n], padded as the image is, from `first` [b] on: [b, size]."""
        black = {"constant_values": -1} if self.mode == "constant" else {}
        padded = np.pad(places, ((0, 0), (padding, padding)), mode=self.mode, **black)
        which = first[:, None] + np.arange(size)
        if len(padded) == 1:
            return padded[0][which]
        return np.take_along_axis(padded, which, axis=1)


def _windows(images: np.ndarray, top, left, size: tuple[int, int]) -> np.ndarray:
    """[B, h, w, C]: of every image the window of `size` at its own (top, left), each [B]."""
    b, h, w, c = images.shape
    rows = images.reshape(b, h, w * c)  # whole rows of bytes, so that the gather copies runs
    views = sliding_window_view(rows, (size[0], size[1] * c), axis=(1, 2))
    return views[np.arange(b), top, left * c].reshape(b, *size, c)


class RandomCrop(_PaddedWindow):
    """Pad every side by `padding` pixels, then cut a window at a random place.

    Args:
        size: of the window, int or (H, W); None keeps the image's size.
        padding: pixels on each side.
        mode: "reflect" mirrors the image (without its edge), "constant" pads with black.

    Raises:
        ValueError: unknown mode or negative padding; on a batch, a window larger than the padded
            image, or a reflection wider than the image.
    """

    def __init__(self, size: Size | None = None, padding: int = 4, mode: str = "reflect") -> None:
        if mode not in ("reflect", "constant"):
            raise ValueError(f"unknown padding mode {mode!r}: choose one of constant, reflect")
        if padding < 0:
            raise ValueError(f"padding must be 0 or more, got {padding}")
        self.size = None if size is None else pair(size, "crop size")
        self.padding = padding
        self.mode = mode

    def _draw(self, h: int, w: int, random: BatchRandom) -> _Window:
        p = self.padding
        height, width = self.size or (h, w)
        if height > h + 2 * p or width > w + 2 * p:
            raise ValueError(
                f"crop of {height} x {width} does not fit an image of {h} x {w} padded by {p}: "
                "lower size or raise padding"
            )
        if self.mode == "reflect" and p >= min(h, w):
            raise ValueError(f"reflect padding {p} must be smaller than the image of {h} x {w}")
        top = random.integers(0, h + 2 * p - height + 1)
        left = random.integers(0, w + 2 * p - width + 1)
        return _Window(p, p, top, left, height, width)


class RandomShift(_PaddedWindow):
    """Move each image by up to `share` of its height and width; its edge pixels fill the gap.

    The shift is in whole pixels, uniform, up or down and left or right.

    Raises:
        ValueError: `share` lies outside 0..1 or is 1.
    """

    mode = "edge"

    def __init__(self, share: float = 0.1) -> None:
        if not 0 <= share < 1:
            raise ValueError(f"a shift must be a share of the side, 0 to below 1, got {share}")
        self.share = share

    def _draw(self, h: int, w: int, random: BatchRandom) -> _Window:
        down, right = int(self.share * h), int(self.share * w)
        top, left = random.integers(0, 2 * down + 1), random.integers(0, 2 * right + 1)
        return _Window(down, right, top, left, h, w)


class RandomHorizontalFlip(WholePixels):
    """Mirror each image left to right with probability `p`.

    Raises:
        ValueError: `p` lies outside 0..1.
    """

    axis = 2  # of [B, H, W, C]

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"flip probability must lie in 0..1, got {p}")
        self.p = p

    def _draw(self, random: BatchRandom) -> np.ndarray:
        """bool [b]: which are mirrored."""
        return random.uniform() < self.p

    def __call__(self, images: np.ndarray, random: BatchRandom) -> np.ndarray:
        chosen = np.flatnonzero(self._draw(random))
        out = images.copy()
        backwards = np.arange(images.shape[self.axis])[::-1]
        # twice as fast as [:, :, ::-1]
        out[chosen] = np.take(images[chosen], backwards, axis=self.axis)
        return out

    def move(self, rows: np.ndarray, cols: np.ndarray, random: BatchRandom) -> Maps:
        chosen = self._draw(random)[:, None]
        if self.axis == 1:
            return np.where(chosen, rows[:, ::-1], rows), cols
        return rows, np.where(chosen, cols[:, ::-1], cols)


class RandomVerticalFlip(RandomHorizontalFlip):
    """Mirror each image top to bottom with probability `p`."""

    axis = 1
