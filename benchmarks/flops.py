"""Floating-point operations of one image, counted from the shapes (a multiply-add is two)."""

from __future__ import annotations


def blocks(tokens: int, dim: int, depth: int, mlp_ratio: float = 4.0) -> float:
    """Products of `depth` transformer blocks: qkv, proj, MLP, and attention's two products."""
    linear = 2 * tokens * dim * dim * (3 + 1 + 2 * mlp_ratio)
    attention = 2 * 2 * tokens * tokens * dim
    return depth * (linear + attention)


def pretraining(
    img_size: int, patch_size: int, embed_dim: int, depth: int,
    decoder_embed_dim: int, decoder_depth: int, mask_ratio: float = 0.75, **_: int,
) -> float:  # fmt: skip
    """A training step of MAE: forward, and twice that backward."""
    patches = (img_size // patch_size) ** 2
    pixels = 3 * patch_size**2
    kept = int(patches * (1 - mask_ratio)) + 1
    forward = 2 * patches * pixels * embed_dim  # the patch projection
    forward += blocks(kept, embed_dim, depth)
    forward += 2 * kept * embed_dim * decoder_embed_dim
    forward += blocks(patches + 1, decoder_embed_dim, decoder_depth)
    forward += 2 * (patches + 1) * decoder_embed_dim * pixels
    return 3 * forward


def finetuning(
    img_size: int, patch_size: int, embed_dim: int, depth: int, num_classes: int = 10, **_: int
) -> float:
    """A training step of the classifier: forward, and twice that backward."""
    patches = (img_size // patch_size) ** 2
    forward = 2 * patches * 3 * patch_size**2 * embed_dim
    forward += blocks(patches + 1, embed_dim, depth) + 2 * embed_dim * num_classes
    return 3 * forward
