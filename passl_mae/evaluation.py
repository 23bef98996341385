"""Numbers about a trained model that are exact however the data are split over ranks."""

from __future__ import annotations

import numpy as np

from passl_mae import distributed


class WeightedMean:
    """The mean of named values over samples: sums on each rank, one reduction at the end."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._count = 0

    def update(self, values: dict[str, float], count: int) -> None:
        """Adds the means `values` over `count` samples."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value) * count
        self._count += count

    def compute(self, names: list[str]) -> dict[str, float]:
        """The means over all ranks; every rank calls it with the same names, samples or none."""
        sums = np.array([self._sums.get(name, 0.0) for name in names] + [self._count], np.float64)
        sums = distributed.sum_over_ranks(sums)
        return {name: float(sums[i] / sums[-1]) for i, name in enumerate(names)}


def top_k_accuracy(logits: np.ndarray, labels: np.ndarray, ks: tuple[int, ...]) -> dict[str, float]:
    """{"top1": share in [0, 1], ...}: whether the label is among the k largest logits.

    Args:
        logits: [B, classes]; labels: int [B]. A k above the number of classes counts as all.

    A label that ties with others counts as standing behind them, so that a constant output scores
    nothing rather than everything.
    """
    rows = np.arange(len(labels))
    own = logits[rows, labels][:, None]
    ahead = (logits >= own).sum(axis=1) - 1  # classes that are as likely or likelier
    ahead = np.where(np.isfinite(own[:, 0]), ahead, logits.shape[1])
    return {f"top{k}": float((ahead < k).mean()) for k in ks}
