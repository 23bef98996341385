"""Resizing of boxes of whole batches, as two matrix products a batch.

A separable filter is linear in the rows and in the columns, so resizing is `rows @ image @ columns`
with one small matrix an image and axis. The filters and their treatment of borders are Pillow's
(`Image.resize` of the cropped image): when it shrinks, the kernel is widened by the factor, so the
result is antialiased; at a border the weights are cut off and scaled back to sum to 1.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

# Float32 copies of the images in work at one time, bytes: keeps a large batch out of memory's way.
_CHUNK_BYTES = 16 << 20


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _bicubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution with a = -0.5 (Catmull-Rom), what Pillow calls BICUBIC."""
    x = np.abs(x)
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, inner, np.where(x < 2, outer, 0.0))


KERNELS = {"bilinear": _bilinear, "bicubic": _bicubic}


def _weights(start: np.ndarray, length: np.ndarray, full: int, out: int, kernel: str) -> np.ndarray:
    """float32 [B, out, full]: rows that resize the pixels start .. start + length to `out`."""
    lengths, which = np.unique(length, return_inverse=True)
    scale = lengths[:, None, None] / out  # source pixels a result pixel, [U, 1, 1]
    centre = (np.arange(out)[:, None] + 0.5) * scale  # [U, out, 1]
    source = np.arange(full) + 0.5  # [full], within the box
    matrix = KERNELS[kernel]((source - centre) / np.maximum(scale, 1.0))
    matrix = np.where(source < lengths[:, None, None], matrix, 0.0)
    matrix /= matrix.sum(axis=2, keepdims=True)  # [U, out, full]
    # The box's place only shifts the columns: slide over a copy with room on the left. Where a box
    # starts at s, column c of the image is column c - s of the matrix.
    padded = np.pad(matrix.astype(np.float32), ((0, 0), (0, 0), (full, 0)))
    views = sliding_window_view(padded, full, axis=2)  # [U, out, full + 1, full]
    return views[which.reshape(-1), :, full - start]


def resample(
    images: np.ndarray,
    top: np.ndarray,
    left: np.ndarray,
    height: np.ndarray,
    width: np.ndarray,
    size: tuple[int, int],
    kernel: str,
) -> np.ndarray:
    """Resize of each image the box (top, left, height, width), each int64 [B], to `size`.

    images uint8 [B, H, W, C] -> uint8 [B, size[0], size[1], C]. The boxes lie within the images.
    """
    b, h, w, c = images.shape
    out = np.empty((b, *size, c), np.uint8)
    chunk = max(1, _CHUNK_BYTES // (4 * c * max(h, size[0]) * max(w, size[1])))
    for first in range(0, b, chunk):
        part = slice(first, first + chunk)
        columns = _weights(left[part], width[part], w, size[1], kernel)  # [b, w', W]
        rows = _weights(top[part], height[part], h, size[0], kernel)  # [b, h', H]
        x = images[part].transpose(0, 2, 1, 3).astype(np.float32, order="C")  # [b, W, H, C]
        x = columns @ x.reshape(len(x), w, h * c)  # [b, w', H*C]
        x = x.reshape(len(x), size[1], h, c).transpose(0, 2, 1, 3)  # [b, H, w', C]
        x = rows @ x.reshape(len(x), h, size[1] * c)  # [b, h', w'*C]
        np.clip(np.rint(x, out=x), 0, 255, out=x)  # cubic weights overshoot
        out[part] = x.reshape(len(x), *size, c)
    return out
