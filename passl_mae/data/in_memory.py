"""Labelled images held in memory as uint8, and views of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from passl_mae.data.random import keyed_generator


class InMemoryDataset:
    """Images and labels in memory.

    Args:
        images: uint8 [N, H, W, C].
        labels: int64 [N], in 0 .. len(class_names) - 1.
        class_names: one name a label.
        mean: per channel, on the 0..1 scale.
        std: per channel, on the 0..1 scale.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        class_names: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        assert images.dtype == np.uint8 and images.ndim == 4 and labels.dtype == np.int64
        assert len(images) == len(labels) and images.shape[3] == len(mean) == len(std)
        self.images = images
        self.labels = labels
        self.class_names = list(class_names)
        self.mean = tuple(mean)
        self.std = tuple(std)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.images.shape[1], self.images.shape[2]

    @property
    def in_chans(self) -> int:
        return self.images.shape[3]

    def fetch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Copies of the images uint8 [B, H, W, C] and labels int64 [B] at `indices` int64 [B]."""
        return self.images[indices], self.labels[indices]


class Subset:
    """The samples of `dataset` at `indices` int64 [M]; the pixels are not copied.

    Raises:
        ValueError: an index lies outside the data set, or there is none.
    """

    def __init__(self, dataset: InMemoryDataset, indices: np.ndarray) -> None:
        indices = np.asarray(indices, dtype=np.int64)
        if indices.ndim != 1 or len(indices) == 0:
            raise ValueError(f"a subset needs a list of indices, got an array {indices.shape}")
        if indices.min() < 0 or indices.max() >= len(dataset):
            raise ValueError(
                f"subset indices {indices.min()} .. {indices.max()} lie outside "
                f"the data set of {len(dataset)} images"
            )
        self.dataset = dataset
        self.indices = indices
        self.labels = dataset.labels[indices]
        self.class_names = dataset.class_names
        self.mean = dataset.mean
        self.std = dataset.std
        self.image_size = dataset.image_size
        self.in_chans = dataset.in_chans

    def __len__(self) -> int:
        return len(self.indices)

    def fetch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [B, H, W, C] and labels int64 [B]; `indices` count within the subset."""
        return self.dataset.fetch(self.indices[indices])


def few_labels(labels: np.ndarray, per_class: int, seed: int = 0) -> np.ndarray:
    """Indices int64 of `per_class` samples of every class in `labels` [N], ascending.

    The choice depends on `seed` only, and a smaller choice is contained in a larger one.

    Raises:
        ValueError: `per_class` is below 1, or a class has fewer samples.
    """
    if per_class < 1:
        raise ValueError(f"per_class must be at least 1, got {per_class}")
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < per_class:
            raise ValueError(
                f"class {label} has {len(members)} samples, {per_class} were asked for: "
                "lower per_class"
            )
        order = keyed_generator((seed, int(label))).permutation(len(members))
        chosen.append(members[order[:per_class]])
    return np.sort(np.concatenate(chosen))
