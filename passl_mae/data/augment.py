"""RandAugment for whole batches of bytes, in NumPy: Pillow's operations without a loop over images.

Every operation is `op(images, level, sign, fill) -> images` for images uint8 [n, H, W, C] that all
draw this operation: `level` float64 [n] in 0..1 is the magnitude over 10, `sign` [n] is -1 or 1 for
operations that go two ways, `fill` uint8 [C] the colour of what comes from outside the image.
The levels' meanings are those of timm's "increasing" set: more is always further from the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from passl_mae.data.random import BatchRandom

# Pixels that one call of an operation works on: small enough for its float copies to stay in cache.
_CHUNK_PIXELS = 1 << 13
_LEVELS = np.arange(256)


class RandAugment:
    """Random operations, one after another, on each image (Cubuk et al. 2019, arXiv 1909.13719).

    Each image draws its own operations (with replacement), magnitudes and signs. The defaults are
    timm's "rand-m9-mstd0.5-inc1", with which MAE finetunes (He et al. 2021, A.1): 15 operations,
    each drawn one carried out with probability 0.5. The paper's own form is prob = 1, with
    "identity" among the operations. Two differences from timm: resampling is always bilinear, and
    posterize keeps at least one bit, as an image all black teaches nothing.

    Args:
        num_ops: operations drawn for an image.
        magnitude: how strong they are, 0..10.
        magnitude_std: standard deviation of a normal draw added to it; the sum is clipped to 0..10.
        prob: probability that a drawn operation is carried out.
        ops: names to draw from (see `OPS`); None takes timm's fifteen.
        fill: colour, 0..255, of what rotating, shearing and translating bring in: one number, or
            one a channel.

    Raises:
        ValueError: an argument out of its bounds or an unknown operation; on a batch, images that
            are not bytes, grey or RGB, or that do not have as many channels as `fill`.
    """

    def __init__(
        self,
        num_ops: int = 2,
        magnitude: float = 9.0,
        magnitude_std: float = 0.5,
        prob: float = 0.5,
        ops: Sequence[str] | None = None,
        fill: int | Sequence[int] = 128,
    ) -> None:
        if num_ops < 0:
            raise ValueError(f"num_ops must be 0 or more, got {num_ops}")
        if not 0 <= magnitude <= 10:
            raise ValueError(f"magnitude must lie in 0..10, got {magnitude}")
        if not 0 <= magnitude_std < math.inf:
            raise ValueError(f"magnitude_std must be finite and 0 or more, got {magnitude_std}")
        if not 0 <= prob <= 1:
            raise ValueError(f"prob must lie in 0..1, got {prob}")
        names = [name for name in OPS if name != "identity"] if ops is None else list(ops)
        unknown = [name for name in names if name not in OPS]
        if unknown or not names:
            what = f"unknown operation {unknown[0]!r}" if unknown else "ops is empty"
            raise ValueError(f"{what}: choose from {', '.join(OPS)}")
        colours = np.atleast_1d(fill)
        if colours.ndim != 1 or len(colours) not in (1, 3) or not np.isin(colours, _LEVELS).all():
            raise ValueError(
                f"fill must be whole numbers in 0..255, 1 or one a channel, got {fill}"
            )
        self.num_ops = num_ops
        self.magnitude = magnitude
        self.magnitude_std = magnitude_std
        self.prob = prob
        self.ops = names
        self.fill = colours.astype(np.uint8)

    def __call__(self, images: np.ndarray, random: BatchRandom) -> np.ndarray:
        self._check(images)
        choice = random.integers(0, len(self.ops), self.num_ops)  # [b, num_ops]
        applied = random.uniform(self.num_ops) < self.prob
        sign = np.where(random.uniform(self.num_ops) < 0.5, 1.0, -1.0)
        noise = random.normal(self.num_ops).astype(np.float64)
        level = np.clip(self.magnitude + self.magnitude_std * noise, 0, 10) / 10

        _, h, w, c = images.shape
        fill = np.broadcast_to(self.fill, (c,))
        chunk = max(1, _CHUNK_PIXELS // (h * w))
        out = images.copy()
        for k in range(self.num_ops):
            for index, name in enumerate(self.ops):
                rows = np.flatnonzero(applied[:, k] & (choice[:, k] == index))
                for part in (rows[i : i + chunk] for i in range(0, len(rows), chunk)):
                    out[part] = OPS[name](out[part], level[part, k], sign[part, k], fill)
        return out

    def _check(self, images: np.ndarray) -> None:
        if images.dtype != np.uint8:
            raise ValueError(
                f"RandAugment takes uint8 [B, H, W, C], got {images.dtype}: put it before Normalize"
            )
        channels = images.shape[3]
        if channels not in (1, 3):
            raise ValueError(f"RandAugment takes grey or RGB images, got {channels} channels")
        if len(self.fill) not in (1, channels):
            raise ValueError(
                f"fill has {len(self.fill)} colours but the images {channels}: give 1 number"
            )


# Building blocks. Like Pillow, blends and interpolation cut off the fraction.


def _look_up(images: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """Each byte through its image's table [n, 256], or its image's and channel's [n, C, 256]."""
    n = len(images)
    tables = tables.reshape(n, 1, 1, -1, 256)
    offsets = 256 * np.arange(n * tables.shape[3]).reshape(n, 1, 1, -1)  # [n, 1, 1, 1 or C]
    return tables.astype(np.uint8).ravel()[images + offsets]


def _over_pixels(reduction: np.ufunc, images: np.ndarray) -> np.ndarray:
    """[n, C, 1]: the minimum or maximum of each image and channel."""
    return reduction.reduce(reduction.reduce(images, axis=1), axis=1)[..., None]  # rows: long runs


def _blend(other: np.ndarray, images: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """uint8: `other` at factor 0, `images` at 1, and on along the line beyond it; factor [n]."""
    factor = factor.astype(np.float32).reshape(-1, *[1] * (images.ndim - 1))
    other = other.astype(np.float32)
    return np.clip(other + factor * np.subtract(images, other, dtype=np.float32), 0, 255).astype(
        np.uint8
    )


def _grey(images: np.ndarray) -> np.ndarray:
    """uint8 [n, H, W, 1]: ITU-R 601 luma, in Pillow's 16-bit fixed point."""
    if images.shape[3] == 1:
        return images
    luma = images @ np.array([19595, 38470, 7471], np.int32)
    return ((luma + 0x8000) >> 16).astype(np.uint8)[..., None]


def _affine(images: np.ndarray, matrices: Sequence, fill: np.ndarray) -> np.ndarray:
    """The result at (x, y) is the image at (a x + b y + c, d x + e y + f), bilinear.

    matrices: a, b, c, d, e, f, each a number or [n]; pixel centres lie at halves. Within half a
    pixel of the border the nearest pixels count; outside the image `fill` does.
    """
    n, h, w, channels = images.shape
    a, b, c, d, e, f = (np.reshape(m, (-1, 1, 1)) for m in matrices)
    x, y = np.arange(w) + 0.5, np.arange(h)[:, None] + 0.5
    xs = np.broadcast_to(a * x + b * y + c, (n, h, w))
    ys = np.broadcast_to(d * x + e * y + f, (n, h, w))
    inside = (xs >= 0) & (xs < w) & (ys >= 0) & (ys < h)
    (x0, x1, dx), (y0, y1, dy) = _neighbours(xs, w), _neighbours(ys, h)
    pixels = images.reshape(n * h * w, channels)
    first = (h * w * np.arange(n)).reshape(n, 1, 1)

    def row(y: np.ndarray) -> np.ndarray:
        """float32 [n, H, W, C], interpolated between x0 and x1 of the row y."""
        start = first + y * w
        left = pixels.take(start + x0, axis=0).astype(np.float32)
        left += (pixels.take(start + x1, axis=0) - left) * dx
        return left

    out = row(y0)
    out += (row(y1) - out) * dy
    out = out.astype(np.uint8)
    out[~inside] = fill
    return out


def _neighbours(places: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pixels before and after each place, held within 0 .. size - 1, and the way between."""
    places = np.minimum(np.maximum(places - 0.5, 0), size - 1)
    before = places.astype(np.int64)
    way = (places - before).astype(np.float32)[..., None]
    return before, np.minimum(before + 1, size - 1), way


# Operations.


def _identity(images, level, sign, fill):
    return images


def _autocontrast(images, level, sign, fill):
    low = _over_pixels(np.minimum, images).astype(np.float64)
    high = _over_pixels(np.maximum, images).astype(np.float64)
    scale = 255.0 / np.maximum(high - low, 1)
    stretched = np.clip(_LEVELS * scale - low * scale, 0, 255)
    return _look_up(images, np.where(high > low, stretched, _LEVELS))


def _equalize(images, level, sign, fill):
    n, h, w, c = images.shape
    bins = 256 * np.arange(n * c).reshape(n, 1, 1, c) + images
    counts = np.bincount(bins.ravel(), minlength=n * c * 256).reshape(n, c, 256)
    brightest = np.take_along_axis(counts, _over_pixels(np.maximum, images).astype(np.int64), 2)
    step = (h * w - brightest) // 255  # [n, C, 1]; 0 where there is too little to spread
    darker = counts.cumsum(axis=2) - counts  # pixels below each level
    spread = np.minimum((step // 2 + darker) // np.maximum(step, 1), 255)
    return _look_up(images, np.where(step > 0, spread, _LEVELS))


def _invert(images, level, sign, fill):
    return 255 - images


def _posterize(images, level, sign, fill):
    bits = np.maximum(4 - (level * 4).astype(np.int64), 1)  # 4 down to 1
    return images & (0xFF << (8 - bits) & 0xFF).astype(np.uint8).reshape(-1, 1, 1, 1)


def _solarize(images, level, sign, fill):
    threshold = 256 - (level * 256).astype(np.int64)[:, None]
    return _look_up(images, np.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS))


def _solarize_add(images, level, sign, fill):
    added = np.minimum(_LEVELS + (level * 110).astype(np.int64)[:, None], 255)
    return _look_up(images, np.where(_LEVELS < 128, added, _LEVELS))


def _factor(level: np.ndarray, sign: np.ndarray) -> np.ndarray:
    """Enhancements leave the image alone at 1 and go down to 0.1 or up to 1.9."""
    return np.maximum(1 + sign * level * 0.9, 0.1)


def _color(images, level, sign, fill):
    return _blend(_grey(images), images, _factor(level, sign))


def _contrast(images, level, sign, fill):
    mean = np.floor(_grey(images).mean(axis=(1, 2), dtype=np.float64) + 0.5)  # [n, 1]
    return _look_up(images, _blend(mean, np.tile(_LEVELS, (len(images), 1)), _factor(level, sign)))


def _brightness(images, level, sign, fill):
    levels = np.tile(_LEVELS, (len(images), 1))
    return _look_up(images, _blend(np.zeros_like(levels), levels, _factor(level, sign)))


def _sharpness(images, level, sign, fill):
    """Blended with a smoothed image: weights 1 around a 5, over 13; the border stays."""
    x = images.astype(np.uint16)
    rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * x[:, 1:-1, 1:-1]
    smooth = images.copy()
    smooth[:, 1:-1, 1:-1] = (2 * total + 13) // 26
    return _blend(smooth, images, _factor(level, sign))


def _rotate(images, level, sign, fill):
    angle = np.deg2rad(sign * level * 30.0)  # counter-clockwise about the centre
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = images.shape[2] / 2, images.shape[1] / 2
    matrices = (cos, -sin, x - x * cos + y * sin, sin, cos, y - x * sin - y * cos)
    return _affine(images, matrices, fill)


def _shear_x(images, level, sign, fill):
    return _affine(images, (1.0, sign * level * 0.3, 0.0, 0.0, 1.0, 0.0), fill)


def _shear_y(images, level, sign, fill):
    return _affine(images, (1.0, 0.0, 0.0, sign * level * 0.3, 1.0, 0.0), fill)


def _translate_x(images, level, sign, fill):
    offset = sign * level * 0.45 * images.shape[2]
    return _affine(images, (1.0, 0.0, offset, 0.0, 1.0, 0.0), fill)


def _translate_y(images, level, sign, fill):
    offset = sign * level * 0.45 * images.shape[1]
    return _affine(images, (1.0, 0.0, 0.0, 0.0, 1.0, offset), fill)


OPS = {
    "identity": _identity,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "invert": _invert,
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": _color,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
