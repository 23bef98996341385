"""Shapes: a procedural data set that needs no download.

One coloured, textured, rotated shape on a textured background an image; the class is the shape.
Colour, texture, place, size and angle are drawn alike for every class, so a linear classifier on
the pixels stays near 20 % where chance is 10 %, while a network that sees contours learns it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from passl_mae.data.in_memory import InMemoryDataset
from passl_mae.data.random import keyed_generator

_TAU = 2 * np.pi
_PATTERNS = 6
# Pixels drawn at one time: a float32 plane of them stays in the processor's cache.
_CHUNK_PIXELS = 1 << 16
_MIN_SIDE = 16
_PARAMETERS = 30
_LABELS, _SCENES, _NOISE = 0, 1, 2  # streams of random numbers


# Signed distances, negative inside, in units in which every shape fills about the unit circle.
# x, y: float32 [n, H, W], y down.


def _polygon(vertices: Sequence[tuple[float, float]], rounding: float = 0.0):
    """Distance to a closed polygon (Quilez, "2D distance functions")."""

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        nearest = np.full_like(x, np.inf)
        inside = np.zeros(x.shape, bool)
        for (ax, ay), (bx, by) in zip(vertices, [*vertices[1:], vertices[0]]):
            ex, ey = bx - ax, by - ay
            wx, wy = x - ax, y - ay
            along = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
            nearest = np.minimum(nearest, (wx - ex * along) ** 2 + (wy - ey * along) ** 2)
            if ey:  # a ray along x crosses this edge
                inside ^= ((ay > y) != (by > y)) & (wx < ex / ey * wy)
        return np.where(inside, -1, 1) * np.sqrt(nearest) - rounding

    return distance


def _regular(corners: int, radius: float, inner: float | None = None) -> list[tuple[float, float]]:
    """Corners of a regular polygon, or of a star if an inner radius is given."""
    radii = [radius] if inner is None else [radius, inner]
    count = corners * len(radii)
    return [
        (radii[i % len(radii)] * np.sin(_TAU * i / count),
         -radii[i % len(radii)] * np.cos(_TAU * i / count))
        for i in range(count)
    ]  # fmt: skip


def _disc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - 0.82


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.7) - 0.2


def _crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A disc without a smaller one moved to its right (Quilez), its middle near the origin."""
    outer, inner, move = 0.92, 0.74, 0.48
    x, y = x + 0.1, np.abs(y)
    tip_x = (outer**2 - inner**2 + move**2) / (2 * move)
    tip_y = float(np.sqrt(outer**2 - tip_x**2))
    sides = np.maximum(np.hypot(x, y) - outer, inner - np.hypot(x - move, y))
    beyond = x * tip_y - y * tip_x > move * np.maximum(tip_y - y, 0)
    return np.where(beyond, np.hypot(x - tip_x, y - tip_y), sides)


def _flower(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    petals = 0.72 + 0.22 * np.cos(5 * angle)
    slope = 1.1 * np.sin(5 * angle) / np.maximum(radius, 0.3)
    return (radius - petals) / np.sqrt(1 + slope * slope)


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance to a heart (Quilez), moved and scaled to the unit circle."""
    x, y = np.abs(x) / 1.6, (0.88 - y) / 1.6
    lobe = np.hypot(x - 0.25, y - 0.75) - np.sqrt(0.125, dtype=np.float32)
    half = np.maximum(x + y, 0) / 2
    body = np.minimum(np.hypot(x, y - 1), np.hypot(x - half, y - half)) * np.sign(x - y)
    return 1.6 * np.where(x + y > 1, lobe, body)


_CROSS = [
    (-0.3, -0.95), (0.3, -0.95), (0.3, -0.3), (0.95, -0.3), (0.95, 0.3), (0.3, 0.3),
    (0.3, 0.95), (-0.3, 0.95), (-0.3, 0.3), (-0.95, 0.3), (-0.95, -0.3), (-0.3, -0.3),
]  # fmt: skip
_ARROW = [
    (0.0, -1.0), (0.78, -0.12), (0.27, -0.12), (0.27, 0.95),
    (-0.27, 0.95), (-0.27, -0.12), (-0.78, -0.12),
]  # fmt: skip
_DISTANCES = {
    "disc": _disc,
    "ring": _ring,
    "crescent": _crescent,
    "flower": _flower,
    "heart": _heart,
    "triangle": _polygon(_regular(3, 0.95), rounding=0.05),
    "square": _polygon(_regular(4, 0.92), rounding=0.05),
    "star": _polygon(_regular(5, 1.0, inner=0.42), rounding=0.02),
    "cross": _polygon(_CROSS),
    "arrow": _polygon(_ARROW),
}


def _rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """[n, 3] from hue (turns), saturation and value in 0..1, each [n]."""
    k = (np.array([5.0, 3.0, 1.0]) + 6 * hue[:, None]) % 6
    drop = np.clip(np.minimum(k, 4 - k), 0, 1)
    return (value[:, None] * (1 - saturation[:, None] * drop)).astype(np.float32)


def _pattern(kind: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """float32 [n, H, W] in 0..1: a smooth texture of `kind` [n] in waves u, v [n, H, W]."""
    out = np.empty_like(u)
    for name in range(_PATTERNS):
        these = np.flatnonzero(kind == name)
        a, b = u[these], v[these]
        if name == 0:  # gradient, over the whole image
            out[these] = np.clip(0.5 + a / 12, 0, 1)
            continue
        if name == 1:  # stripes
            wave = np.sin(a)
        elif name == 2:  # checks
            wave = np.sin(a) * np.sin(b)
        elif name == 3:  # dots
            wave = np.sin(a) + np.sin(b) - 0.8
        elif name == 4:  # rings about a point
            wave = np.sin(np.hypot(a, b))
        else:  # marble
            wave = np.sin(a + 1.6 * np.sin(0.6 * b)) * 0.7
        out[these] = np.clip(0.5 + 1.2 * wave, 0, 1)
    return out


def _paint(draws: np.ndarray, bright: np.ndarray, hue: np.ndarray, x, y) -> np.ndarray:
    """[n, H, W, 3] in 0..1: a two-coloured texture, light where `bright` [n]; draws [n, 10]."""
    d = draws.T
    value = np.where(bright, 0.78 + 0.22 * d[0], 0.16 + 0.3 * d[0])
    other_value = np.where(bright, 0.74 + 0.26 * d[1], 0.1 + 0.42 * d[1])
    saturation = np.where(bright, 0.15 + 0.5 * d[2], 0.35 + 0.5 * d[2])
    first = _rgb(hue, saturation, value)
    second = _rgb(hue + 0.3 * (d[3] - 0.5), saturation * (0.4 + 0.8 * d[4]), other_value)
    angle = (_TAU * d[5])[:, None, None]
    rate = (_TAU * (1.5 + 2 * d[6]))[:, None, None]  # radians a side: 1.5 to 3.5 waves
    u = rate * (np.cos(angle) * x + np.sin(angle) * y) + (_TAU * d[7])[:, None, None]
    v = rate * (np.cos(angle) * y - np.sin(angle) * x) + (_TAU * d[8])[:, None, None]
    kind = np.minimum((d[9] * _PATTERNS).astype(np.int64), _PATTERNS - 1)
    share = _pattern(kind, u.astype(np.float32), v.astype(np.float32))[..., None]
    # Muted: what stands out in an image is to be the contour.
    return first[:, None, None] + 0.6 * (second - first)[:, None, None] * share


def _render(labels: np.ndarray, draws: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """uint8 [n, H, W, 3] of the scenes `draws` [n, _PARAMETERS], with `noise` [n, H, W, 3]."""
    n, h, w, _ = noise.shape
    side = min(h, w)
    y = ((np.arange(h, dtype=np.float32) + 0.5 - h / 2) / side)[:, None] + np.zeros(w, np.float32)
    x = ((np.arange(w, dtype=np.float32) + 0.5 - w / 2) / side) + np.zeros((h, 1), np.float32)
    d = draws.T
    bright = d[0] < 0.5  # which of shape and background is the lighter
    back = _paint(draws[:, 10:20], bright, d[1], x, y)
    front = _paint(draws[:, 20:30], ~bright, d[1] + 0.2 + 0.6 * d[2], x, y)

    radius = 0.32 + 0.12 * d[3]
    centre_x = (2 * d[4] - 1) * (w / side / 2 - radius)
    centre_y = (2 * d[5] - 1) * (h / side / 2 - radius)
    cos, sin = (f(_TAU * d[6]).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    radius, centre_x, centre_y = (
        p.astype(np.float32)[:, None, None] for p in (radius, centre_x, centre_y)
    )
    px, py = (x - centre_x) / radius, (y - centre_y) / radius
    px, py = cos * px + sin * py, cos * py - sin * px
    distance = np.empty((n, h, w), np.float32)
    for label, function in enumerate(_DISTANCES.values()):
        these = np.flatnonzero(labels == label)
        distance[these] = function(px[these], py[these])
    distance *= radius * side  # pixels

    cover = np.clip(0.5 - distance, 0, 1)[..., None]  # antialiased: the share of the pixel inside
    shadow = 1 - 0.45 * np.exp(-np.maximum(distance, 0) / (0.05 * side))[..., None]
    scene = back * shadow
    scene += (front - scene) * cover
    scene += noise
    return np.clip(np.rint(scene * 255), 0, 255).astype(np.uint8)


class Shapes(InMemoryDataset):
    """Shapes on textured backgrounds, ten balanced classes, drawn on the spot.

    The same (seed, split) gives the same images (from one NumPy or processor to the next a value
    may round to its neighbour), a smaller `num_images` is the beginning of a larger one, and the
    splits share nothing. Another `image_size` of the same sides' ratio shows the same scenes.

    Args:
        split: "train" or "test".
        image_size: int or (H, W) in pixels, at least 16 each.
        num_images: None gives 10,000 for training, 2,000 for the test.
        seed: 0 or more.

    Raises:
        ValueError: an unknown split, an image below 16 pixels, fewer than 1 image, a bad seed.
    """

    CLASS_NAMES = tuple(_DISTANCES)
    # Of all pixels of the default training images.
    MEAN = (0.442, 0.441, 0.441)
    STD = (0.270, 0.268, 0.270)

    def __init__(
        self,
        split: str = "train",
        image_size: int | Sequence[int] = 32,
        num_images: int | None = None,
        seed: int = 0,
    ) -> None:
        splits = {"train": 10_000, "test": 2_000}
        if split not in splits:
            raise ValueError(f"unknown split {split!r} of Shapes: choose one of train, test")
        h, w = (image_size, image_size) if isinstance(image_size, int) else image_size
        if min(h, w) < _MIN_SIDE:
            raise ValueError(f"image_size {h} x {w} is too small for Shapes: at least {_MIN_SIDE}")
        n = splits[split] if num_images is None else num_images
        if n < 1:
            raise ValueError(f"num_images must be at least 1, got {n}")

        key = (seed, list(splits).index(split))
        classes = len(_DISTANCES)
        # Every run of ten images holds every class once, in random order. One draw of all rows
        # makes the beginning independent of the number of rows.
        ranks = keyed_generator((*key, _LABELS)).random((-(-n // classes), classes))
        labels = ranks.argsort(axis=1).reshape(-1)[:n].astype(np.int64)
        draws = keyed_generator((*key, _SCENES)).random((n, _PARAMETERS))
        noise = keyed_generator((*key, _NOISE))
        images = np.empty((n, h, w, 3), np.uint8)
        chunk = max(1, _CHUNK_PIXELS // (h * w))
        for first in range(0, n, chunk):
            part = slice(first, min(first + chunk, n))
            shape = (part.stop - first, h, w, 3)
            grain = 0.02 * noise.standard_normal(shape, dtype=np.float32)
            images[part] = _render(labels[part], draws[part], grain)
        super().__init__(images, labels, self.CLASS_NAMES, self.MEAN, self.STD)
        self.split = split
