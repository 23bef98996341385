"""Numbers about a trained model that are exact however the data are split over ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from passl_mae import distributed


class WeightedMean:
    """The mean of named values over samples: sums on each rank, one reduction at the end."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._sums = np.zeros(len(self.names) + 1, np.float64)  # the last one counts

    def update(self, values: Mapping[str, float], count: int) -> None:
        """Adds the means `values` over `count` samples."""
        self._sums += count * np.array([*(values[name] for name in self.names), 1.0], np.float64)

    @property
    def empty(self) -> bool:
        """Whether this rank has added nothing yet."""
        return self._sums[-1] == 0

    def compute(self) -> dict[str, float]:
        """The means over all ranks; every rank calls it, whether it had samples or not."""
        sums = distributed.sum_over_ranks(self._sums)
        return dict(zip(self.names, (sums[:-1] / sums[-1]).tolist()))

    def state_dict(self) -> dict[str, list]:
        """The sums of every rank, so that a resumed run adds in the same order; all ranks call."""
        return {"names": self.names, "sums": distributed.gather_over_ranks(self._sums).tolist()}

    def load_state_dict(self, state: Mapping[str, list]) -> None:
        """Takes up this rank's sums, or an equal share of all where the number of ranks changed."""
        sums = np.array(state["sums"], np.float64)
        ranks = distributed.world_size()
        own = sums[distributed.rank()] if len(sums) == ranks else sums.sum(axis=0) / ranks
        self.names, self._sums = list(state["names"]), own.copy()


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


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """int64 [num_classes, num_classes]: images of class (row) that were taken for class (column).

    Args:
        predicted, labels: int [N].
    """
    cells = labels * num_classes + predicted
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def per_class_accuracy(matrix: np.ndarray) -> np.ndarray:
    """Share [classes] of each class's images that was recognised; NaN for a class without any."""
    counts = matrix.sum(axis=1)
    return np.where(counts > 0, np.diag(matrix) / np.maximum(counts, 1), np.nan)
