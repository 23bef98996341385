"""The schema of a config's section `Data`: the images, and what training does to them."""

from __future__ import annotations

from typing import Annotated, Literal, Optional, Union

from pydantic import Field, model_validator

from passl_mae.schema_types import (
    Channels,
    Count,
    NonNegative,
    Number,
    Probability,
    Rate,
    Section,
    Size,
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
    crop_padding: Annotated[int, Field(ge=0)] = Field(
        4, description="pixels, for crop: pad; the largest shift"
    )
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
    hflip: Probability = Field(
        0.5, description="probability of a horizontal flip; 0 for digits and text"
    )
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
    name: Literal["Cifar10", "Shapes", "ImageFolder", "ImageList"] = Field(
        description="data set; Shapes is built in, the last two are own images"
    )
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
