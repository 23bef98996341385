"""What a model is trained for: a task maps a batch to a loss and metrics, and says what to draw.

The trainer knows tasks by these names only, so a new method is a model, a task and a YAML.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Optional, Protocol

import numpy as np
import paddle
import paddle.nn.functional as F
from matplotlib.figure import Figure
from paddle import nn

from passl_mae import distributed
from passl_mae.data.loader import Batch
from passl_mae.data.mixing import Mixing
from passl_mae.evaluation import WeightedMean, top_k_accuracy
from passl_mae.models.mae import num_kept_patches
from passl_mae.reconstruction import NORM_PIX_NOTE, reconstruct
from passl_mae.terminal import shown
from passl_mae.visualize import reconstruction_figure


class Task(Protocol):
    weights_name: str  # the finished weights are `<weights_name>.pdparams`
    train_metrics: tuple[str, ...]  # what `training_step` returns
    best_metric: Optional[str]  # the evaluation's metric that is to grow, if a best is kept

    def prepare(self, batch: Batch) -> dict[str, np.ndarray]:
        """Arrays with the batch as first axis: the inputs of a step, drawn from `batch.random`."""

    def training_step(
        self, model: nn.Layer, inputs: dict[str, paddle.Tensor]
    ) -> dict[str, paddle.Tensor]:
        """{"loss": scalar to minimise, other metrics: scalars}, means over the inputs."""

    def evaluate(self, model: nn.Layer, batches: Iterable[Batch]) -> dict[str, float]:
        """Metrics over all ranks; `metrics.jsonl` has them as eval_<name>."""

    def draw(self, model: nn.Layer) -> Figure | None:
        """A picture of what the model does now, or None."""


class PretrainTask:
    """MAE pretraining: reconstruct what the masks removed."""

    weights_name = "mae_pretrain"
    train_metrics = ("loss",)
    best_metric = None

    def __init__(
        self,
        mask_ratio: float,
        num_patches: int,
        examples: np.ndarray | None = None,
        mean: tuple[float, ...] = (0.0,),
        std: tuple[float, ...] = (1.0,),
        draw_ratios: tuple[float, ...] = (0.25, 0.5, 0.75),
    ):
        num_kept_patches(num_patches, mask_ratio)  # refuses a ratio that keeps none
        self.mask_ratio = mask_ratio
        self.num_patches = num_patches
        self.examples = examples  # float32 [N, C, H, W], normalised; drawn
        self.mean, self.std = mean, std
        self.draw_ratios = draw_ratios

    def prepare(self, batch: Batch) -> dict[str, np.ndarray]:
        return {"images": batch.images, "noise": batch.random.uniform(self.num_patches)}

    def training_step(
        self, model: nn.Layer, inputs: dict[str, paddle.Tensor]
    ) -> dict[str, paddle.Tensor]:
        loss, _, _ = model(inputs["images"], self.mask_ratio, inputs["noise"])
        return {"loss": loss}

    def evaluate(self, model: nn.Layer, batches: Iterable[Batch]) -> dict[str, float]:
        """The loss on other images, with masks that are the same at every evaluation."""
        mean = WeightedMean(["loss"])
        for batch in shown(batches, "evaluation"):
            inputs = {key: paddle.to_tensor(value) for key, value in self.prepare(batch).items()}
            loss = self.training_step(model, inputs)["loss"]
            mean.update({"loss": float(loss)}, len(batch.images))
        return mean.compute()

    def draw(self, model: nn.Layer) -> Figure | None:
        if self.examples is None:
            return None
        return draw_reconstructions(model, self.examples, self.mean, self.std, self.draw_ratios)


class ClassifyTask:
    """Supervised classification; `mixing` makes the soft targets (smoothing, mixup, cutmix)."""

    weights_name = "mae_finetune"
    train_metrics = ("loss", "top1")
    best_metric = "top1"

    def __init__(self, mixing: Mixing):
        self.mixing = mixing

    def prepare(self, batch: Batch) -> dict[str, np.ndarray]:
        images, targets = self.mixing(batch.images, batch.labels, batch.random)
        return {"images": images, "targets": targets}

    def training_step(
        self, model: nn.Layer, inputs: dict[str, paddle.Tensor]
    ) -> dict[str, paddle.Tensor]:
        logits, targets = model(inputs["images"]), inputs["targets"]
        correct = logits.argmax(axis=-1) == targets.argmax(axis=-1)
        top1 = correct.astype("float32").mean()
        return {"loss": soft_cross_entropy(logits, targets), "top1": top1}

    def evaluate(
        self,
        model: nn.Layer,
        batches: Iterable[Batch],
        note: Callable[[Batch, np.ndarray], None] | None = None,
    ) -> dict[str, float]:
        """{"loss", "top1", "top5"}; `note` gets each batch of this rank with its logits."""
        distributed.same_statistics(model)
        mean = WeightedMean(["loss", "top1", "top5"])
        for batch in shown(batches, "evaluation"):
            logits = model(paddle.to_tensor(batch.images))
            targets = F.one_hot(paddle.to_tensor(batch.labels), logits.shape[-1])
            loss = soft_cross_entropy(logits, targets)
            scores = logits.astype("float32").numpy()
            accuracy = top_k_accuracy(scores, batch.labels, (1, 5))
            mean.update({"loss": float(loss), **accuracy}, len(batch.labels))
            if note is not None:
                note(batch, scores)
        return mean.compute()

    def draw(self, model: nn.Layer) -> Figure | None:
        return None


def soft_cross_entropy(logits: paddle.Tensor, targets: paddle.Tensor) -> paddle.Tensor:
    """Mean over the batch of -sum(targets * log_softmax(logits)), in float32; both [B, classes]."""
    with paddle.amp.auto_cast(enable=False):
        log_probs = F.log_softmax(logits.astype("float32"), axis=-1)
        return -(targets * log_probs).sum(axis=-1).mean()


def draw_reconstructions(
    model: nn.Layer,
    images: np.ndarray,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    mask_ratios: Iterable[float],
    seed: int = 0,
) -> Figure:
    """The figure of `tools/visualize.py`: normalised images [N, C, H, W] at several mask ratios.

    One noise for all ratios, so that a larger ratio removes what a smaller one did, and more.
    """
    noise = np.random.default_rng(seed).random((len(images), model.patch_embed.num_patches))
    noise = noise.astype(np.float32)
    panels: dict[float, dict[str, np.ndarray]] = {}
    for ratio in mask_ratios:
        result = reconstruct(model, images, ratio, noise, mean, std)
        panels[ratio] = result.panels()
    note = NORM_PIX_NOTE if model.norm_pix_loss else ""
    return reconstruction_figure(result.original, panels, note)
