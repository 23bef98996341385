"""What a network says about every image of a data set, in order, and the features seen from above.

Shapes: N images, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import paddle
from paddle import nn

from passl_mae import distributed
from passl_mae.data.loader import EvalLoader
from passl_mae.terminal import shown


class Features(NamedTuple):
    """features: float32 [N, D]; labels: int64 [N]; in the data set's order."""

    features: np.ndarray
    labels: np.ndarray


def extract_features(model: nn.Layer, loader: EvalLoader) -> Features:
    """A classifier's features before its head: the model's own pooling, then its last norm."""
    return collect(model, loader, model.forward_features)


def collect(
    model: nn.Layer, loader: EvalLoader, function: Callable[[paddle.Tensor], paddle.Tensor]
) -> Features:
    """`function` (images [B, C, H, W] -> [B, D]) of every image, in evaluation mode.

    Every rank computes its part of the data set and gets the whole: all ranks call it. A number is
    what its rank computed, to the bit: the others add zeros.
    """
    training = model.training
    model.eval()
    parts = []
    with paddle.no_grad():
        for batch in shown(loader, "features"):
            output = function(paddle.to_tensor(batch.images)).astype("float32")
            parts.append((batch.indices, batch.labels, output.numpy()))
    if training:
        model.train()
    return in_order(parts, len(loader.dataset))


def in_order(parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], count: int) -> Features:
    """What all ranks computed for a data set of `count` images, on every rank: all call it.

    Args:
        parts: (indices [b], labels [b], outputs float32 [b, D]) of this rank's batches.
    """
    own_width = parts[0][2].shape[1] if parts else 0  # a rank may have had no image
    width = int(distributed.gather_over_ranks(np.array([own_width])).max())
    outputs = np.zeros((count, width), np.float32)
    labels = np.zeros(count, np.int64)
    for indices, its_labels, output in parts:
        outputs[indices], labels[indices] = output, its_labels
    return Features(
        distributed.sum_over_ranks(outputs).astype(np.float32, copy=False),
        distributed.sum_over_ranks(labels).astype(np.int64, copy=False),
    )


def pca(features: np.ndarray, components: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Principal components: (coordinates [N, components], shares of the variance [components]).

    The sign of a component is such that its largest loading is positive.

    Raises:
        ValueError: more components than features or images.
    """
    if not 1 <= components <= min(features.shape):
        raise ValueError(f"{components} components of features {list(features.shape)}")
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    u, s, vt = np.linalg.svd(centred, full_matrices=False)
    largest = vt[np.arange(len(vt)), np.abs(vt).argmax(axis=1)]
    coordinates = (u * s * np.where(largest < 0, -1.0, 1.0))[:, :components]
    total = (s**2).sum()
    return coordinates, s[:components] ** 2 / (total if total > 0 else 1.0)


def tsne(features: np.ndarray, perplexity: float = 30.0, seed: int = 0) -> np.ndarray:
    """t-SNE (van der Maaten & Hinton 2008) to [N, 2], from at most 50 principal components.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
        ValueError: `perplexity` is not below the number of images.
    """
    try:
        from sklearn.manifold import TSNE
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "t-SNE needs scikit-learn: pip install 'passl_mae[plots]' (or take --method pca)"
        ) from None
    if not 0 < perplexity < len(features):
        raise ValueError(f"perplexity {perplexity:g} must be below the {len(features)} images")
    reduced, _ = pca(features, min(50, *features.shape))
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
