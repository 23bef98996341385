"""Which parameters learn slower, and which are not decayed."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paddle import nn

# What the reference's classifier exempts from weight decay besides 1-D parameters. Its pretraining
# exempts nothing more: there the class and mask tokens are decayed, and position tables are frozen.
FINETUNE_NO_DECAY = ("cls_token", "pos_embed")

_BLOCK = re.compile(r"blocks\.(\d+)\.")
_STAGE = re.compile(r"features\.(\d+)\.")  # of an EfficientNet; 0 is its stem


def layer_decay_scales(model: nn.Layer, layer_decay: float) -> dict[str, float]:
    """Learning-rate scale of every parameter under layer-wise decay (BEiT; MAE appendix A.1).

    `layer_decay ** (depth + 1 - layer)`: layer 0 is the patch embedding, class token and position
    table, layer i + 1 is `blocks.i`, and everything behind the blocks (`fc_norm`, `norm`, `head`)
    is layer depth + 1, with scale 1. Of an EfficientNet, layers are the nine children of `features`
    (stem, stages, top), and the head stands behind them.

    Raises:
        ValueError: `layer_decay` outside (0, 1], or a model with neither `blocks` nor `features`.
    """
    if not 0.0 < layer_decay <= 1.0:
        raise ValueError(f"layer_decay must be in (0, 1], got {layer_decay}")
    depth = len(getattr(model, "blocks", ())) or len(getattr(model, "features", (None,))) - 1
    if depth == 0:
        raise ValueError(
            f"layer decay needs a model with blocks; {type(model).__name__} has none: set "
            "Optimizer.layer_decay to 1"
        )
    return {
        name: layer_decay ** (depth + 1 - _layer_of(name, depth))
        for name, _ in model.named_parameters()
    }


def _layer_of(name: str, depth: int) -> int:
    if name in ("cls_token", "pos_embed") or name.startswith("patch_embed."):
        return 0
    block, stage = _BLOCK.match(name), _STAGE.match(name)
    if stage:
        return int(stage.group(1))
    return int(block.group(1)) + 1 if block else depth + 1


def no_weight_decay(name: str, param: Any, skip: Collection[str] = ()) -> bool:
    """Whether a parameter is exempt from weight decay: 1-D ones, biases, and those named in `skip`.

    The reference passes `FINETUNE_NO_DECAY` when it finetunes, and nothing when it pretrains.
    """
    return param.ndim == 1 or name.endswith(".bias") or name in skip
