"""A linear probe on features that were extracted once: minutes instead of hours."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from passl_mae import runtime
from passl_mae.data.random import keyed_generator
from passl_mae.evaluation import top_k_accuracy
from passl_mae.features import Features
from passl_mae.models.vit import linear_probe_head
from passl_mae.optim.optimizers import make_optimizer
from passl_mae.optim.schedules import WarmupCosineLR
from passl_mae.terminal import shown

_PROBE = 3  # the end of the shuffling's key; the loaders use others


def train_probe(
    train: Features,
    num_classes: int,
    *,
    optimizer: str = "SGD",
    blr: float = 0.1,
    weight_decay: float = 0.0,
    epochs: int = 90,
    warmup_epochs: float = 10,
    batch_size: int = 512,
    seed: int = 0,
) -> nn.Sequential:
    """BatchNorm without scale and shift and a linear layer, trained on features [N, D].

    MAE's recipe (appendix A.1, "Linear probing": blr 0.1, no decay, 90 epochs of which 10 warm up,
    cosine) without random crops: every image has one feature vector. With its LARS, whose steps are
    relative to the size of the weights, small data sets need a far larger blr.

    Args:
        optimizer: "LARS", "SGD" (both with momentum 0.9) or "AdamW".
        blr: the learning rate is blr * batch_size / 256.

    Raises:
        ValueError: a batch larger than the data, or an unknown optimizer.
    """
    if not 1 <= batch_size <= len(train.labels):
        raise ValueError(
            f"a batch of {batch_size} of {len(train.labels)} training images: lower --batch-size"
        )
    runtime.seed_everything(seed)
    head = linear_probe_head(train.features.shape[1], num_classes)
    steps = len(train.labels) // batch_size  # the incomplete batch of an epoch is dropped
    schedule = WarmupCosineLR(
        blr * batch_size / 256, 0.0, 0.0, round(warmup_epochs * steps), epochs * steps
    )
    stepper = make_optimizer(optimizer, head, schedule, weight_decay=weight_decay)
    features, labels = paddle.to_tensor(train.features), paddle.to_tensor(train.labels)
    head.train()
    for epoch in shown(range(epochs), "probe", "epoch"):
        order = keyed_generator((seed, epoch, _PROBE)).permutation(len(train.labels))
        for chosen in np.split(order[: steps * batch_size], steps):
            indices = paddle.to_tensor(chosen)
            logits = head(paddle.gather(features, indices))
            F.cross_entropy(logits, paddle.gather(labels, indices)).backward()
            stepper.step()
            stepper.clear_grad()
            schedule.step()
    head.eval()
    return head


def probe_accuracy(head: nn.Layer, features: Features) -> dict[str, float]:
    """{"top1": share, "top5": share} of a trained head."""
    with paddle.no_grad():
        logits = head(paddle.to_tensor(features.features)).numpy()
    return top_k_accuracy(logits, features.labels, (1, 5))
