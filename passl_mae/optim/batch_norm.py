"""BatchNorm that keeps its statistics while the rest learns."""

from __future__ import annotations

from collections.abc import Collection

from paddle import nn

_KINDS = (nn.BatchNorm1D, nn.BatchNorm2D, nn.BatchNorm3D)


def freeze_batch_norm(
    model: nn.Layer, affine: bool = False, but: Collection[str] = ()
) -> list[str]:
    """Has a model's BatchNorm layers work in training as in evaluation; returns their names.

    They normalise by their running statistics and leave these alone, whatever `model.train()` says:
    for finetuning with small batches, whose statistics are worse than those of the pretraining.

    Args:
        affine: their scales and shifts do not learn, either.
        but: children of the model whose layers are left as they are.

    Raises:
        ValueError: a model without BatchNorm, or a kind of it that cannot be frozen.
    """
    found = {
        name: layer
        for name, layer in model.named_sublayers(include_self=True)
        if isinstance(layer, (*_KINDS, nn.SyncBatchNorm)) and name.split(".")[0] not in but
    }
    if not found:
        raise ValueError(f"{type(model).__name__} has no BatchNorm to freeze")
    for name, layer in found.items():
        # A layer with a forward of its own says by `fixed` that it can be frozen.
        obeys = any(type(layer).forward is kind.forward for kind in _KINDS)
        if not obeys and not hasattr(layer, "fixed"):
            raise ValueError(f"{name or 'the model'}: {type(layer).__name__} cannot be frozen")
    for layer in found.values():
        if hasattr(layer, "fixed"):
            layer.fixed = True
        else:
            layer._use_global_stats = True
        for param in (layer.weight, layer.bias):
            if affine and param is not None:
                param.stop_gradient = True
    return list(found)
