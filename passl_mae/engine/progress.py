"""The step line of the log, its timings, and the progress bar on a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from passl_mae.logger import get_logger
from passl_mae.terminal import bar


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
        self._begin = time.perf_counter()

    def start_epoch(self, epoch: int, step_in_epoch: int) -> None:
        """Begins an epoch, or goes on with it after the steps that an earlier session did."""
        self.epoch = epoch
        self.step = step_in_epoch
        self._epoch_start = self._window_start = self._mark = time.perf_counter()
        self._epoch_first_step = self._window_first_step = step_in_epoch
        self._reader_seconds = 0.0
        name = f"epoch {epoch}/{self.epochs}"
        self._bar = bar(self.steps_per_epoch, name, "step", initial=step_in_epoch)

    def data_ready(self) -> None:
        """The batch is there: what passed since the last step's end was waiting."""
        self._reader_seconds += time.perf_counter() - self._mark

    def step_done(self) -> bool:
        """Counts a step; True where a line is due."""
        self._mark = time.perf_counter()
        self.step += 1
        self._bar.update()
        return self.step % self.print_batch_step == 0 or self.step == self.steps_per_epoch

    def line(self, lr: float, metrics: dict[str, float]) -> float:
        """Writes the line of the steps since the last one; returns their images/s."""
        steps = self.step - self._window_first_step
        seconds = max(self._mark - self._window_start, 1e-9)
        batch_cost = seconds / steps
        ips = self.batch_size / batch_cost
        steps_left = (self.epochs - self.epoch + 1) * self.steps_per_epoch - self.step
        values, eta = listed(metrics), timedelta(seconds=round(steps_left * batch_cost))
        get_logger().info(
            f"[Train][Epoch {self.epoch}/{self.epochs}][Iter {self.step}/{self.steps_per_epoch}] "
            f"lr: {lr:.3e}, {values}, reader_cost: {self._reader_seconds / steps:.4f}s, "
            f"batch_cost: {batch_cost:.4f}s, ips: {ips:.1f} images/s (all ranks), "
            f"eta: {eta}",
            extra={"quiet": True},
        )
        self._bar.set_postfix_str(f"{values}, {ips:.0f} images/s, run eta {eta}")
        self._window_start, self._window_first_step = self._mark, self.step
        self._reader_seconds = 0.0
        return ips

    def end_epoch(self, metrics: dict[str, float]) -> tuple[float, float]:
        """Writes the epoch's line; (seconds, images/s) of this session's part, not evaluation."""
        self._bar.close()
        seconds = max(self._mark - self._epoch_start, 1e-9)
        ips = (self.step - self._epoch_first_step) * self.batch_size / seconds
        get_logger().info(
            f"[Train][Epoch {self.epoch}/{self.epochs}] {listed(metrics)}, {seconds:.1f} s, "
            f"ips: {ips:.1f} images/s (all ranks)"
        )
        return seconds, ips

    def sum_up(
        self, step: int, weights: Path, rows: Sequence[Mapping], tested: Mapping[str, float]
    ) -> None:
        """The last lines of a run: where its weights are, and a table of how it went.

        Args:
            step: updates that were made; weights: the finished weights, in the run's folder.
            rows: of `metrics.jsonl`; tested: metrics on the test images, if any.
        """
        get_logger().info(f"finished after {step} steps; weights: {weights}")
        session = time.perf_counter() - self._begin
        table = summary(session, self.epochs, step, rows, tested, weights.parent)
        width = max(len(name) for name, _ in table)
        lines = [f"  {name:<{width}}  {value}" for name, value in table]
        get_logger().info("\n".join(["summary of the run", *lines]))


def summary(
    session: float,
    epochs: int,
    step: int,
    rows: Sequence[Mapping[str, Any]],
    tested: Mapping[str, float],
    folder: Path,
) -> list[tuple[str, str]]:
    """Name and value of each line of the table at the end of a run.

    Args:
        session: seconds since this process began the run, or went on with it.
        rows: of `metrics.jsonl`, of all sessions; of a loss the smallest is the best, of the other
            metrics the largest.
        folder: what lies in it is listed with its size.
    """
    seconds = sum(row["seconds"] for row in rows)
    images = sum(row["seconds"] * row["ips"] for row in rows)
    table = [
        ("time", f"{_clock(session)} in this session; steps of all epochs: {_clock(seconds)}"),
        ("epochs", f"{epochs} ({step} steps)"),
        ("images/s", f"{images / max(seconds, 1e-9):.1f} (all ranks)"),
    ]
    metrics = [name for name in rows[-1] if name.startswith(("train_", "eval_"))] if rows else []
    for name in metrics:
        values = {row["epoch"]: row[name] for row in rows if name in row}
        best = (min if name.endswith("loss") else max)(values, key=values.__getitem__)
        last = list(values.values())[-1]
        table.append((name, f"last {last:.4f}, best {values[best]:.4f} (epoch {best})"))
    table += [(f"test_{name}", f"{value:.4f}") for name, value in tested.items()]
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    table += [("files", f"in {folder}")]
    table += [("", f"{_size(entry):>9}  {entry.name}{'/' * entry.is_dir()}") for entry in entries]
    return table


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _size(entry: Path) -> str:
    """Of a file, or of all files in a folder."""
    files = entry.rglob("*") if entry.is_dir() else [entry]
    size = sum(file.stat().st_size for file in files if file.is_file())
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def listed(metrics: Mapping[str, float]) -> str:
    """Metrics as a line of the log has them."""
    return ", ".join(f"{name}: {value:.4f}" for name, value in metrics.items())
