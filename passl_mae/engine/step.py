"""One update of the weights: gradients of a batch's pieces, the optimizer, what the loss was."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import paddle
from paddle import nn

from passl_mae import distributed, runtime
from passl_mae.data.loader import Batch
from passl_mae.engine.precision import Precision
from passl_mae.engine.tasks import Task
from passl_mae.evaluation import WeightedMean

Pieces = list[dict[str, paddle.Tensor]]

# Batches whose pinned memory is kept: a GPU that is steps behind may still be copying from it.
_IN_FLIGHT = 4


class TrainStep:
    """The forward and backward pass of a step, and its update, apart: between them the loss can be
    looked at.

    Args:
        model: what computes, wrapped for several ranks where there are some.
        accum_iter: pieces a rank's batch is computed in.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Layer,
        optimizer: paddle.optimizer.Optimizer,
        precision: Precision,
        accum_iter: int,
        seed: int,
    ):
        self.task = task
        self.model = model
        self.optimizer = optimizer
        self.precision = precision
        self.accum_iter = accum_iter
        self.seed = seed

    def inputs(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Pieces]]:
        """Every batch with its inputs, on the device and in pieces."""
        return inputs_on_device(batches, self.task.prepare, self.accum_iter)

    def gradients(self, pieces: Pieces, step: int) -> Pieces:
        """Adds up the gradients of the batch's pieces; the task's values of each, on the device.

        Args:
            pieces: of one batch, from `inputs`.
            step: steps done before; random numbers are drawn from it.
        """
        runtime.seed_everything(self.seed, step, distributed.rank())
        results: Pieces = []
        for number, piece in enumerate(pieces, 1):
            with distributed.gradient_sync(self.model, enabled=number == len(pieces)):
                with self.precision.autocast():
                    values = self.task.training_step(self.model, piece)
                self.precision.scaler.scale(values["loss"] / len(pieces)).backward()
            results.append({name: value.detach() for name, value in values.items()})
        return results

    def update(self) -> None:
        """The optimizer takes its step with the gradients."""
        self.precision.scaler.step(self.optimizer)
        self.precision.scaler.update()


class StepValues:
    """The loss and metrics of steps: means since the epoch's begin, and since the last log line.

    Args:
        names: of the task's values.
    """

    def __init__(self, names: Sequence[str]):
        self.epoch_means = WeightedMean(names)
        self.window = WeightedMean(names)  # since the last line of the log
        self._unread: list[tuple[Pieces, int]] = []

    @property
    def unread(self) -> int:
        """Steps whose values are still on the device."""
        return len(self._unread)

    def add(self, values: Pieces, count: int) -> None:
        """Notes what `TrainStep.gradients` gave for `count` images; nothing is waited for."""
        self._unread.append((values, count))

    def read(self) -> float:
        """Takes what is unread into the means, and gives the last step's loss; all ranks call.

        Where a loss is not finite on some rank, nothing is taken, and that loss is given.
        """
        if not self._unread:
            return 0.0
        unread, self._unread = self._unread, []
        read = _to_numbers([values for values, _ in unread])
        wrong = [values["loss"] for values in read if not math.isfinite(values["loss"])]
        loss = distributed.finite_everywhere(wrong[0] if wrong else read[-1]["loss"])
        if math.isfinite(loss):
            for values, (_, count) in zip(read, unread):
                self.epoch_means.update(values, count)
                self.window.update(values, count)
        return loss

    def state_dict(self) -> dict[str, dict]:
        return {"epoch_means": self.epoch_means.state_dict(), "window": self.window.state_dict()}

    def load_state_dict(self, state: Mapping[str, dict]) -> None:
        self.epoch_means.load_state_dict(state["epoch_means"])
        self.window.load_state_dict(state["window"])


def _to_numbers(results: list[Pieces]) -> list[dict[str, float]]:
    """The values of steps, each the mean over its pieces; waits for the device once."""
    flat = [value for pieces in results for values in pieces for value in values.values()]
    if runtime.on_gpu():  # one copy from the device for all of them
        stacked = paddle.stack([value.astype("float32").reshape([]) for value in flat])
        numbers = iter(stacked.numpy().tolist())
    else:
        numbers = iter([float(value) for value in flat])
    means = []
    for pieces in results:
        totals: dict[str, float] = {}
        for values in pieces:
            for name in values:
                totals[name] = totals.get(name, 0.0) + next(numbers) / len(pieces)
        means.append(totals)
    return means


def inputs_on_device(
    batches: Iterable[Batch],
    prepare: Callable[[Batch], dict[str, np.ndarray]],
    pieces: int,
    ahead: int | None = None,
) -> Iterator[tuple[Batch, Pieces]]:
    """Every batch with the inputs that a task makes of it, as tensors, cut into pieces.

    Args:
        prepare: a task's `prepare`.
        ahead: batches whose copies are begun before they are needed; None: one on a GPU, where a
            copy runs beside the computing, none on the CPU, where it does not.
    """
    if ahead is None:
        ahead = 1 if runtime.on_gpu() else 0
    waiting: deque[tuple[Batch, Pieces]] = deque()
    held: deque = deque(maxlen=_IN_FLIGHT if ahead else 0)
    for batch in batches:
        parts = split_batch(prepare(batch), pieces)
        hosts = [{name: _on_host(array) for name, array in part.items()} for part in parts]
        held.append(hosts)
        waiting.append((batch, [{k: _to_device(v) for k, v in part.items()} for part in hosts]))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


def _on_host(array: np.ndarray) -> paddle.Tensor:
    """In pinned memory where there is a GPU: a copy from there need not be waited for."""
    place = paddle.CUDAPinnedPlace() if runtime.on_gpu() else None
    return paddle.to_tensor(array, place=place)


def _to_device(tensor: paddle.Tensor) -> paddle.Tensor:
    return tensor.cuda(blocking=False) if runtime.on_gpu() else tensor


def split_batch(inputs: dict[str, np.ndarray], pieces: int) -> list[dict[str, np.ndarray]]:
    """Equal parts of every array along its first axis."""
    if pieces == 1:
        return [inputs]
    parts = {name: np.split(array, pieces) for name, array in inputs.items()}
    return [{name: arrays[i] for name, arrays in parts.items()} for i in range(pieces)]
