"""The step line of the log, its timings, and the progress bar on a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta

from passl_mae.logger import get_logger, on_terminal


class Progress:
    """Times the steps of training and says every `print_batch_step` of them how it goes.

    A step is a wait for data (`reader_cost`) and the rest; `batch_cost` is both. Costs and images/s
    are means since the last line; `ips` counts the images of all ranks.
    """

    def __init__(self, epochs: int, steps_per_epoch: int, batch_size: int, print_batch_step: int):
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.batch_size = batch_size
        self.print_batch_step = print_batch_step
        self._bar = None

    def start_epoch(self, epoch: int, step_in_epoch: int) -> None:
        """Begins an epoch, or goes on with it after the steps that an earlier session did."""
        self.epoch = epoch
        self.step = step_in_epoch
        self._epoch_start = self._window_start = self._mark = time.perf_counter()
        self._epoch_first_step = self._window_first_step = step_in_epoch
        self._reader_seconds = 0.0
        if on_terminal():
            from tqdm import tqdm

            self._bar = tqdm(
                total=self.steps_per_epoch,
                initial=step_in_epoch,
                desc=f"epoch {epoch}/{self.epochs}",
                unit="step",
                leave=False,
                dynamic_ncols=True,
            )

    def data_ready(self) -> None:
        """The batch is there: what passed since the last step's end was waiting."""
        self._reader_seconds += time.perf_counter() - self._mark

    def step_done(self) -> bool:
        """Counts a step; True where a line is due."""
        self._mark = time.perf_counter()
        self.step += 1
        if self._bar is not None:
            self._bar.update()
        return self.step % self.print_batch_step == 0 or self.step == self.steps_per_epoch

    def line(self, lr: float, metrics: dict[str, float]) -> float:
        """Writes the line of the steps since the last one; returns their images/s."""
        steps = self.step - self._window_first_step
        seconds = max(self._mark - self._window_start, 1e-9)
        batch_cost = seconds / steps
        ips = self.batch_size / batch_cost
        steps_left = (self.epochs - self.epoch + 1) * self.steps_per_epoch - self.step
        values = listed(metrics)
        get_logger().info(
            f"[Train][Epoch {self.epoch}/{self.epochs}][Iter {self.step}/{self.steps_per_epoch}] "
            f"lr: {lr:.3e}, {values}, reader_cost: {self._reader_seconds / steps:.4f}s, "
            f"batch_cost: {batch_cost:.4f}s, ips: {ips:.1f} images/s (all ranks), "
            f"eta: {timedelta(seconds=round(steps_left * batch_cost))}",
            extra={"quiet": True},
        )
        if self._bar is not None:
            self._bar.set_postfix_str(f"lr {lr:.2e}, {values}, {ips:.0f} images/s")
        self._window_start, self._window_first_step = self._mark, self.step
        self._reader_seconds = 0.0
        return ips

    def end_epoch(self, metrics: dict[str, float]) -> tuple[float, float]:
        """Writes the epoch's line; (seconds, images/s) of this session's part, not evaluation."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        seconds = max(self._mark - self._epoch_start, 1e-9)
        ips = (self.step - self._epoch_first_step) * self.batch_size / seconds
        get_logger().info(
            f"[Train][Epoch {self.epoch}/{self.epochs}] {listed(metrics)}, {seconds:.1f} s, "
            f"ips: {ips:.1f} images/s (all ranks)"
        )
        return seconds, ips


def listed(metrics: Mapping[str, float]) -> str:
    """Metrics as a line of the log has them."""
    return ", ".join(f"{name}: {value:.4f}" for name, value in metrics.items())
