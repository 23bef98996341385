"""Refusing to write down what a diverged training leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from paddle import nn

from passl_mae import distributed
from passl_mae.engine.checkpoint import Checkpoints


def refuse_broken_metrics(metrics: Mapping[str, float], step: int) -> None:
    """ValueError where a metric of the evaluation is not finite."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise ValueError(
                f"{name} is {value} after step {step}: the training has diverged; lower the "
                "learning rate or set Optimizer.clip_grad; the last checkpoint is untouched"
            )


def refuse_broken_weights(state: Mapping[str, np.ndarray], step: int) -> None:
    """ValueError where a weight is not finite: a gradient overflowed under a finite loss."""
    for name, array in state.items():
        if not np.isfinite(array).all():
            raise ValueError(
                f"{name} is not finite after step {step}: lower the learning rate or set "
                "Optimizer.clip_grad; nothing was saved, the last checkpoint is untouched"
            )


def refuse_broken_parameters(model: nn.Layer, step: int) -> None:
    """As above for what the model learns: then no skipped step, and no state set aside, helps."""
    learned = [(name, p) for name, p in model.named_parameters() if not p.stop_gradient]
    refuse_broken_weights({name: param.numpy() for name, param in learned}, step)


def advice(aside: Path) -> str:
    """What to do about a loss that is not finite; the state before it lies in the folder."""
    return (
        "lower the learning rate, lengthen the warm-up, set Optimizer.clip_grad, use bfloat16 "
        "instead of float16, or skip some such steps by Global.max_skipped_steps; the last "
        f"checkpoint is untouched, and the state before the step is in {aside}, with the batch's "
        "images in batch.json"
    )


def advice_when_late(loss: float, first: int, last: int) -> str:
    """What to say of a loss that was read only after updates had been made with it."""
    return (
        f"the loss is {loss} in one of the steps {first} to {last}, and the weights since then are "
        "worthless; nothing of them was saved. Lower the learning rate, lengthen the warm-up, set "
        "Optimizer.clip_grad or use bfloat16 instead of float16, and go on from the last "
        "checkpoint with Global.checkpoints=latest; Global.check_loss=step finds the very step, "
        "and keeps the state before it"
    )


def put_aside(
    checkpoints: Checkpoints, state: dict[str, dict], batch: dict, indices: np.ndarray
) -> Path:
    """Writes the state before a step, and what was in its batch, beside the checkpoints.

    Args:
        batch: of `batch.json`; "step" is the step's number.
        indices: int [b], this rank's images; every rank has to call.
    """
    every = distributed.gather_over_ranks(indices).astype(int).ravel().tolist()
    aside = checkpoints.folder / f"nonfinite_step_{batch['step']:06d}"
    if distributed.is_main():
        checkpoints.write(aside.name, state, {"batch.json": {**batch, "indices": every}})
    distributed.barrier()
    return aside
