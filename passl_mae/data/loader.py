"""Batches for training (shuffled, split by rank) and for evaluation (every sample once)."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from passl_mae.data.random import BatchRandom, keyed_generator

# The last element of every key says what the numbers are for, so no two uses share a stream.
_SHUFFLE, _TRAIN, _EVAL = 0, 1, 2


class Batch(NamedTuple):
    """What one process sees of one step.

    images: float32 [b, C, H, W] (whatever the transform returns).
    labels: int64 [b].
    indices: int64 [b], the samples' places in the data set.
    random: further draws for these samples, e.g. the mask noise of a task.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    random: BatchRandom


Transform = Callable[[np.ndarray, BatchRandom], np.ndarray]


class TrainLoader:
    """Shuffled batches that are a pure function of (seed, epoch, step).

    The global batch is a slice of the epoch's permutation and a rank takes its contiguous part of
    it, augmentation included: N ranks together see what one process would. The last, incomplete
    batch of an epoch is dropped.

    Args:
        dataset: `len()` and `fetch(indices)`, or `fetch_random(indices, random)`, whose draws come
            before the transform's.
        transform: `t(images uint8 [b, H, W, C], random) -> images float32 [b, C, H, W]`.
        batch_size: samples a step over all ranks.
        seed: of the order and of the augmentation, 0 or more.
        rank, world_size: this process and how many there are.
        prefetch: batches made ahead in a background thread; 0 makes them in the caller's.
        shuffle: False keeps the data set's order.

    Raises:
        ValueError: the batch is larger than the data set or does not divide by `world_size`.
    """

    def __init__(
        self,
        dataset,
        transform: Transform,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 2,
        shuffle: bool = True,
    ) -> None:
        _check(batch_size, seed, rank, world_size, prefetch)
        if batch_size > len(dataset):
            raise ValueError(
                f"batch_size {batch_size} is larger than the data set of {len(dataset)} images: "
                "lower batch_size"
            )
        if batch_size % world_size:
            raise ValueError(
                f"batch_size {batch_size} (over all ranks) does not divide by {world_size} ranks: "
                f"take a multiple of {world_size}"
            )
        self.dataset = dataset
        self.transform = transform
        self.batch_size = batch_size
        self.seed = seed
        self.prefetch = prefetch
        self.shuffle = shuffle
        self.steps_per_epoch = len(dataset) // batch_size
        local = batch_size // world_size
        self._part = slice(rank * local, (rank + 1) * local)

    def __len__(self) -> int:
        return self.steps_per_epoch

    def order(self, epoch: int) -> np.ndarray:
        """int64 [N]: the order in which this epoch goes through the data set."""
        if not self.shuffle:
            return np.arange(len(self.dataset))
        return keyed_generator((self.seed, epoch, 0, _SHUFFLE)).permutation(len(self.dataset))

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """This rank's batches of one epoch from `start_step` on; what lies before is not loaded.

        Raises:
            ValueError: `start_step` lies outside 0 .. steps_per_epoch.
        """
        if not 0 <= start_step <= self.steps_per_epoch:
            raise ValueError(
                f"start_step {start_step} lies outside the epoch of {self.steps_per_epoch} steps"
            )
        order = self.order(epoch)

        def make(step: int) -> Batch:
            first = step * self.batch_size
            indices = order[first : first + self.batch_size][self._part]
            key = (self.seed, epoch, step, _TRAIN)
            random = BatchRandom(key, self.batch_size, self._part)
            return _load(self.dataset, self.transform, indices, random)

        return _prefetched(make, range(start_step, self.steps_per_epoch), self.prefetch)


class EvalLoader:
    """Every sample exactly once over all ranks, in order; the last batch is smaller, not padded.

    Each global batch is cut into contiguous parts that differ by at most one sample. A part may be
    empty at the end, and is then left out: ranks can differ by one batch, so reduce after the
    loop, not inside it.

    Args:
        dataset, transform, batch_size, rank, world_size, prefetch, seed: as for `TrainLoader`; the
            draws of a batch depend on (seed, step) only, so that two evaluations are alike.
    """

    def __init__(
        self,
        dataset,
        transform: Transform,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 2,
        seed: int = 0,
    ) -> None:
        _check(batch_size, seed, rank, world_size, prefetch)
        self.dataset = dataset
        self.transform = transform
        self.batch_size = batch_size
        self.seed = seed
        self.prefetch = prefetch
        self._parts = []  # (step, first sample of the batch, its size, this rank's part of it)
        for step, first in enumerate(range(0, len(dataset), batch_size)):
            size = min(batch_size, len(dataset) - first)
            part = slice(size * rank // world_size, size * (rank + 1) // world_size)
            if part.stop > part.start:
                self._parts.append((step, first, size, part))

    def __len__(self) -> int:
        """Batches on this rank."""
        return len(self._parts)

    def __iter__(self) -> Iterator[Batch]:
        def make(item: tuple[int, int, int, slice]) -> Batch:
            step, first, size, part = item
            indices = np.arange(first + part.start, first + part.stop)
            random = BatchRandom((self.seed, 0, step, _EVAL), size, part)
            return _load(self.dataset, self.transform, indices, random)

        return _prefetched(make, self._parts, self.prefetch)


def _check(batch_size: int, seed: int, rank: int, world_size: int, prefetch: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not one of {world_size} ranks (0 .. {world_size - 1})")
    if prefetch < 0:
        raise ValueError(f"prefetch must be 0 or more, got {prefetch}")
    keyed_generator((seed,))  # refuses a seed that no key can hold, before the first epoch does


def _load(dataset, transform: Transform, indices: np.ndarray, random: BatchRandom) -> Batch:
    if hasattr(dataset, "fetch_random"):  # augments while it reads: `CropOnRead`
        images, labels = dataset.fetch_random(indices, random)
    else:
        images, labels = dataset.fetch(indices)
    return Batch(transform(images, random), labels, indices, random)


class _Failure(NamedTuple):
    error: BaseException


def _prefetched(make: Callable, items: Iterable, depth: int) -> Iterator[Batch]:
    """`map(make, items)`, computed up to `depth` items ahead by a background thread.

    An exception in the thread is raised here as itself; leaving the iterator early ends the thread.
    """
    if depth == 0:
        yield from map(make, items)
        return
    ready: queue.SimpleQueue = queue.SimpleQueue()
    slots = threading.Semaphore(depth)
    stopping = threading.Event()
    end = object()

    def work() -> None:
        try:
            for item in items:
                slots.acquire()
                if stopping.is_set():
                    return
                ready.put(make(item))
            ready.put(end)
        except BaseException as error:  # handed over whole: the consumer raises it
            ready.put(_Failure(error))

    thread = threading.Thread(target=work, name="passl_mae-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            batch = ready.get()
            if batch is end:
                return
            if isinstance(batch, _Failure):
                raise batch.error
            slots.release()
            yield batch
    finally:
        stopping.set()
        slots.release()
        # A frozen daemon thread never ends, and a thread cannot wait for itself (the garbage
        # collector may close an abandoned iterator from any thread).
        if not sys.is_finalizing() and thread is not threading.current_thread():
            thread.join()
