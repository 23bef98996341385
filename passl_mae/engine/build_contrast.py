"""From a config to what Momentum Contrast needs: colours, views, and the task."""

from __future__ import annotations

import numpy as np
from paddle import nn

from passl_mae import distributed
from passl_mae.data.in_memory import Subset
from passl_mae.data.loader import EvalLoader
from passl_mae.data.views import ColorJitter, GaussianBlur, RandomGrayscale
from passl_mae.engine.contrast import MoCoTask
from passl_mae.optim.param_groups import FINETUNE_NO_DECAY
from passl_mae.schema import RunConfig
from passl_mae.schema_data import TrainDataConfig

# Settings of the model's section that are not arguments of the model.
OF_THE_TASK = ("shuffle_bn", "knn_bank", "knn_k", "knn_temperature")
CONTRAST_NO_DECAY = tuple(f"encoder_q.{name}" for name in FINETUNE_NO_DECAY)


def color_transforms(augment: TrainDataConfig) -> list:
    """Jitter, then grey, then blur, as MoCo v2 has them."""
    transforms: list = []
    if augment.color_jitter is not None:
        transforms.append(ColorJitter(*augment.color_jitter, p=augment.color_jitter_prob))
    if augment.grayscale:
        transforms.append(RandomGrayscale(augment.grayscale))
    if augment.blur:
        transforms.append(GaussianBlur(augment.blur, augment.blur_sigma))
    return transforms


def build_contrast_task(config: RunConfig, model: nn.Layer, plain: EvalLoader) -> MoCoTask:
    """The task of a MoCo config.

    Args:
        plain: the training images as they are; an even choice of them is the kNN monitor's bank.

    Raises:
        ValueError: BatchNorm's groups do not divide a rank's batch, or there are fewer images than
            neighbours wanted.
    """
    m, ranks = config.Model, distributed.world_size()
    batch, groups = config.Data.batch_size // ranks, m.bn_groups or 1
    if batch % groups:
        raise ValueError(
            f"Model.bn_groups {groups} does not divide the batch of {batch} images a rank "
            f"(Data.batch_size {config.Data.batch_size} over {ranks} ranks)"
        )
    shuffle = m.shuffle_bn and model.has_batch_norm and ranks * groups > 1
    names = plain.dataset.class_names
    if not names:
        return MoCoTask(shuffle, m.symmetric)
    count = min(m.knn_bank, len(plain.dataset))
    if m.knn_k > count:
        raise ValueError(
            f"Model.knn_k {m.knn_k} is more than the {count} training images that neighbours are "
            "looked for among (Model.knn_bank): lower knn_k"
        )
    chosen = np.linspace(0, len(plain.dataset) - 1, count).round().astype(np.int64)
    bank = EvalLoader(
        Subset(plain.dataset, chosen),
        plain.transform,
        config.Data.eval_batch_size,
        distributed.rank(),
        ranks,
    )
    return MoCoTask(shuffle, m.symmetric, bank, len(names), m.knn_k, m.knn_temperature)
