"""Two views of every image and the colour transforms that contrastive learning makes them by.

As in `transforms.py`: `t(images, random)`, uint8 [B, H, W, C] in and out. The enhancements are
Pillow's, as torchvision's on PIL images; hue and blur are exact where Pillow's are approximations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from passl_mae.data.augment import _blend, _grey, _look_up
from passl_mae.data.image_sets import CropOnRead
from passl_mae.data.random import BatchRandom

# Pixels in work at one time: small enough for the float copies to stay in cache.
_CHUNK_PIXELS = 1 << 13
_LEVELS = np.arange(256)
_TRUNCATE = 3.0  # of the Gaussian, in standard deviations


class TwoViews:
    """Two augmentations of each image, each with draws of its own: [B, 2, C, H, W].

    Args:
        transform: ends in `Normalize`: uint8 [B, H, W, C] -> float32 [B, C, H, W]. Images [B, 2, H,
            W, C], two crops of each as `TwoCropsOnRead` gives them, are a view each.
    """

    def __init__(self, transform: Callable[[np.ndarray, BatchRandom], np.ndarray]) -> None:
        self.transform = transform

    def __call__(self, images: np.ndarray, random: BatchRandom) -> np.ndarray:
        views = (images[:, 0], images[:, 1]) if images.ndim == 5 else (images, images)
        return np.stack([self.transform(view, random) for view in views], axis=1)


class TwoCropsOnRead(CropOnRead):
    """Two random crops of each image as it is read; every file is decoded twice."""

    def fetch_random(
        self, indices: np.ndarray, random: BatchRandom
    ) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [B, 2, *crop.size, C] and labels int64 [B]."""
        first, labels = super().fetch_random(indices, random)
        second, _ = super().fetch_random(indices, random)
        return np.stack([first, second], axis=1), labels


class ColorJitter:
    """Random brightness, contrast, saturation and hue, in an order of each image's own.

    torchvision's: factors are uniform in 1 - x .. 1 + x (at least 0), the hue is turned by -h .. h
    of the circle. Grey images keep their channel: only brightness and contrast do something.
    MoCo v1 uses (0.4, 0.4, 0.4, 0.4) on all images, v2 (0.4, 0.4, 0.4, 0.1) with p = 0.8.

    Args:
        brightness, contrast, saturation: largest deviation of the factor from 1.
        hue: largest turn, 0 to 0.5.
        p: probability that an image is changed.

    Raises:
        ValueError: an argument out of its bounds; on a batch, images that are not bytes, grey or
            RGB.
    """

    def __init__(
        self,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.4,
        hue: float = 0.1,
        p: float = 0.8,
    ) -> None:
        for name, value in (
            ("brightness", brightness), ("contrast", contrast), ("saturation", saturation),
        ):  # fmt: skip
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and 0 or more, got {value}")
        if not 0 <= hue <= 0.5:
            raise ValueError(f"hue must lie in 0..0.5, got {hue}")
        self.strengths = (brightness, contrast, saturation, hue)
        self.p = _probability(p, "jitter")

    def __call__(self, images: np.ndarray, random: BatchRandom) -> np.ndarray:
        _check(images, "ColorJitter")
        chosen = random.uniform() < self.p
        order = np.argsort(random.uniform(4), axis=1)  # [b, 4]: which operation comes when
        amount = 2 * random.uniform(4) - 1  # [b, 4], of each operation
        factors = np.maximum(1 + amount * np.array(self.strengths, np.float32), 0)
        factors[:, 3] = amount[:, 3] * self.strengths[3]
        used = [number for number, strength in enumerate(self.strengths) if strength > 0]
        out = images.copy()
        _, h, w, _ = images.shape
        chunk = max(1, _CHUNK_PIXELS // (h * w))
        rows = np.flatnonzero(chosen)
        rows = rows[np.lexsort(order[rows].T)]  # images of one order beside each other
        for part in (rows[i : i + chunk] for i in range(0, len(rows), chunk)):
            work = out[part]
            for when in range(4):
                for number in used:
                    due = order[part, when] == number
                    if due.all():
                        work = _OPERATIONS[number](work, factors[part, number])
                    elif due.any():
                        work[due] = _OPERATIONS[number](work[due], factors[part[due], number])
            out[part] = work
        return out


def adjust_brightness(images: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Blended with black; factor [n], 1 leaves the image."""
    levels = np.tile(_LEVELS, (len(images), 1))
    return _look_up(images, _blend(np.zeros_like(levels), levels, factor))


def adjust_contrast(images: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Blended with the mean of the image's luma; factor [n]."""
    mean = np.floor(_grey(images).mean(axis=(1, 2), dtype=np.float64) + 0.5)  # [n, 1]
    return _look_up(images, _blend(mean, np.tile(_LEVELS, (len(images), 1)), factor))


def adjust_saturation(images: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Blended with the image's luma; factor [n]."""
    return _blend(_grey(images), images, factor)


def adjust_hue(images: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """The hue of HSV turned by `turn` [n] of the circle, saturation and value kept.

    In floating point, rounded once: Pillow's way over whole numbers of HSV is off by up to a few
    levels.
    """
    if images.shape[3] == 1:
        return images
    red, green, blue = (images[..., c].astype(np.float32) for c in range(3))
    value = np.maximum(np.maximum(red, green), blue)  # [n, H, W]
    chroma = value - np.minimum(np.minimum(red, green), blue)
    scale = 1.0 / np.maximum(chroma, 1.0)
    hue = np.where(
        value == red,
        (green - blue) * scale,
        np.where(value == green, (blue - red) * scale + 2, (red - green) * scale + 4),
    )  # [n, H, W], in sixths of the circle, -1 .. 5
    hue += 6 + 6 * turn.astype(np.float32).reshape(-1, 1, 1)  # 2 .. 14
    out = np.empty_like(images)
    for channel, offset in enumerate((5, 3, 1)):
        # v - c * max(0, min(k, 4 - k, 1)) with k = (offset + hue) mod 6
        k = hue + offset
        k -= 6 * np.floor(k * np.float32(1 / 6))
        np.minimum(k, 4 - k, out=k)
        np.clip(k, 0, 1, out=k)
        out[..., channel] = np.rint(value - chroma * k)
    return out


_OPERATIONS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


class RandomGrayscale:
    """Replace an image by its luma (ITU-R 601) in all channels with probability `p`.

    Raises:
        ValueError: `p` lies outside 0..1; on a batch, images that are not bytes, grey or RGB.
    """

    def __init__(self, p: float = 0.2) -> None:
        self.p = _probability(p, "grayscale")

    def __call__(self, images: np.ndarray, random: BatchRandom) -> np.ndarray:
        _check(images, "RandomGrayscale")
        chosen = np.flatnonzero(random.uniform() < self.p)
        out = images.copy()
        out[chosen] = _grey(images[chosen])
        return out


class GaussianBlur:
    """Blur with probability `p`, its standard deviation uniform in `sigma` pixels (MoCo v2).

    A true Gaussian, cut off at three standard deviations, borders repeated; Pillow's, which the
    reference uses, is made of box filters. `sigma` is meant for images of 224 pixels.

    Raises:
        ValueError: an argument out of its bounds; on a batch, images that are not bytes.
    """

    def __init__(self, p: float = 0.5, sigma: Sequence[float] = (0.1, 2.0)) -> None:
        low, high = sigma
        if not 0 < low <= high < math.inf:
            raise ValueError(f"sigma must be (low, high) with 0 < low <= high, got {sigma}")
        self.p = _probability(p, "blur")
        self.sigma = (float(low), float(high))

    def __call__(self, images: np.ndarray, random: BatchRandom) -> np.ndarray:
        if images.dtype != np.uint8:
            raise ValueError(f"GaussianBlur takes uint8 [B, H, W, C], got {images.dtype}")
        chosen = np.flatnonzero(random.uniform() < self.p)
        low, high = self.sigma
        sigma = low + (high - low) * random.uniform().astype(np.float64)
        chosen = chosen[np.argsort(sigma[chosen], kind="stable")]  # alike radii beside each other
        _, h, w, _ = images.shape
        chunk = max(1, _CHUNK_PIXELS // (h * w))
        out = images.copy()
        for part in (chosen[i : i + chunk] for i in range(0, len(chosen), chunk)):
            out[part] = blur(images[part], sigma[part])
        return out


def blur(images: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """uint8 [n, H, W, C] through a Gaussian of `sigma` [n] pixels, borders repeated."""
    radii = np.ceil(_TRUNCATE * sigma)
    offsets = np.arange(int(radii.max()) + 1)
    kernel = np.exp(-0.5 * (offsets / sigma[:, None]) ** 2)  # [n, r + 1], half of it
    kernel *= offsets <= radii[:, None]
    kernel /= kernel[:, :1] + 2 * kernel[:, 1:].sum(axis=1, keepdims=True)
    kernel = kernel.astype(np.float32)[..., None, None, None]
    x = _filtered(images.astype(np.float32), kernel, axis=1)
    return np.rint(_filtered(x, kernel, axis=2)).astype(np.uint8)


def _filtered(x: np.ndarray, kernel: np.ndarray, axis: int) -> np.ndarray:
    """Correlation of [n, H, W, C] along an axis with half kernels [n, r + 1, 1, 1, 1]."""
    radius, size = kernel.shape[1] - 1, x.shape[axis]
    padding = [(0, 0)] * 4
    padding[axis] = (radius, radius)
    padded = np.pad(x, padding, mode="edge")

    def moved(by: int) -> np.ndarray:
        return padded[(slice(None),) * axis + (slice(radius + by, radius + by + size),)]

    out = x * kernel[:, 0]
    for offset in range(1, radius + 1):
        both = moved(-offset) + moved(offset)
        both *= kernel[:, offset]
        out += both
    return out


def _probability(p: float, what: str) -> float:
    if not 0 <= p <= 1:
        raise ValueError(f"{what} probability must lie in 0..1, got {p}")
    return p


def _check(images: np.ndarray, what: str) -> None:
    if images.dtype != np.uint8 or images.shape[3] not in (1, 3):
        raise ValueError(
            f"{what} takes uint8 [B, H, W, C], grey or RGB, got {images.dtype} with "
            f"{images.shape[3]} channels: put it before Normalize"
        )
