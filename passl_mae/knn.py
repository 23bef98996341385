"""Classification by the nearest neighbours of frozen features, without any training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from passl_mae.evaluation import top_k_accuracy
from passl_mae.features import Features

CELLS = 1 << 23  # similarities held at once; a few arrays of that size live beside each other


def nearest(queries: np.ndarray, bank: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar rows of `bank` by cosine: similarities and indices, both [M, k].

    Args:
        queries: [M, D]; bank: [N, D]. A row of zeros is similar to none (cosine 0).

    The most similar comes first; among equals the lower index.

    Raises:
        ValueError: `k` outside 1 .. N, or features that are not finite.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"k must be between 1 and the {len(bank)} training images, got {k}")
    queries, bank = _unit(queries), _unit(bank)
    found = []
    rows = max(1, CELLS // len(bank))
    for first in range(0, len(queries), rows):
        similar = queries[first : first + rows] @ bank.T  # [rows, N]
        last = np.partition(similar, len(bank) - k, axis=1)[:, len(bank) - k, None]  # the k-th
        chosen = similar > last
        ties = similar == last
        missing = k - chosen.sum(axis=1, keepdims=True)
        chosen |= ties & (ties.cumsum(axis=1, dtype=np.int32) <= missing)
        indices = np.nonzero(chosen)[1].reshape(-1, k)  # ascending in a row
        values = np.take_along_axis(similar, indices, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        found.append((values, indices, order))
    values, indices, order = (np.concatenate(arrays) for arrays in zip(*found))
    return np.take_along_axis(values, order, axis=1), np.take_along_axis(indices, order, axis=1)


def _unit(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float32)
    if not np.isfinite(features).all():
        raise ValueError("the features are not finite: the weights or the images are broken")
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(norms > 0, norms, 1)


def weighted_votes(
    similarities: np.ndarray, labels: np.ndarray, num_classes: int, temperature: float
) -> np.ndarray:
    """Votes [M, num_classes]: the sum of exp(similarity / temperature) over neighbours of a class.

    As in Wu et al. 2018 (arXiv 1805.01978, sec. 3.4), MoCo and DINO, up to a factor per row: the
    most similar neighbour weighs 1, so that no temperature overflows.

    Args:
        similarities: [M, k]; labels: int [M, k], of the same neighbours.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    similarities = similarities.astype(np.float64)
    top = similarities.max(axis=1, keepdims=True)
    weights = np.exp((similarities - top) / temperature)
    cells = np.arange(len(labels))[:, None] * num_classes + labels
    votes = np.bincount(cells.ravel(), weights.ravel(), len(labels) * num_classes)
    return votes.reshape(-1, num_classes)


def knn_accuracy(
    train: Features,
    test: Features,
    num_classes: int,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
) -> dict[int, dict[str, float]]:
    """{k: {"top1": share, "top5": share}} of `test` by its neighbours in `train`.

    A class that has as many votes as the true one counts as ahead of it.
    """
    similarities, indices = nearest(test.features, train.features, max(ks))
    result = {}
    for k in ks:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        labels = train.labels[indices[:, :k]]
        votes = weighted_votes(similarities[:, :k], labels, num_classes, temperature)
        result[k] = top_k_accuracy(votes, test.labels, (1, 5))
    return result
