"""Fixed sine-cosine position tables (Vaswani et al. 2017, sec. 3.5; 2-D as in MoCo v3 and MAE)."""

from __future__ import annotations

import numpy as np

from passl_mae.models.layers import Size, to_pair


def get_1d_sincos_pos_embed_from_grid(embed_dim: int, pos: np.ndarray) -> np.ndarray:
    """Sines then cosines of `pos` [M] at embed_dim/2 frequencies 10000^(-2i/embed_dim).

    Returns float64 [M, embed_dim]. Raises ValueError for an odd `embed_dim`.
    """
    if embed_dim % 2:
        raise ValueError(f"a sine-cosine table needs an even embed_dim, got {embed_dim}")
    omega = 10000.0 ** (-np.arange(embed_dim // 2, dtype=np.float64) / (embed_dim / 2.0))
    angles = np.outer(np.asarray(pos, dtype=np.float64).reshape(-1), omega)  # [M, D/2]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def get_2d_sincos_pos_embed(embed_dim: int, grid_size: Size, cls_token: bool = False) -> np.ndarray:
    """Position table of a grid of patches, row by row; float64 [(1 +) rows*cols, embed_dim].

    The first half of the channels holds the column, the second half the row, as in the
    reference ("w goes first"). With `cls_token` a row of zeros stands in front.

    Raises:
        ValueError: `embed_dim` is not divisible by 4.
    """
    if embed_dim % 4:
        raise ValueError(f"a 2-D sine-cosine table needs embed_dim % 4 == 0, got {embed_dim}")
    rows, cols = to_pair(grid_size, "grid_size")
    row, col = np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij")  # [rows, cols]
    table = np.concatenate(
        [
            get_1d_sincos_pos_embed_from_grid(embed_dim // 2, col),
            get_1d_sincos_pos_embed_from_grid(embed_dim // 2, row),
        ],
        axis=1,
    )  # [L, D]
    if cls_token:
        table = np.concatenate([np.zeros([1, embed_dim]), table], axis=0)  # [1 + L, D]
    return table
