"""Refusing to write down what a diverged training leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np


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


def advice(aside: Path) -> str:
    """What to do about a loss that is not finite; the state before it lies in the folder."""
    return (
        "lower the learning rate, lengthen the warm-up, set Optimizer.clip_grad, use bfloat16 "
        "instead of float16, or skip some such steps by Global.max_skipped_steps; the last "
        f"checkpoint is untouched, and the state before the step is in {aside}, with the batch's "
        "images in batch.json"
    )
