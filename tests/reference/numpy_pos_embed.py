"""Sine-cosine tables and their bicubic interpolation, one number at a time."""

import math

import numpy as np


def sincos(embed_dim, rows, cols):
    """[rows * cols, embed_dim]: quarters sin(col), cos(col), sin(row), cos(row)."""
    quarter = embed_dim // 4
    table = np.zeros((rows * cols, embed_dim))
    for row in range(rows):
        for col in range(cols):
            for i in range(quarter):
                frequency = 1.0 / 10000 ** (i / quarter)
                table[row * cols + col, i] = math.sin(col * frequency)
                table[row * cols + col, quarter + i] = math.cos(col * frequency)
                table[row * cols + col, 2 * quarter + i] = math.sin(row * frequency)
                table[row * cols + col, 3 * quarter + i] = math.cos(row * frequency)
    return table


def _kernel(x, a=-0.75):
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    if x < 2:
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return 0.0


def bicubic(image, height, width):
    """[h, w, D] -> [height, width, D]: sixteen neighbours, half-pixel centres, edges repeated."""
    h, w, dim = image.shape
    out = np.zeros((height, width, dim))
    for i in range(height):
        for j in range(width):
            y, x = (i + 0.5) * h / height - 0.5, (j + 0.5) * w / width - 0.5
            for m in range(math.floor(y) - 1, math.floor(y) + 3):
                for n in range(math.floor(x) - 1, math.floor(x) + 3):
                    value = image[min(max(m, 0), h - 1), min(max(n, 0), w - 1)]
                    out[i, j] += _kernel(y - m) * _kernel(x - n) * value
    return out
