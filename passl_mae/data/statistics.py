"""Mean and standard deviation of all pixels of images, channel by channel, exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from passl_mae.data.image_files import MAX_PIXELS, decode
from passl_mae.data.workers import Workers
from passl_mae.terminal import bar

_CHUNK = 16

# Pixels, and the sums of their values and squares in each channel: whole numbers, without rounding.
Sums = tuple[int, list[int], list[int]]


def sums_of_arrays(images: np.ndarray) -> Sums:
    """Of images uint8 [..., C]."""
    pixels = images.reshape(-1, images.shape[-1])
    # A histogram is exact, and its products fit into Python's whole numbers.
    counts = [np.bincount(channel, minlength=256).tolist() for channel in pixels.T]
    sums = [sum(n * value for value, n in enumerate(channel)) for channel in counts]
    squares = [sum(n * value * value for value, n in enumerate(channel)) for channel in counts]
    return len(pixels), sums, squares


def sums_of_files(
    paths: Sequence[str], channels: int, workers: Workers, max_pixels: int = MAX_PIXELS
) -> Sums:
    """Of image files at their full size; every pixel of every file counts once.

    Raises:
        ValueError: a file that cannot be read, named.
    """
    pieces = (paths[i : i + _CHUNK] for i in range(0, len(paths), _CHUNK))
    results = workers.map(_sums, ((piece, channels, max_pixels) for piece in pieces))
    parts = []
    with bar(len(paths), "statistics", "image") as progress:
        for count, sums in results:
            progress.update(count)
            parts.append(sums)
    return _add_up(parts)


def _sums(paths: list[str], channels: int, max_pixels: int) -> tuple[int, Sums]:
    sums = [sums_of_arrays(decode(path, channels, max_pixels=max_pixels)) for path in paths]
    return len(paths), _add_up(sums)


def _add_up(parts: list[Sums]) -> Sums:
    counts, sums, squares = zip(*parts)
    return sum(counts), [sum(c) for c in zip(*sums)], [sum(c) for c in zip(*squares)]


def mean_and_std(sums: Sums) -> tuple[list[float], list[float]]:
    """(mean, std) per channel on the 0..1 scale; the std of all pixels, divided by their number."""
    count, totals, squares = sums
    mean = [total / count / 255 for total in totals]
    # n * sum(x^2) - sum(x)^2 is a whole number: nothing cancels.
    variances = [count * square - total * total for square, total in zip(squares, totals)]
    return mean, [variance**0.5 / count / 255 for variance in variances]
