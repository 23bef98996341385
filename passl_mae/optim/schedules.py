"""Learning-rate schedules."""

from __future__ import annotations

import math

from paddle.optimizer.lr import LRScheduler


class WarmupCosineLR(LRScheduler):
    """Linear warm-up, a hold, half a cosine to `end_lr` (SGDR, Loshchilov & Hutter 2016, eq. 5).

    The unit of "epochs" is whatever `step()` counts: epochs, as in the tutorial, or iterations.

        t < warmup:  lr = warmup_start_lr + (learning_rate - warmup_start_lr) * t / warmup
        t < start:   lr = learning_rate, where start = warmup + hold
        otherwise:   lr = end_lr + (learning_rate - end_lr) / 2
                          * (1 + cos(pi * (t - start) / (total - start)))

    Past `total_epochs` it stays at `end_lr`.

    Args:
        learning_rate: the peak, reached after `warmup_epochs` steps.
        warmup_start_lr: the rate of step 0.
        end_lr: the rate of step `total_epochs`.
        hold_epochs: steps at the peak between the warm-up and the cosine.

    Raises:
        ValueError: a negative rate or hold, not 0 <= warmup_epochs <= total_epochs, total_epochs 0,
            or no room for the hold.
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
        hold_epochs: int = 0,
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
        if hold_epochs < 0 or warmup_epochs + hold_epochs > total_epochs:
            raise ValueError(
                "the schedule needs hold_epochs >= 0 and warmup_epochs + hold_epochs <= "
                f"total_epochs, got hold_epochs {hold_epochs}, warmup_epochs {warmup_epochs}, "
                f"total_epochs {total_epochs}"
            )
        self.warmup_epochs = warmup_epochs
        self.hold_epochs = hold_epochs
        self.total_epochs = total_epochs
        self.warmup_start_lr = warmup_start_lr
        self.end_lr = end_lr
        super().__init__(learning_rate, last_epoch, verbose)

    def get_lr(self) -> float:
        if self.last_epoch < self.warmup_epochs:
            share = self.last_epoch / self.warmup_epochs
            return self.warmup_start_lr + (self.base_lr - self.warmup_start_lr) * share
        start = self.warmup_epochs + self.hold_epochs
        steps = max(1, self.total_epochs - start)
        progress = min(1.0, max(0, self.last_epoch - start) / steps)
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.end_lr + (self.base_lr - self.end_lr) * cosine
