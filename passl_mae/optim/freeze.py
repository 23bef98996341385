"""Which parameters learn: partial finetuning by name (MAE paper, fig. 9)."""

from __future__ import annotations

import re

from paddle import nn

from passl_mae.optim.batch_norm import freeze_batch_norm

FREEZE = re.compile(r"none|encoder|all-but-last-(\d+)")


def freeze(model: nn.Layer, how: str, statistics: bool | None = None) -> list[str]:
    """Stops the gradients of a classifier's lower layers; returns the names that are frozen.

    Args:
        how: "none"; "encoder": all but what stands behind the blocks (the last norm and the
            head), and of a ResNet or EfficientNet, without blocks, all but the head;
            "all-but-last-K": the last K blocks learn too.
        statistics: whether BatchNorm before the head keeps its running ones; None: where a network
            without blocks has its encoder frozen.

    Raises:
        ValueError: another word, more blocks than the model has, neither blocks nor head, or
            statistics of a model without BatchNorm.
    """
    match = FREEZE.fullmatch(how)
    if match is None:
        raise ValueError(f"freeze must be none, encoder or all-but-last-K, got {how!r}")
    depth = len(getattr(model, "blocks", ()))
    all_but_head = how == "encoder" and depth == 0 and hasattr(model, "head")
    if statistics or (statistics is None and all_but_head):
        freeze_batch_norm(model, but=("head",))
    if how == "none":
        return []
    free_blocks = int(match[1] or 0)
    if all_but_head:
        return _freeze_all_but_the_head(model)
    if depth == 0 or free_blocks > depth:
        raise ValueError(f"freeze is {how} and {type(model).__name__} has {depth} blocks")
    below = ["cls_token", "pos_embed", "patch_embed."]
    below += [f"blocks.{number}." for number in range(depth - free_blocks)]
    frozen = []
    for name, param in model.named_parameters():
        if name.startswith(tuple(below)):
            param.stop_gradient = True
            frozen.append(name)
    return frozen


def _freeze_all_but_the_head(model: nn.Layer) -> list[str]:
    frozen = []
    for name, param in model.named_parameters():
        if not name.startswith("head."):
            param.stop_gradient = True
            frozen.append(name)
    return frozen
