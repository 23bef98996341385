"""The schema of a config: every section and key with its type, default and meaning."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Optional, Union

from pydantic import BeforeValidator, Field, model_validator

from passl_mae.schema_data import DataConfig
from passl_mae.schema_types import (
    Count,
    NonNegative,
    Number,
    Rate,
    Section,
    Size,
    off_from_false,
    switch_from_bool,
)


class GlobalConfig(Section):
    output_dir: str = Field("output/run", description="folder of the run; one run per folder")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of weights, masks, order, crops")
    device: str = Field("auto", description="auto, cpu, gpu or gpu:N")
    cpu_ops: Annotated[Literal["auto", "on", "off"], BeforeValidator(switch_from_bool)] = Field(
        "auto",
        description="C++ operators of tools/build_ops.py: auto (if built; on a GPU they prepare "
        "images only), on or off",
    )
    epochs: Count = Field(100, description="passes over the training images")
    checkpoints: Optional[str] = Field(
        None, description="resume from: `latest` of output_dir, or a checkpoint folder"
    )
    pretrained_model: Optional[str] = Field(None, description="weights to start from, a file")
    save_interval: Count = Field(1, description="epochs between checkpoints")
    save_steps: Optional[Count] = Field(None, description="steps between checkpoints, too")
    keep_last: Count = Field(3, description="checkpoints to keep, besides the best one")
    keep_every: Optional[Count] = Field(None, description="keep those of every N-th epoch, too")
    eval_interval: Count = Field(
        1, description="epochs between evaluations of the held-out images, and pictures"
    )
    finish_with: Literal["last", "best"] = Field(
        "last", description="the finished weights: the last, or the best on the held-out images"
    )
    test: bool = Field(
        True, description="evaluate the test images at the end; false while settings are chosen"
    )
    print_batch_step: Count = Field(10, description="steps between log lines")
    max_skipped_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="updates to skip in a run where the loss is not finite, before it stops"
    )
    check_loss: Literal["auto", "step", "line"] = Field(
        "auto",
        description="read the loss before every update, or where a log line is due, so that a GPU "
        "need not wait; auto: step on the CPU or with max_skipped_steps, else line",
    )
    to_static: bool = Field(
        False, description="turn the model into a static graph (paddle.jit.to_static)"
    )
    use_visualdl: bool = Field(True, description="write scalars and pictures for VisualDL")


class VitConfig(Section):
    """What pretraining model and classifier share; None takes the value of the named model."""

    img_size: Optional[Size] = Field(None, description="pixels, or [height, width]")
    patch_size: Optional[Size] = Field(None, description="pixels, or [height, width]")
    in_chans: Count = Field(3, description="image channels")
    embed_dim: Optional[Count] = Field(None, description="encoder width")
    depth: Optional[Count] = Field(None, description="encoder blocks")
    num_heads: Optional[Count] = Field(None, description="encoder attention heads")
    mlp_ratio: Optional[Annotated[Number, Field(gt=0)]] = Field(
        None, description="hidden width of an MLP / width"
    )


class PretrainModelConfig(VitConfig):
    """A masked autoencoder."""

    task: ClassVar[str] = "pretrain"
    name: Literal[
        "MAE_Pretrain",
        "mae_vit_t_p4_dec128d2b",
        "mae_vit_s_p4_dec256d4b",
        "mae_vit_b_p16_dec512d8b",
        "mae_vit_l_p16_dec512d8b",
        "mae_vit_h_p14_dec512d8b",
    ] = Field(description="named model; its sizes are below")
    decoder_embed_dim: Optional[Count] = Field(None, description="decoder width")
    decoder_depth: Optional[Count] = Field(None, description="decoder blocks")
    decoder_num_heads: Optional[Count] = Field(None, description="decoder attention heads")
    mask_ratio: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.75, description="share of the patches that is removed"
    )
    norm_pix_loss: bool = Field(False, description="normalise each target patch by itself")


class ClassifierModelConfig(VitConfig):
    """A Vision Transformer as a classifier."""

    task: ClassVar[str] = "classify"
    name: Literal[
        "MAE_FineTune",
        "mae_vit_t_p4",
        "mae_vit_s_p4",
        "mae_vit_b_p16",
        "mae_vit_l_p16",
        "mae_vit_h_p14",
    ] = Field(description="named model; its sizes are below")
    num_classes: Count = Field(10, description="classes of the head")
    drop_rate: Rate = Field(0.0, description="dropout")
    attn_drop_rate: Rate = Field(0.0, description="dropout on attention weights")
    drop_path: Rate = Field(0.0, description="stochastic depth of the last block")
    global_pool: bool = Field(True, description="mean of the patch tokens, or the class token")
    head_bn: bool = Field(False, description="BatchNorm before the head, as in a linear probe")
    freeze: Annotated[str, Field(pattern=r"^(none|encoder|all-but-last-\d+)$")] = Field(
        "none", description="what does not learn: none, encoder, all-but-last-K (blocks)"
    )


class OptimizerConfig(Section):
    name: Literal["AdamW", "LARS", "RAdam", "SGD"] = Field("AdamW", description="algorithm")
    blr: Optional[NonNegative] = Field(
        None, description="base learning rate; the rate is blr * batch_size / 256"
    )
    learning_rate: Optional[NonNegative] = Field(None, description="plain; instead of blr")
    beta1: Rate = Field(0.9, description="of AdamW and RAdam")
    beta2: Optional[Rate] = Field(None, description="0.95 pretraining, 0.999 finetuning")
    momentum: Annotated[Number, Field(ge=0, lt=1)] = Field(0.9, description="of LARS and SGD")
    weight_decay: NonNegative = Field(0.05, description="not on biases and norms")
    layer_decay: Annotated[Number, Field(gt=0, le=1)] = Field(
        1.0, description="learning-rate factor per layer from the head down; 1 is off"
    )
    clip_grad: Optional[Annotated[Number, Field(gt=0)]] = Field(
        None, description="largest global gradient norm"
    )
    ema_decay: Optional[Annotated[Number, Field(ge=0, lt=1)]] = Field(
        None, description="average the weights, and evaluate and keep the average"
    )
    sharding: bool = Field(
        False, description="keep each part of the optimizer's state on one rank only (ZeRO-1)"
    )
    accum_iter: Count = Field(1, description="pieces that a batch is computed in, to save memory")

    @model_validator(mode="after")
    def _one_rate(self) -> OptimizerConfig:
        if (self.blr is None) == (self.learning_rate is None):
            raise ValueError("set exactly one of blr (scaled by batch_size / 256) or learning_rate")
        return self


class LRSchedulerConfig(Section):
    name: Literal["WarmupCosineLR"] = Field(
        "WarmupCosineLR", description="linear warm-up, then half a cosine"
    )
    by: Literal["step", "epoch"] = Field("step", description="stepped every iteration or epoch")
    warmup_epochs: NonNegative = Field(0.0, description="epochs of linear warm-up")
    hold_epochs: NonNegative = Field(0.0, description="epochs at the peak, before the cosine")
    warmup_start_lr: NonNegative = Field(0.0, description="learning rate of the first step")
    end_lr: NonNegative = Field(0.0, description="learning rate at the end")


class AMPConfig(Section):
    level: Annotated[Literal["off", "O1", "O2"], BeforeValidator(off_from_false)] = Field(
        "off", description="mixed precision: off, O1 (per operator) or O2 (weights too)"
    )
    dtype: Literal["bfloat16", "float16"] = Field("bfloat16", description="of the fast operators")
    init_loss_scaling: Annotated[Number, Field(gt=0)] = Field(
        65536.0, description="first loss scale, for float16"
    )


class RunConfig(Section):
    Global: GlobalConfig
    Model: Union[PretrainModelConfig, ClassifierModelConfig]
    Data: DataConfig
    Optimizer: OptimizerConfig
    LRScheduler: LRSchedulerConfig = LRSchedulerConfig()
    AMP: AMPConfig = AMPConfig()

    @model_validator(mode="after")
    def _warm_up_fits(self) -> RunConfig:
        warm_up, epochs = self.LRScheduler.warmup_epochs, self.Global.epochs
        hold = self.LRScheduler.hold_epochs
        if warm_up > epochs:
            raise ValueError(
                f"LRScheduler.warmup_epochs {warm_up:g} is more than Global.epochs {epochs}"
            )
        if warm_up + hold > epochs:
            raise ValueError(
                f"LRScheduler.warmup_epochs {warm_up:g} and hold_epochs {hold:g} are more than "
                f"Global.epochs {epochs}"
            )
        if self.LRScheduler.by == "epoch" and hold != int(hold):
            raise ValueError(
                f"LRScheduler.by: epoch takes whole hold_epochs, not {hold:g}; or use by: step"
            )
        if self.LRScheduler.by == "epoch" and warm_up != int(warm_up):
            raise ValueError(
                f"LRScheduler.by: epoch takes whole epochs of warm-up, not {warm_up:g}; "
                "or use by: step"
            )
        return self

    @model_validator(mode="after")
    def _skipping_needs_every_loss(self) -> RunConfig:
        if self.Global.check_loss == "line" and self.Global.max_skipped_steps:
            raise ValueError(
                "Global.max_skipped_steps needs every loss before its update: set "
                "Global.check_loss to step or auto"
            )
        return self

    @model_validator(mode="after")
    def _best_of_something(self) -> RunConfig:
        if self.Global.finish_with == "best":
            # A folder may bring images for validation: `check_choice` looks when they are known.
            if self.Data.val_fraction == 0 and self.Data.name != "ImageFolder":
                raise ValueError(
                    "Global.finish_with: best needs held-out images to choose by: set "
                    "Data.val_fraction, e.g. 0.1"
                )
            if self.task == "pretrain":
                raise ValueError(
                    "Global.finish_with: best is for classifiers, pretraining keeps the last"
                )
        return self

    @property
    def task(self) -> str:
        """The task this config is for: that of its model."""
        return self.Model.task


class PretrainRunConfig(RunConfig):
    Model: PretrainModelConfig


class ClassifyRunConfig(RunConfig):
    Model: ClassifierModelConfig
