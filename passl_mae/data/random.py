"""Random numbers that are a pure function of a key, never of what was drawn before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_WORD = 1 << 32


def keyed_generator(key: Sequence[int]) -> np.random.Generator:
    """A Philox generator (Salmon et al. 2011) for a tuple of whole numbers.

    Different keys give independent streams; the same key gives the same stream everywhere.

    Raises:
        ValueError: an element of `key` is not in 0 .. 2**64 - 1.
    """
    # SeedSequence pads with zeros and splits large numbers, so (5,), (5, 0) and (5, 0, 0) would
    # share one stream: the length and a fixed two words an element make the encoding one to one.
    words = [len(key)]
    for element in key:
        element = int(element)
        if not 0 <= element < _WORD * _WORD:
            raise ValueError(f"seeds must lie in 0 .. 2**64 - 1, got {element}")
        words += [element % _WORD, element // _WORD]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


class BatchRandom:
    """Random numbers for the samples of one step, independent of how the step is split over ranks.

    Every call draws for the whole global batch and returns this part's rows, so the ranks (or the
    pieces of an accumulated step) see exactly what one process would have seen.

    Args:
        key: what the numbers depend on, e.g. (seed, epoch, step).
        batch_size: samples in the global batch.
        part: the rows of the global batch that this process holds; a slice with step 1.
    """

    def __init__(self, key: Sequence[int], batch_size: int, part: slice = slice(None)) -> None:
        start, stop, step = part.indices(batch_size)
        if step != 1:
            raise ValueError(f"part must be a contiguous slice, got {part}")
        self.batch_size = batch_size
        self.part = slice(start, stop)
        self._generator = keyed_generator(key)

    def __len__(self) -> int:
        """Rows that a draw returns: b."""
        return self.part.stop - self.part.start

    def uniform(self, *shape: int) -> np.ndarray:
        """float32 [b, *shape], uniform in [0, 1)."""
        return self._generator.random((self.batch_size, *shape), dtype=np.float32)[self.part]

    def integers(self, low: int, high: int, *shape: int) -> np.ndarray:
        """int64 [b, *shape], uniform in low .. high - 1."""
        return self._generator.integers(low, high, (self.batch_size, *shape))[self.part]

    def normal(self, *shape: int) -> np.ndarray:
        """float32 [b, *shape], normal with mean 0 and variance 1."""
        shape = (self.batch_size, *shape)
        return self._generator.standard_normal(shape, dtype=np.float32)[self.part]

    def shared_generator(self) -> np.random.Generator:
        """A generator for what all samples of the step have in common: alike on every rank.

        It is a stream of its own, so how much is drawn from it does not move the draws that follow
        here. Draw nothing from it that depends on this part.
        """
        return keyed_generator((int(self._generator.integers(1 << 62)),))
