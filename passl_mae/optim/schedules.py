"""Learning-rate schedules."""

from __future__ import annotations

import math

from paddle.optimizer.lr import LRScheduler


class WarmupCosineLR(LRScheduler):
    """Linear warm-up, then half a cosine down to `end_lr` (SGDR, Loshchilov & Hutter 2016, eq. 5).

    The unit of "epochs" is whatever `step()` counts: epochs, as in the tutorial, or iterations.

        t < warmup:  lr = warmup_start_lr + (learning_rate - warmup_start_lr) * t / warmup
        otherwise:   lr = end_lr + (learning_rate - end_lr) / 2
                          * (1 + cos(pi * (t - warmup) / (total - warmup)))

    Past `total_epochs` it stays at `end_lr`.

    Args:
        learning_rate: the peak, reached after `warmup_epochs` steps.
        warmup_start_lr: the rate of step 0.
        end_lr: the rate of step `total_epochs`.

    Raises:
        ValueError: a negative rate, or not 0 <= warmup_epochs <= total_epochs, total_epochs > 0.
    """

    def __init__(
        self,
        learning_rate: float,
        warmup_start_lr: float,
        end_lr: float,
        warmup_epochs: int,
        total_epochs: int,
        last_epoch: int = -1,
        verbose: bool = False,
    ):
        if min(learning_rate, warmup_start_lr, end_lr) < 0:
            raise ValueError(
                "learning rates must not be negative, got "
                f"learning_rate {learning_rate}, warmup_start_lr {warmup_start_lr}, end_lr {end_lr}"
            )
        if total_epochs <= 0 or not 0 <= warmup_epochs <= total_epochs:
            raise ValueError(
                "the schedule needs 0 <= warmup_epochs <= total_epochs and total_epochs > 0, got "
                f"warmup_epochs {warmup_epochs}, total_epochs {total_epochs}"
            )
        self.warmup_epochs = warmup_epochs
        self.total_epochs = total_epochs
        self.warmup_start_lr = warmup_start_lr
        self.end_lr = end_lr
        super().__init__(learning_rate, last_epoch, verbose)

    def get_lr(self) -> float:
        if self.last_epoch < self.warmup_epochs:
            share = self.last_epoch / self.warmup_epochs
            return self.warmup_start_lr + (self.base_lr - self.warmup_start_lr) * share
        steps = max(1, self.total_epochs - self.warmup_epochs)
        progress = min(1.0, (self.last_epoch - self.warmup_epochs) / steps)
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.end_lr + (self.base_lr - self.end_lr) * cosine
