"""The task of Momentum Contrast: two views of each image in, the contrastive loss out."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import paddle
import paddle.nn.functional as F
from matplotlib.figure import Figure
from paddle import nn

from passl_mae import distributed
from passl_mae.data.loader import Batch, EvalLoader
from passl_mae.features import Features, collect
from passl_mae.knn import knn_accuracy


class MoCoTask:
    """MoCo pretraining (arXiv 1911.05722), watched by the nearest neighbours of its features.

    Args:
        shuffle: shuffling BN: the keys are encoded in an order of their own.
        symmetric: whether the model gives both directions; the loss is then their sum, as in the
            official CIFAR demo.
        bank: training images without augmentation that the evaluated ones are compared with; None
            where there are no labels, and nothing is watched.
        num_classes, k, temperature: of the neighbours' votes.
    """

    weights_name = "moco_pretrain"
    train_metrics = ("loss", "contrast_top1")

    def __init__(
        self,
        shuffle: bool,
        symmetric: bool = False,
        bank: EvalLoader | None = None,
        num_classes: int = 0,
        k: int = 200,
        temperature: float = 0.1,
    ):
        self.shuffle = shuffle
        self.symmetric = symmetric
        self.bank = bank
        self.num_classes = num_classes
        self.k, self.temperature = k, temperature
        self.best_metric = None if bank is None else "knn_top1"

    def prepare(self, batch: Batch) -> dict[str, np.ndarray]:
        """query, key float32 [b, C, H, W]; with shuffling, shuffle and unshuffle int64 [b].

        Raises:
            ValueError: the images are not pairs of views [b, 2, C, H, W].
        """
        images = batch.images
        if images.ndim != 5 or images.shape[1] != 2:
            raise ValueError(
                f"MoCo takes two views of each image, [b, 2, C, H, W], got {list(images.shape)}: "
                "wrap the loader's transforms in TwoViews"
            )
        inputs = {"query": images[:, 0], "key": images[:, 1]}
        if self.shuffle:
            # One permutation of the global batch on all ranks, and this rank's part of it.
            order = batch.random.shared_generator().permutation(batch.random.batch_size)
            inputs["shuffle"] = order[batch.random.part]
            inputs["unshuffle"] = np.argsort(order)[batch.random.part]
        return inputs

    def training_step(
        self, model: nn.Layer, inputs: dict[str, paddle.Tensor]
    ) -> dict[str, paddle.Tensor]:
        """{"loss": eq. 1 of the paper, "contrast_top1": share whose own key is the nearest}."""
        shuffle, unshuffle = inputs.get("shuffle"), inputs.get("unshuffle")
        logits, labels = model(inputs["query"], inputs["key"], shuffle, unshuffle)
        with paddle.amp.auto_cast(enable=False):
            loss = F.cross_entropy(logits, labels) * (2 if self.symmetric else 1)
        first = logits[:, 0] > logits[:, 1:].max(axis=1)
        return {"loss": loss, "contrast_top1": first.astype("float32").mean()}

    def evaluate(self, model: nn.Layer, batches: Iterable[Batch]) -> dict[str, float]:
        """kNN accuracy on the features ("knn_top1") and on the embedding, as the demo has it."""
        if self.bank is None:
            return {}
        distributed.same_statistics(model)
        width = model.encoder_q.num_features

        def both(images: paddle.Tensor) -> paddle.Tensor:
            features = model.encoder_q.forward_features(images).astype("float32")
            embedding = model.encoder_q.head(features).astype("float32")
            return paddle.concat([features, embedding], axis=1)

        bank, seen = collect(model, self.bank, both), collect(model, batches, both)
        parts = {"knn_top1": slice(width), "embedding_knn_top1": slice(width, None)}
        result = {}
        for name, part in parts.items():
            known, asked = (Features(f.features[:, part], f.labels) for f in (bank, seen))
            found = knn_accuracy(known, asked, self.num_classes, [self.k], self.temperature)
            result[name] = found[self.k]["top1"]
        return result

    def draw(self, model: nn.Layer) -> Figure | None:
        return None
