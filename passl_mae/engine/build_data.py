"""From a config to data sets, transforms and loaders."""

from __future__ import annotations

import numpy as np
from paddle import nn

from passl_mae import distributed
from passl_mae.data.augment import RandAugment
from passl_mae.data.datasets import DATASETS
from passl_mae.data.image_sets import CropOnRead
from passl_mae.data.in_memory import InMemoryDataset, Subset, few_labels, hold_out
from passl_mae.data.loader import EvalLoader, TrainLoader
from passl_mae.data.transforms import (
    Compose,
    Normalize,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
)
from passl_mae.engine.build_images import IMAGE_SETS, build_image_sets
from passl_mae.schema import DataConfig, RunConfig


def build_datasets(
    config: RunConfig, model: nn.Layer
) -> tuple[InMemoryDataset | Subset, InMemoryDataset | Subset]:
    """(training, evaluation) data, checked against the model."""
    data = config.Data
    size = model.patch_embed.img_size
    if data.name in IMAGE_SETS:
        train_set, eval_set = build_image_sets(config, size, model.patch_embed.in_chans)
        train_set = _first(train_set, data.train.num_images, "training data")
        if eval_set is None:  # of one folder or list
            if not data.val_fraction:
                raise ValueError(
                    f"{data.path} has no images for the evaluation: set Data.val_fraction (e.g. "
                    "0.1) to hold out a part, or Data.eval.path"
                )
            kept, held = hold_out(train_set.labels, data.val_fraction)
            train_set, eval_set = Subset(train_set, kept), Subset(train_set, held)
        eval_set = _first(eval_set, data.eval.num_images, "evaluation data")
    else:
        with distributed.main_first():
            train_set = _dataset(data, "train", data.train.num_images, size)
            eval_set = _dataset(data, "test", data.eval.num_images, size)
    if model.patch_embed.in_chans != train_set.in_chans:
        raise ValueError(
            f"Model.in_chans is {model.patch_embed.in_chans} and {data.name} has "
            f"{train_set.in_chans} channels: set Model.in_chans={train_set.in_chans}"
        )
    classes = len(train_set.class_names)
    if config.task == "classify" and config.Model.num_classes != classes:
        raise ValueError(
            f"Model.num_classes is {config.Model.num_classes} and {data.name} has {classes} "
            f"classes: set Model.num_classes={classes}"
        )
    if data.train.labels_per_class is not None:
        smallest = int(np.bincount(train_set.labels, minlength=classes).min())
        if data.train.labels_per_class > smallest:
            raise ValueError(
                f"Data.train.labels_per_class is {data.train.labels_per_class} and the smallest "
                f"class of {data.name} has {smallest} training images"
            )
        chosen = few_labels(train_set.labels, data.train.labels_per_class, config.Global.seed)
        train_set = Subset(train_set, chosen)
    return train_set, eval_set


def _dataset(
    data: DataConfig, split: str, num_images: int | None, img_size: tuple[int, int]
) -> InMemoryDataset | Subset:
    if data.name == "Shapes":
        return DATASETS["Shapes"](split=split, image_size=img_size, num_images=num_images)
    dataset = DATASETS[data.name](split=split, path=data.path)
    return _first(dataset, num_images, f"{split} split of {data.name}")


def _first(dataset, num_images: int | None, what: str):
    if num_images is None:
        return dataset
    if num_images > len(dataset):
        raise ValueError(f"num_images is {num_images} and the {what} has {len(dataset)}")
    return Subset(dataset, np.arange(num_images))


def build_loaders(
    config: RunConfig,
    model: nn.Layer,
    train_set: InMemoryDataset | Subset,
    eval_set: InMemoryDataset | Subset,
) -> tuple[TrainLoader, EvalLoader]:
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
    size, augment = model.patch_embed.img_size, data.train
    if augment.crop != "resized" and train_set.image_size != size:
        (height, width), (h, w) = size, train_set.image_size
        raise ValueError(
            f"the images of {data.name} are {h}x{w} and the model takes {height}x{width}: set "
            f"Model.img_size to fit, or Data.train.crop=resized to resize them"
        )
    crops = {
        "none": [],
        "pad": [RandomCrop(padding=augment.crop_padding)],
        "resized": [RandomResizedCrop(size, tuple(augment.crop_scale), tuple(augment.crop_ratio))],
    }
    learned_from = train_set
    if augment.crop == "resized" and train_set.crops_on_read:
        learned_from = CropOnRead(train_set, *crops.pop("resized"))
    if augment.crop == "pad" and augment.crop_padding >= min(size):
        raise ValueError(
            f"Data.train.crop_padding {augment.crop_padding} must be smaller than the image of "
            f"{size[0]}x{size[1]}"
        )
    mean, std = statistics(data, train_set)
    normalize = Normalize(mean, std)
    before = crops.get(augment.crop, [])
    if augment.hflip:
        before.append(RandomHorizontalFlip(augment.hflip))
    if augment.rand_augment is not None:
        fill = [round(255 * value) for value in mean]
        before.append(RandAugment(magnitude=augment.rand_augment, fill=fill))
    after = [RandomErasing(augment.reprob)] if augment.reprob else []
    resize = [] if eval_set.image_size == size else [Resize(size)]
    place = {"rank": distributed.rank(), "world_size": ranks, "seed": config.Global.seed}
    train_loader = TrainLoader(
        learned_from, Compose([*before, normalize, *after]), data.batch_size, **place
    )
    eval_loader = EvalLoader(eval_set, Compose([*resize, normalize]), data.eval_batch_size, **place)
    return train_loader, eval_loader


def statistics(
    data: DataConfig, dataset: InMemoryDataset | Subset
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) per channel on the 0..1 scale: the config's, or the data set's own."""
    return tuple(data.mean or dataset.mean), tuple(data.std or dataset.std)
