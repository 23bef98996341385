"""From a config to data sets, transforms and loaders."""

from __future__ import annotations

from typing import NamedTuple, Optional, Union

import numpy as np
from paddle import nn

from passl_mae import distributed
from passl_mae.data.augment import RandAugment
from passl_mae.data.datasets import DATASETS
from passl_mae.data.image_sets import CachedImages, CropOnRead, ImageFiles
from passl_mae.data.in_memory import (
    InMemoryDataset,
    Subset,
    few_labels,
    hold_out,
    label_share,
)
from passl_mae.data.loader import EvalLoader, TrainLoader
from passl_mae.data.preprocess import Preprocessing
from passl_mae.data.transforms import (
    Compose,
    Normalize,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomShift,
    RandomVerticalFlip,
    Resize,
)
from passl_mae.data.views import TwoCropsOnRead, TwoViews
from passl_mae.engine.build_contrast import color_transforms
from passl_mae.engine.build_images import IMAGE_SETS, build_image_sets, reading_of
from passl_mae.fast import fuse
from passl_mae.schema import DataConfig, RunConfig

Images = Union[InMemoryDataset, ImageFiles, CachedImages, Subset]


class Splits(NamedTuple):
    """train: what is learned from. held_out: of the training images, to watch and to choose by;
    None where nothing is held out. test: seen once, when the run is over."""

    train: Images
    held_out: Optional[Images]
    test: Images


def build_splits(config: RunConfig, model: nn.Layer) -> Splits:
    """The data of the config, checked against the model."""
    data = config.Data
    size = model.img_size
    held_out = None
    if data.name in IMAGE_SETS:
        train_set, held_out, test_set = build_image_sets(config, size, model.in_chans)
        train_set = _first(train_set, data.train.num_images, "training data")
        test_set = test_set and _first(test_set, data.eval.num_images, "test data")
    else:
        with distributed.main_first():
            train_set = _dataset(data, "train", data.train.num_images, size)
            test_set = _dataset(data, "test", data.eval.num_images, size)
    if model.in_chans != train_set.in_chans:
        raise ValueError(
            f"Model.in_chans is {model.in_chans} and {data.name} has "
            f"{train_set.in_chans} channels: set Model.in_chans={train_set.in_chans}"
        )
    classes = len(train_set.class_names)
    if config.task == "classify" and config.Model.num_classes != classes:
        raise ValueError(
            f"Model.num_classes is {config.Model.num_classes} and {data.name} has {classes} "
            f"classes: set Model.num_classes={classes}"
        )
    if data.val_fraction:
        try:
            kept, held = hold_out(train_set.labels, data.val_fraction, data.val_seed)
        except ValueError as error:
            raise ValueError(f"Data.val_fraction: {error}") from None
        train_set, held_out = Subset(train_set, kept), Subset(train_set, held)
    # One's own images may have no test split: what is held out stands in for it.
    return Splits(_few_labels(config, train_set), held_out, test_set or held_out)


def _few_labels(config: RunConfig, train_set: Images) -> Images:
    """The part of the training images whose labels the config lets be seen."""
    few, labels = config.Data.train, train_set.labels
    if few.label_fraction is not None:
        return Subset(train_set, label_share(labels, few.label_fraction, config.Global.seed))
    if few.labels_per_class is None:
        return train_set
    smallest = int(np.bincount(labels, minlength=len(train_set.class_names)).min())
    if few.labels_per_class > smallest:
        raise ValueError(
            f"Data.train.labels_per_class is {few.labels_per_class} and the smallest class of "
            f"{config.Data.name} has {smallest} training images"
        )
    return Subset(train_set, few_labels(labels, few.labels_per_class, config.Global.seed))


def _dataset(
    data: DataConfig, split: str, num_images: int | None, img_size: tuple[int, int]
) -> Images:
    if data.name == "Shapes":
        return DATASETS["Shapes"](split=split, image_size=img_size, num_images=num_images)
    dataset = DATASETS[data.name](split=split, path=data.path)
    return _first(dataset, num_images, f"{split} split of {data.name}")


def _first(dataset: Images, num_images: int | None, what: str) -> Images:
    if num_images is None:
        return dataset
    if num_images > len(dataset):
        raise ValueError(f"num_images is {num_images} and the {what} has {len(dataset)}")
    return Subset(dataset, np.arange(num_images))


class Loaders(NamedTuple):
    """Of the `Splits`; plain: the training images in order, not augmented."""

    train: TrainLoader
    held_out: Optional[EvalLoader]
    test: EvalLoader
    plain: EvalLoader


def build_loaders(config: RunConfig, model: nn.Layer, splits: Splits) -> Loaders:
    """Loaders with their transforms; batches are cut over the ranks.

    Raises:
        ValueError: images and model differ in size, or the batch does not divide.
    """
    data, ranks = config.Data, distributed.world_size()
    accum_iter = config.Optimizer.accum_iter
    if data.batch_size % (ranks * accum_iter):
        raise ValueError(
            f"Data.batch_size {data.batch_size} does not divide by {ranks} ranks x "
            f"Optimizer.accum_iter {accum_iter}: make it a multiple of {ranks * accum_iter}"
        )
    train_set, size, augment = splits.train, model.img_size, data.train
    if augment.crop != "resized" and train_set.image_size != size:
        (height, width), (h, w) = size, train_set.image_size
        raise ValueError(
            f"the images of {data.name} are {h}x{w} and the model takes {height}x{width}: set "
            f"Model.img_size to fit, or Data.train.crop=resized to resize them"
        )
    crops = {
        "none": [],
        "pad": [RandomCrop(padding=augment.crop_padding)],
        "resized": [
            RandomResizedCrop(
                size,
                tuple(augment.crop_scale),
                tuple(augment.crop_ratio),
                augment.crop_interpolation,
            )
        ],
    }
    learned_from, two_views = train_set, config.task == "contrast"
    if augment.crop == "resized" and train_set.crops_on_read:
        on_read = TwoCropsOnRead if two_views else CropOnRead
        learned_from = on_read(train_set, *crops.pop("resized"))
    if augment.crop == "pad" and augment.crop_padding >= min(size):
        raise ValueError(
            f"Data.train.crop_padding {augment.crop_padding} must be smaller than the image of "
            f"{size[0]}x{size[1]}"
        )
    mean, std = statistics(data, train_set)
    normalize = Normalize(mean, std)
    before = crops.get(augment.crop, [])
    if augment.shift:
        before.append(RandomShift(augment.shift))
    if augment.hflip:
        before.append(RandomHorizontalFlip(augment.hflip))
    if augment.vflip:
        before.append(RandomVerticalFlip(augment.vflip))
    if augment.rand_augment is not None:
        fill = [round(255 * value) for value in mean]
        before.append(RandAugment(magnitude=augment.rand_augment, fill=fill))
    before += color_transforms(augment)
    after = [RandomErasing(augment.reprob)] if augment.reprob else []
    cpu_ops = config.Global.cpu_ops
    augmentation = fuse(Compose([*before, normalize, *after]), cpu_ops)
    if two_views:
        augmentation = TwoViews(augmentation)
    train_loader = TrainLoader(learned_from, augmentation, data.batch_size, **_place(config))

    def evaluating(images: Images) -> EvalLoader:
        resize = [] if images.image_size == size else [Resize(size)]
        transform = fuse(Compose([*resize, normalize]), cpu_ops)
        return EvalLoader(images, transform, data.eval_batch_size, **_place(config))

    held_out = None if splits.held_out is None else evaluating(splits.held_out)
    return Loaders(train_loader, held_out, evaluating(splits.test), evaluating(train_set))


def check_choice(finish_with: str, loaders: Loaders, metric: str | None) -> None:
    """ValueError where the best weights are to be kept, and nothing says which these are.

    Args:
        metric: of the task, that the best has most of; None where it has none.
    """
    if finish_with == "best" and loaders.held_out is None:
        raise ValueError(
            "Global.finish_with: best needs held-out images to choose by: set Data.val_fraction, "
            "e.g. 0.1, or lay them out as train/, val/ and test/"
        )
    if finish_with == "best" and metric is None:
        raise ValueError(
            "Global.finish_with: best needs labels to choose by, and the images have none: set "
            "Global.finish_with=last"
        )


def _place(config: RunConfig) -> dict[str, int]:
    return {
        "rank": distributed.rank(),
        "world_size": distributed.world_size(),
        "seed": config.Global.seed,
    }


def statistics(data: DataConfig, dataset: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) per channel on the 0..1 scale: the config's, or the data set's own."""
    return tuple(data.mean or dataset.mean), tuple(data.std or dataset.std)


def preprocessing(config: RunConfig, model: nn.Layer, dataset: Images) -> Preprocessing:
    """How images of any size are prepared for the trained model, as its evaluation does it."""
    data = config.Data
    # The images of the other sets have one size, and all of them is seen.
    data = data if data.name in IMAGE_SETS else data.model_copy(update={"crop_pct": 1.0})
    names = list(dataset.class_names) if config.task == "classify" else []
    reading = reading_of(data, model.img_size, model.in_chans)
    return Preprocessing(reading, *statistics(config.Data, dataset), names)
