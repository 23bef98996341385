"""Labelled images held in memory as uint8, and views of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from passl_mae.data.random import keyed_generator

_HOLD_OUT = 1  # of a key of random numbers; few labels have shorter ones


class InMemoryDataset:
    """Images and labels in memory.

    Args:
        images: uint8 [N, H, W, C].
        labels: int64 [N], in 0 .. len(class_names) - 1.
        class_names: one name a label.
        mean: per channel, on the 0..1 scale.
        std: per channel, on the 0..1 scale.
    """

    crops_on_read = False  # its images have one size: a transform crops them

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
        self.crops_on_read = dataset.crops_on_read

    def __len__(self) -> int:
        return len(self.indices)

    def fetch(self, indices: np.ndarray, **how) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [B, H, W, C] and labels int64 [B]; `indices` count within the subset.

        how: what else the data set's own `fetch` takes.
        """
        return self.dataset.fetch(self.indices[indices], **how)


def few_labels(labels: np.ndarray, per_class: int, seed: int = 0) -> np.ndarray:
    """Indices int64 of `per_class` samples of every class in `labels` [N], ascending.

    The choice depends on `seed` only, and a smaller choice is contained in a larger one.

    Raises:
        ValueError: `per_class` is below 1, or a class has fewer samples.
    """
    if per_class < 1:
        raise ValueError(f"per_class must be at least 1, got {per_class}")
    classes, sizes = np.unique(labels, return_counts=True)
    if sizes.min() < per_class:
        raise ValueError(
            f"class {classes[sizes.argmin()]} has {sizes.min()} samples, {per_class} were asked "
            "for: lower per_class"
        )
    return _choose(labels, np.full(len(classes), per_class), (seed,))


def label_share(labels: np.ndarray, fraction: float, seed: int = 0) -> np.ndarray:
    """Indices int64 of a share of every class in `labels` [N], ascending; at least one of each.

    The choice depends on `seed` only, and agrees with `few_labels` of as many a class.

    Raises:
        ValueError: `fraction` is not in (0, 1].
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"a share of the labels lies in (0, 1], got {fraction}")
    sizes = np.unique(labels, return_counts=True)[1]
    return _choose(labels, np.maximum(1, np.rint(sizes * fraction)).astype(int), (seed,))


def hold_out(labels: np.ndarray, fraction: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(kept, held out): a split of the samples with `labels` [N], both ascending int64.

    round(N * fraction) samples are held out, from every class its share to within one. The seed is
    not that of a run: all runs of a study hold out the same images, whatever else they draw.

    Raises:
        ValueError: one side would be empty.
    """
    wanted = round(len(labels) * fraction)
    if not 0 < wanted < len(labels):
        raise ValueError(
            f"a share of {fraction:g} of {len(labels)} images leaves one side without any"
        )
    exact = np.unique(labels, return_counts=True)[1] * (wanted / len(labels))
    counts = np.floor(exact).astype(int)
    largest_remainders = np.argsort(counts - exact, kind="stable")[: wanted - counts.sum()]
    counts[largest_remainders] += 1
    held = _choose(labels, counts, (seed, _HOLD_OUT))
    return np.setdiff1d(np.arange(len(labels)), held), held


def _choose(labels: np.ndarray, counts: np.ndarray, key: tuple[int, ...]) -> np.ndarray:
    """The first counts[i] samples of the i-th class, in the order that the key shuffles it to."""
    chosen = []
    for label, count in zip(np.unique(labels), counts):
        members = np.flatnonzero(labels == label)
        order = keyed_generator((*key, int(label))).permutation(len(members))
        chosen.append(members[order[:count]])
    return np.sort(np.concatenate(chosen))
