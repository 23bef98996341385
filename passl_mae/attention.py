"""Where a classifier's encoder looks: attention probabilities of a block, from its own weights."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F

from passl_mae.models.layers import Attention
from passl_mae.models.vit import MAE_FineTune


def attention_probabilities(model: MAE_FineTune, images: np.ndarray, block: int = -1) -> np.ndarray:
    """softmax(q k^T / sqrt(d)) of one block, [B, heads, N, N]; row i is what token i looks at.

    The model is run as it is, in evaluation mode; the probabilities, which its fast path does not
    keep, are computed again from the same input and projection.

    Args:
        images: float32 [B, C, H, W], normalised.
        block: 0 is the first; negative ones count from the last.

    Raises:
        ValueError: a block that the model does not have.
    """
    depth = len(model.blocks)
    if not -depth <= block < depth:
        raise ValueError(f"block {block}: the model has blocks 0 to {depth - 1} (-1 is the last)")
    attention = model.blocks[block % depth].attn
    seen = []
    hook = attention.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    training = model.training
    model.eval()
    try:
        with paddle.no_grad():
            model.forward_features(paddle.to_tensor(images))
            return _probabilities(attention, seen[0]).numpy()
    finally:
        hook.remove()
        if training:
            model.train()


def _probabilities(attention: Attention, x: paddle.Tensor) -> paddle.Tensor:
    batch, tokens, dim = x.shape
    heads = attention.num_heads
    qkv = attention.qkv(x).reshape([batch, tokens, 3, heads, dim // heads])
    q, k, _ = qkv.astype("float32").transpose([2, 0, 3, 1, 4])  # each [B, h, N, D/h]
    return F.softmax(paddle.matmul(q, k, transpose_y=True) * attention.scale, axis=-1)


def attention_of(
    probabilities: np.ndarray, grid: tuple[int, int], patch: tuple[int, int] | None = None
) -> np.ndarray:
    """What one token gives to each patch, [B, heads, rows, cols]; the class token's share is left.

    Args:
        probabilities: [B, heads, N, N] with the class token first.
        grid: (rows, cols) of patches.
        patch: (row, col) of the patch that looks; None for the class token.

    Raises:
        ValueError: a patch outside the grid.
    """
    rows, cols = grid
    query = 0
    if patch is not None:
        row, col = patch
        if not (0 <= row < rows and 0 <= col < cols):
            raise ValueError(
                f"patch {row},{col} lies outside the grid of {rows} rows and {cols} columns"
            )
        query = 1 + row * cols + col
    given = probabilities[:, :, query, 1:]
    return given.reshape(*given.shape[:2], rows, cols)
