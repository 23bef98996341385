"""The last transforms of a batch in one pass of C++: whole-pixel moves and `Normalize`.

It works on the thread that calls it and without the GIL, so batches are made ahead truly beside
the training. Its floats are those of the NumPy transforms, bit for bit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import numpy as np

from passl_mae.data.random import BatchRandom
from passl_mae.data.transforms import (
    Compose,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    RandomShift,
    RandomVerticalFlip,
)
from passl_mae.data.whole_pixels import WholePixels, identity
from passl_mae.fast.library import function, try_load

# Exactly these: what a user derived from them may do something else.
MOVES = (RandomCrop, RandomHorizontalFlip, RandomShift, RandomVerticalFlip)


class FastInput:
    """`Compose([*before, *moves, normalize, *after])`, with moves and normalize in one call.

    Draws the same numbers in the same order, and returns the same floats.

    Raises:
        OSError: the operators are not built or cannot be loaded.
        ValueError: on a batch, what the transforms raise.
    """

    def __init__(
        self,
        before: Sequence[Callable],
        moves: Sequence[WholePixels],
        normalize: Normalize,
        after: Sequence[Callable],
    ) -> None:
        self.before, self.after = Compose(before), Compose(after)
        self.moves = list(moves)
        self.normalize = normalize

    def __call__(self, images: np.ndarray, random: BatchRandom) -> np.ndarray:
        images = self.before(images, random)
        self.normalize.check(images)
        rows, cols = identity(*images.shape[1:3])
        for transform in self.moves:
            rows, cols = transform.move(rows, cols, random)
        return self.after(move_and_look_up(images, rows, cols, self.normalize.table), random)


def fuse(transform: Callable, wish: str) -> Callable:
    """A `FastInput` of a `Compose`, where `Global.cpu_ops` wishes it and the operators are there.

    Moves count from the last other transform before `Normalize` on; a transform without `Normalize`
    comes back as it is.

    Args:
        wish: "auto" (if they are built, whatever the device), "on" or "off".

    Raises:
        ValueError: "on" where it cannot be, or another wish; says why.
    """
    if wish == "off" or try_load(wish) or type(transform) is not Compose:
        return transform
    steps = transform.transforms
    end = next((n for n, step in enumerate(steps) if type(step) is Normalize), None)
    if end is None:
        return transform
    begin = end
    while begin and type(steps[begin - 1]) in MOVES:
        begin -= 1
    return FastInput(steps[:begin], steps[begin:end], steps[end], steps[end + 1 :])


def move_and_look_up(
    images: np.ndarray, rows: np.ndarray, cols: np.ndarray, table: np.ndarray
) -> np.ndarray:
    """float32 [B, C, h, w]: table[c, images[b, rows[b, y], cols[b, x], c]], black where a -1 is.

    Args:
        images: uint8 [B, H, W, C].
        rows, cols: int64 [B, h] and [B, w], or [1, h] and [1, w] for all images; -1 is black.
        table: float32 [C, 256], what a byte of each channel becomes.

    Raises:
        ValueError: a type or shape that does not fit, or a place outside the image.
        OSError: the operators are not built or cannot be loaded.
    """
    _check("images", images, np.uint8, 4)
    b, h, w, c = images.shape
    _check("table", table, np.float32, 2)
    if table.shape != (c, 256):
        raise ValueError(f"images of {c} channels need a table [{c}, 256], got {table.shape}")
    rows, cols = _checked_map("rows", rows, b, h), _checked_map("cols", cols, b, w)
    out = np.empty((b, c, rows.shape[1], cols.shape[1]), np.float32)
    if out.size == 0:
        return out
    images, table = _contiguous_each(images), np.require(table, requirements="CA")
    shape = (ctypes.c_int64 * 6)(b, h, w, c, *out.shape[2:])
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (images, rows, cols, table, out)]
    stride = ctypes.c_int64(images.strides[0])
    function("passl_mae_input")(shape, pointers[0], stride, *pointers[1:])
    return out


def _check(name: str, array: np.ndarray, dtype: type, ndim: int) -> None:
    if array.dtype != dtype or array.ndim != ndim:
        raise ValueError(
            f"{name} must be {np.dtype(dtype)} of {ndim} dimensions, got {array.dtype} "
            f"{list(array.shape)}"
        )


def _checked_map(name: str, places: np.ndarray, batch: int, side: int) -> np.ndarray:
    """The map int64 [batch, n], contiguous."""
    _check(name, places, np.int64, 2)
    if len(places) not in (1, batch):
        raise ValueError(f"{name} must be [{batch}, n] or [1, n], got {list(places.shape)}")
    if places.size and (places.min() < -1 or places.max() >= side):
        raise ValueError(
            f"{name} must lie in -1 .. {side - 1}, got {places.min()} .. {places.max()}"
        )
    return np.require(np.broadcast_to(places, (batch, places.shape[1])), requirements="CA")


def _contiguous_each(images: np.ndarray) -> np.ndarray:
    """Images that are contiguous each for itself; one of two views side by side stays uncopied."""
    first = images[0]
    return images if first.flags.c_contiguous else np.ascontiguousarray(images)
