"""From a config to what a frozen encoder is worth: features, predictions, attention."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import paddle
from paddle import nn

from passl_mae import distributed, runtime
from passl_mae.attention import attention_of, attention_probabilities
from passl_mae.data.datasets import DATASETS
from passl_mae.data.image_files import read_images
from passl_mae.data.random import BatchRandom, keyed_generator
from passl_mae.data.transforms import Normalize, denormalize
from passl_mae.engine.build import (
    NEW_IN_CLASSIFIER,
    build_evaluation,
    build_model,
    load_pretrained,
)
from passl_mae.engine.build_data import build_loaders, build_splits, statistics
from passl_mae.engine.build_images import files_digest
from passl_mae.fast import choose
from passl_mae.features import Features, extract_features, in_order
from passl_mae.files import hash_file, replacing
from passl_mae.logger import get_logger
from passl_mae.schema import RunConfig

_HOLD_OUT = 4  # the end of a key of random numbers


class EncodedData(NamedTuple):
    """Features of the training and the evaluation images.

    encoder: the weights' file, or "random"; data: which splits these are.
    """

    train: Features
    test: Features
    class_names: list[str]
    encoder: str
    data: str


def build_classifier(config: RunConfig, random: bool = False) -> nn.Layer:
    """The classifier with the weights of `Global.pretrained_model`, or with none, seeded.

    The file may lack the head, as an encoder's does.

    Raises:
        ValueError: no classifier, no weights named, or weights that do not fit.
    """
    refuse_other_tasks(config)
    path = config.Global.pretrained_model
    if path is None and not random:
        raise ValueError("say which weights: -o Global.pretrained_model=FILE (or --random)")
    runtime.select_device(config.Global.device)
    distributed.init(config.Global.device)
    runtime.seed_everything(config.Global.seed)
    model = build_model(config)
    if not random:
        load_pretrained(model, path, NEW_IN_CLASSIFIER)
    return model


def refuse_other_tasks(config: RunConfig) -> None:
    """ValueError where the config's model is no classifier."""
    if config.task != "classify":
        raise ValueError(
            f"{config.Model.name} is a pretraining model: give a finetuning config, and its encoder"
            " (tools/extract_encoder.py) as Global.pretrained_model"
        )


def encode(config: RunConfig, random: bool = False, cache: str | None = None) -> EncodedData:
    """Features of the config's images, without augmentation.

    Args:
        random: of an encoder as it was initialised, to compare with.
        cache: a folder of features; what was computed with the same weights and data is read
            from there, the rest is added.
    """
    if cache is None:
        return _encode(config, random)
    file = Path(cache) / f"{_fingerprint(config, random)}.npz"
    if not file.exists():
        encoded = _encode(config, random)
        if distributed.is_main():
            save_encoded(encoded, file)
        return encoded
    encoder = "random" if random else str(config.Global.pretrained_model)
    return load_encoded(file)._replace(encoder=encoder)


def encode_for_comparison(
    config: RunConfig, random: bool, cache: str | None = None
) -> Iterator[EncodedData]:
    """The encoder of `Global.pretrained_model`, where it is named, then a random one, if asked."""
    if config.Global.pretrained_model is not None or not random:
        yield encode(config, cache=cache)
    if random:
        yield encode(config, random=True, cache=cache)


def hold_out(encoded: EncodedData, share: float, seed: int) -> EncodedData:
    """A part of the training images in place of the test images, to choose settings with.

    Raises:
        ValueError: a share that leaves either side without images.
    """
    count = len(encoded.train.labels)
    held = round(count * share)
    if not 0 < held < count:
        raise ValueError(f"--holdout must leave both sides images, got {share:g} of {count}")
    order = keyed_generator((seed, _HOLD_OUT)).permutation(count)
    test, train = (Features(*(a[part] for a in encoded.train)) for part in np.split(order, [held]))
    data = encoded.data.split(":")[0]
    data = f"{data}: {count - held} images of the training split, {held} held out of it"
    return encoded._replace(train=train, test=test, data=data)


def _encode(config: RunConfig, random: bool) -> EncodedData:
    model = build_classifier(config, random)
    level, operators = choose(model, config.Global.cpu_ops)
    get_logger().log(level, operators)
    splits = build_splits(config, model)
    loaders = build_loaders(config, model, splits)
    return EncodedData(
        extract_features(model, loaders.plain),
        extract_features(model, loaders.test),
        list(splits.train.class_names),
        "random" if random else str(config.Global.pretrained_model),
        f"{config.Data.name}: {len(splits.train)} images of the training split, "
        f"{len(splits.test)} of the test split",
    )


def _fingerprint(config: RunConfig, random: bool) -> str:
    """What the features depend on, as a short text."""
    data = config.Data.model_dump(exclude={"path", "batch_size", "eval_batch_size", "num_workers"})
    data["files"] = files_digest(config)  # of one's own images
    settings = {"model": config.Model.model_dump(), "data": data, "seed": config.Global.seed}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    if not random:
        if config.Global.pretrained_model is None:
            raise ValueError("say which weights: -o Global.pretrained_model=FILE (or --random)")
        hash_file(config.Global.pretrained_model, digest)
    return digest.hexdigest()[:16]


def save_encoded(encoded: EncodedData, file: str | Path) -> None:
    """One .npz: train_features, train_labels, test_features, test_labels, class_names, ..."""
    with replacing(file) as beside, beside.open("wb") as stream:
        np.savez(
            stream,
            train_features=encoded.train.features,
            train_labels=encoded.train.labels,
            test_features=encoded.test.features,
            test_labels=encoded.test.labels,
            class_names=np.array(encoded.class_names),
            encoder=np.array(encoded.encoder),
            data=np.array(encoded.data),
        )


def load_encoded(file: str | Path) -> EncodedData:
    """What `save_encoded` wrote.

    Raises:
        ValueError: not such a file.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return EncodedData(
                Features(arrays["train_features"], arrays["train_labels"]),
                Features(arrays["test_features"], arrays["test_labels"]),
                arrays["class_names"].tolist(),
                str(arrays["encoder"]),
                str(arrays["data"]),
            )
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"{file} does not hold features: {error}; delete it") from None


class Predictions(NamedTuple):
    """predicted, labels: int64 [N], in the images' order; metrics: as `build.evaluate` has them."""

    predicted: np.ndarray
    labels: np.ndarray
    class_names: list[str]
    metrics: dict[str, float]


def predict(config: RunConfig, split: str = "test") -> Predictions:
    """The classes that `Global.pretrained_model` gives to the images of a split, and its metrics.

    Raises:
        ValueError: no classifier, no weights named, or weights that do not fit.
    """
    refuse_other_tasks(config)
    task, model, loader = build_evaluation(config, split)
    parts = []
    with paddle.no_grad():
        metrics = task.evaluate(
            model, loader, lambda batch, logits: parts.append((batch.indices, batch.labels, logits))
        )
    logits, labels = in_order(parts, len(loader.dataset))
    return Predictions(logits.argmax(axis=1), labels, list(loader.dataset.class_names), metrics)


class AttentionMaps(NamedTuple):
    """images: [B, H, W, C], 0..1; maps: [B, heads, rows, cols], shares of attention."""

    images: np.ndarray
    maps: np.ndarray


def look(
    config: RunConfig,
    files: list[str] | None,
    indices: list[int],
    block: int,
    patch: tuple[int, int] | None,
    random: bool = False,
) -> AttentionMaps:
    """Attention maps on files, or on the test images at `indices`.

    Raises:
        ValueError: an index, a block or a patch that is not there.
    """
    model = build_classifier(config, random)
    if not hasattr(model, "blocks"):
        raise ValueError(f"{config.Model.name} has no attention to look at: give a ViT's config")
    dataset = DATASETS[config.Data.name]
    if files:
        size, channels = model.patch_embed.img_size, model.patch_embed.in_chans
        images = read_images(files, size, channels, config.Data.max_pixels)
        mean, std = config.Data.mean or dataset.MEAN, config.Data.std or dataset.STD
        images = Normalize(mean, std)(images, BatchRandom((0,), len(images)))
    else:
        splits = build_splits(config, model)
        eval_set, loader = splits.test, build_loaders(config, model, splits).test
        absent = [i for i in indices if not 0 <= i < len(eval_set)]
        if absent:
            raise ValueError(f"there is no image {absent[0]}: the split has {len(eval_set)}")
        chosen, _ = eval_set.fetch(np.array(indices))
        images = loader.transform(chosen, BatchRandom((0,), len(chosen)))
        mean, std = statistics(config.Data, eval_set)
    probabilities = attention_probabilities(model, images, block)
    maps = attention_of(probabilities, model.patch_embed.grid_size, patch)
    return AttentionMaps(denormalize(images, mean, std), maps)
