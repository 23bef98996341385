"""Weights for another grid of patches or another number of channels; only done on request."""

from __future__ import annotations

import math

import numpy as np

_CUBIC_A = -0.75  # the kernel of PyTorch's and Paddle's bicubic interpolation


def resize_pos_embed(
    pos_embed: np.ndarray,
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    num_prefix: int = 1,
) -> np.ndarray:
    """Interpolates a position table [1, num_prefix + rows*cols, D] to another grid, bicubically.

    The rows of the prefix (class token) are kept. As the reference does it: half-pixel centres
    (`align_corners=False`), a = -0.75, edges repeated, no smoothing when it shrinks.

    Raises:
        ValueError: the table does not fit `old_grid`, or a grid is not two positive ints.
    """
    for name, grid in (("old_grid", old_grid), ("new_grid", new_grid)):
        if len(grid) != 2 or not all(int(n) == n and n > 0 for n in grid):
            raise ValueError(f"{name} must be (rows, columns), got {grid!r}")
    (rows, cols), (new_rows, new_cols) = old_grid, new_grid
    if pos_embed.ndim != 3 or pos_embed.shape[:2] != (1, num_prefix + rows * cols):
        raise ValueError(
            f"a position table of {list(pos_embed.shape)} is not [1, {num_prefix} + {rows}*{cols}, "
            "D]: give the grid that it was made for"
        )
    dim = pos_embed.shape[2]
    table = pos_embed[0, num_prefix:].reshape(rows, cols, dim).astype(np.float64)
    table = np.tensordot(_cubic_matrix(rows, new_rows), table, axes=1)  # [new_rows, cols, D]
    table = np.tensordot(_cubic_matrix(cols, new_cols), table, axes=(1, 1))  # [new_cols, rows, D]
    table = table.transpose(1, 0, 2).reshape(1, new_rows * new_cols, dim)
    return np.concatenate([pos_embed[:, :num_prefix], table.astype(pos_embed.dtype)], axis=1)


def _cubic_matrix(old: int, new: int) -> np.ndarray:
    """[new, old]: what each old sample gives to each new one (Keys 1981)."""
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centre).astype(int) - 1
    matrix = np.zeros((new, old))
    for tap in range(4):
        distance = np.abs(centre - (first + tap))
        near = ((_CUBIC_A + 2) * distance - (_CUBIC_A + 3)) * distance**2 + 1
        far = _CUBIC_A * (((distance - 5) * distance + 8) * distance - 4)
        source = np.clip(first + tap, 0, old - 1)
        np.add.at(matrix, (np.arange(new), source), np.where(distance <= 1, near, far))
    return matrix


def grid_of(pos_embed: np.ndarray, grid: tuple[int, int] | None) -> tuple[int, int]:
    """The grid of a table with a class token: `grid`, or the square that fits.

    Raises:
        ValueError: no `grid` is given and the number of patches is no square.
    """
    if grid is not None:
        return tuple(grid)
    patches = pos_embed.shape[1] - 1
    side = math.isqrt(max(patches, 0))
    if side * side != patches or side == 0:
        raise ValueError(
            f"a position table of {patches} patches is not square: say its grid as "
            "old_grid=(rows, columns)"
        )
    return side, side


def adapt_channels(weight: np.ndarray, in_chans: int, how: str) -> np.ndarray:
    """Makes a patch projection [D, C, p, q] fit images of `in_chans` channels.

    "average" gives each channel the mean over the old ones, "repeat" takes the old ones in turn;
    both are scaled by C / in_chans, so that a grey image gives the patch embeddings it gave
    (for "repeat", where in_chans is a multiple of C).

    Raises:
        ValueError: another `how`, no channels, or a weight that is no patch projection.
    """
    if in_chans < 1:
        raise ValueError(f"a patch projection takes at least 1 channel, got {in_chans}")
    if weight.ndim != 4:
        raise ValueError(f"a patch projection is [D, C, p, q], got {list(weight.shape)}")
    old_chans = weight.shape[1]
    if how == "average":
        adapted = np.repeat(weight.mean(axis=1, keepdims=True, dtype=np.float64), in_chans, axis=1)
    elif how == "repeat":
        adapted = weight[:, np.arange(in_chans) % old_chans].astype(np.float64)
    else:
        raise ValueError(f"channels must be 'average' or 'repeat', got {how!r}")
    return (adapted * (old_chans / in_chans)).astype(weight.dtype)
