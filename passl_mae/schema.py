"""The schema of a config: every section and key with its type, default and meaning."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Optional, Union

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _number_from_text(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 (no dot) as a string; where a number is wanted it is one."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _off_from_false(value: Any) -> Any:
    return "off" if value is False else value  # YAML 1.1 reads a bare `off` as false


def _switch_from_bool(value: Any) -> Any:
    """YAML 1.1 reads bare `on` and `off` as booleans."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


Number = Annotated[float, BeforeValidator(_number_from_text)]
NonNegative = Annotated[Number, Field(ge=0)]
Probability = Annotated[Number, Field(ge=0, le=1)]
Rate = Annotated[Number, Field(ge=0, lt=1)]  # 1 would leave nothing
Count = Annotated[int, Field(ge=1)]


def _is_size(value: Any) -> Any:
    sides = value if isinstance(value, list) else [value, value]
    if len(sides) != 2 or not all(type(side) is int and side >= 1 for side in sides):
        raise ValueError("a size is a whole number of pixels, or [height, width]")
    return value


Size = Annotated[Union[int, list[int]], BeforeValidator(_is_size)]
Channels = Annotated[list[Number], Field(min_length=1)]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, protected_namespaces=(), allow_inf_nan=False
    )


class GlobalConfig(Section):
    output_dir: str = Field("output/run", description="folder of the run; one run per folder")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of weights, masks, order, crops")
    device: str = Field("auto", description="auto, cpu, gpu or gpu:N")
    cpu_ops: Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch_from_bool)] = Field(
        "auto", description="C++ operators of tools/build_ops.py: auto (if built), on or off"
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
    task: ClassVar[str] = "pretrain"
    name: Literal[
        "MAE_Pretrain",
        "mae_vit_t_p4_dec128d2b",
        "mae_vit_s_p4_dec256d4b",
        "mae_vit_b_p16_dec512d8b",
        "mae_vit_l_p16_dec512d8b",
        "mae_vit_h_p14_dec512d8b",
    ]
    decoder_embed_dim: Optional[Count] = Field(None, description="decoder width")
    decoder_depth: Optional[Count] = Field(None, description="decoder blocks")
    decoder_num_heads: Optional[Count] = Field(None, description="decoder attention heads")
    mask_ratio: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.75, description="share of the patches that is removed"
    )
    norm_pix_loss: bool = Field(False, description="normalise each target patch by itself")


class ClassifierModelConfig(VitConfig):
    task: ClassVar[str] = "classify"
    name: Literal[
        "MAE_FineTune",
        "mae_vit_t_p4",
        "mae_vit_s_p4",
        "mae_vit_b_p16",
        "mae_vit_l_p16",
        "mae_vit_h_p14",
    ]
    num_classes: Count = Field(10, description="classes of the head")
    drop_rate: Rate = Field(0.0, description="dropout")
    attn_drop_rate: Rate = Field(0.0, description="dropout on attention weights")
    drop_path: Rate = Field(0.0, description="stochastic depth of the last block")
    global_pool: bool = Field(True, description="mean of the patch tokens, or the class token")
    head_bn: bool = Field(False, description="BatchNorm before the head, as in a linear probe")
    freeze: Annotated[str, Field(pattern=r"^(none|encoder|all-but-last-\d+)$")] = Field(
        "none", description="what does not learn: none, encoder, all-but-last-K (blocks)"
    )


class TrainDataConfig(Section):
    num_images: Optional[Count] = Field(None, description="first N only (Shapes: N are made)")
    labels_per_class: Optional[Count] = Field(None, description="few labels: images per class")
    label_fraction: Optional[Annotated[Number, Field(gt=0, le=1)]] = Field(
        None, description="few labels: share of each class; instead of labels_per_class"
    )
    crop: Literal["none", "pad", "resized"] = Field(
        "pad", description="random crop after padding, random-resized crop, or none"
    )
    crop_padding: Annotated[int, Field(ge=0)] = Field(4, description="pixels, for crop: pad")
    crop_scale: Annotated[list[Number], Field(min_length=2, max_length=2)] = Field(
        [0.2, 1.0], description="share of the area, for crop: resized"
    )
    crop_ratio: Annotated[list[Number], Field(min_length=2, max_length=2)] = Field(
        [0.75, 4 / 3], description="width / height, for crop: resized"
    )
    crop_interpolation: Literal["bicubic", "bilinear"] = Field(
        "bicubic", description="for crop: resized"
    )
    shift: Rate = Field(0.0, description="largest random shift, a share of each side")
    hflip: Probability = Field(0.5, description="probability of a horizontal flip")
    vflip: Probability = Field(0.0, description="probability of a vertical flip")
    smoothing: Probability = Field(0.0, description="label smoothing, of a classifier's targets")
    rand_augment: Optional[Annotated[Number, Field(ge=0, le=10)]] = Field(
        None, description="magnitude of RandAugment (two operations), 0 to 10"
    )
    color_jitter: Optional[Annotated[list[NonNegative], Field(min_length=4, max_length=4)]] = Field(
        None, description="largest change of brightness, contrast, saturation and hue (at most 0.5)"
    )
    color_jitter_prob: Probability = Field(0.8, description="probability of color_jitter")
    grayscale: Probability = Field(0.0, description="probability of a grey image")
    blur: Probability = Field(0.0, description="probability of a Gaussian blur")
    blur_sigma: Annotated[list[Number], Field(min_length=2, max_length=2)] = Field(
        [0.1, 2.0], description="lowest and highest standard deviation of the blur, pixels"
    )
    reprob: Probability = Field(0.0, description="probability of erasing a random box")
    mixup: NonNegative = Field(0.0, description="alpha of mixup; 0 is off")
    cutmix: NonNegative = Field(0.0, description="alpha of cutmix; 0 is off")
    mixup_prob: Probability = Field(1.0, description="of mixing a batch, where it is on")
    mixup_switch_prob: Probability = Field(0.5, description="of cutmix, where both are on")

    @model_validator(mode="after")
    def _one_way_to_few_labels(self) -> TrainDataConfig:
        if self.labels_per_class is not None and self.label_fraction is not None:
            raise ValueError("set labels_per_class or label_fraction, not both")
        return self


class EvalDataConfig(Section):
    path: Optional[str] = Field(
        None, description="own images: the test's folder or list, where Data.path has none"
    )
    num_images: Optional[Count] = Field(
        None, description="first N test images only (Shapes: N are made)"
    )


# Keys of Data that only own images have.
IMAGE_KEYS = (
    "image_root", "labels", "class_names", "crop_pct", "fit", "pad_fill", "max_pixels", "on_error",
    "num_workers", "cache", "cache_size",
)  # fmt: skip


class DataConfig(Section):
    name: Literal["Cifar10", "Shapes", "ImageFolder", "ImageList"]
    path: Optional[str] = Field(None, description="file or folder of the data set")
    batch_size: Count = Field(
        256, description="images per optimizer step, over all ranks and accumulated pieces"
    )
    eval_batch_size: Count = Field(500, description="images per evaluation step, over all ranks")
    mean: Optional[Channels] = Field(None, description="per channel, 0..1; the data set's own")
    std: Optional[Channels] = Field(None, description="per channel, 0..1; the data set's own")
    val_fraction: Rate = Field(
        0.0, description="share of the training images that is held out, to evaluate and choose on"
    )
    val_seed: Annotated[int, Field(ge=0)] = Field(
        0, description="which of each class are held out; Global.seed has no part in it"
    )
    # Of ImageFolder and ImageList alone (docs/own-images.md):
    image_root: Optional[str] = Field(None, description="where the relative paths of a list begin")
    labels: Optional[bool] = Field(None, description="false: there are none; None: by the layout")
    class_names: Optional[str] = Field(None, description="file of the classes, one a line")
    crop_pct: Optional[Annotated[Number, Field(gt=0, le=1)]] = Field(
        None, description="share of a side that is evaluated; 0.875 with crop: resized, else 1"
    )
    fit: Literal["cover", "pad"] = Field(
        "cover", description="resize to cover img_size and cut, or to fit into it and pad"
    )
    pad_fill: Annotated[int, Field(ge=0, le=255)] = Field(
        255, description="the value around a padded image, for fit: pad"
    )
    max_pixels: Annotated[int, Field(ge=1, le=178_956_970)] = Field(
        178_956_970, description="refuse larger images (decompression bombs)"
    )
    on_error: Literal["stop", "skip"] = Field(
        "stop", description="at an unreadable file: stop, or find and leave out all before the run"
    )
    num_workers: Optional[Annotated[int, Field(ge=0)]] = Field(
        None, description="processes that read; cores / ranks; 0 reads in the training's own"
    )
    cache: Optional[Union[bool, str]] = Field(
        None, description="keep resized images in a folder; true: ~/.cache/passl_mae"
    )
    cache_size: Optional[Size] = Field(
        None, description="of the kept images; None: img_size / crop_pct"
    )
    train: TrainDataConfig = TrainDataConfig()
    eval: EvalDataConfig = EvalDataConfig()

    @model_validator(mode="after")
    def _keys_of_image_files(self) -> DataConfig:
        fields = type(self).model_fields
        used = [key for key in IMAGE_KEYS if getattr(self, key) != fields[key].default]
        used += ["eval.path"] if self.eval.path is not None else []
        if self.name in ("ImageFolder", "ImageList"):
            if self.path is None:
                raise ValueError(f"{self.name} needs path, the folder or list of the images")
            if self.name == "ImageFolder" and self.image_root is not None:
                raise ValueError("image_root is for ImageList; ImageFolder finds what is in path")
            if self.cache_size is not None and not self.cache:
                raise ValueError("cache_size is of the cache: set cache, too")
            if self.fit == "pad" and self.train.crop == "resized":
                raise ValueError(
                    "fit: pad is for train.crop: none or pad; resized cuts parts of whole images"
                )
            if self.fit == "cover" and self.pad_fill != fields["pad_fill"].default:
                raise ValueError("pad_fill is of fit: pad")
        elif used:
            raise ValueError(f"{used[0]} is for ImageFolder and ImageList, not for {self.name}")
        return self


class OptimizerConfig(Section):
    name: Literal["AdamW", "LARS", "RAdam", "SGD"] = "AdamW"
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
    name: Literal["WarmupCosineLR"] = "WarmupCosineLR"
    by: Literal["step", "epoch"] = Field("step", description="stepped every iteration or epoch")
    warmup_epochs: NonNegative = Field(0.0, description="epochs of linear warm-up")
    hold_epochs: NonNegative = Field(0.0, description="epochs at the peak, before the cosine")
    warmup_start_lr: NonNegative = Field(0.0, description="learning rate of the first step")
    end_lr: NonNegative = Field(0.0, description="learning rate at the end")


class AMPConfig(Section):
    level: Annotated[Literal["off", "O1", "O2"], BeforeValidator(_off_from_false)] = Field(
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
            if self.Data.val_fraction == 0:
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
