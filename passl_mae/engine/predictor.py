"""A trained network, used: classes, features and reconstructions of images of any kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Union

import numpy as np
import paddle
from matplotlib.figure import Figure
from paddle import nn

from passl_mae import runtime
from passl_mae.data.preprocess import gather, name_of, read
from passl_mae.data.workers import shared_workers
from passl_mae.engine.build_predictor import Run, load_run, load_weights_file
from passl_mae.export import Exported, load_exported
from passl_mae.reconstruction import NORM_PIX_NOTE, Reconstruction, as_pictures
from passl_mae.terminal import bar
from passl_mae.visualize import reconstruction_figure


class Score(NamedTuple):
    """A class, its number, and the probability in 0..1 that the network gives it."""

    name: str
    index: int
    probability: float


class Prediction(NamedTuple):
    """source: the file, or "image 3" of those that were given; classes: the likeliest first."""

    source: str
    classes: list[Score]


class Skipped(NamedTuple):
    """An image that could not be read: its place among those that were given, and why."""

    place: int
    source: str
    reason: str


class Predictor:
    """The network of a finished run, or of an export, for images.

    All methods take `images`: a path of a file or a folder (all image files in it, at any depth), a
    PIL image, bytes uint8 [H, W, C] or [N, H, W, C] of any size with 1, 3 or 4 channels, or several
    of these; the answers come in their order. Images are prepared as in the run's evaluation.

    An image that cannot be read raises a ValueError that names it. With a list as `skipped`, it is
    left out instead and appended to the list, as a `Skipped`.

    Args:
        source: what `load_run` or `load_exported` gives; see `from_run` and `from_export`.
        batch_size: images that the network sees at once.
        num_workers: processes that read files; 0 reads in this one.
        progress: show a bar, where the terminal is one and there is more than one batch.

    Raises:
        ValueError: a batch size below 1, or fewer than 0 workers.
    """

    def __init__(
        self,
        source: Union[Run, Exported],
        batch_size: int = 64,
        num_workers: int = 0,
        progress: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.source = source
        self.preprocessing = source.preprocessing
        self.batch_size = batch_size
        self.progress = progress
        self._workers = shared_workers(num_workers)
        self._parts: dict[tuple, nn.Layer] = {}

    @classmethod
    def from_run(
        cls,
        folder: str | Path,
        weights: str | Path | None = None,
        device: str = "auto",
        cpu_ops: str = "auto",
        **settings: Any,
    ) -> Predictor:
        """Of the folder that a training left (`Global.output_dir`), wherever it is now.

        Args:
            weights: a file to take instead of the finished weights, e.g. of a checkpoint.
            device: auto, cpu, gpu or gpu:N.
            cpu_ops: the C++ operators: auto (if built), on or off.
            settings: `batch_size`, `num_workers`, `progress`.

        Raises:
            ValueError: no run, no finished weights, weights of another model.
        """
        return cls(load_run(folder, weights, device, cpu_ops), **settings)

    @classmethod
    def from_weights(
        cls,
        weights: str | Path,
        config: str | Path,
        device: str = "auto",
        cpu_ops: str = "auto",
        **settings: Any,
    ) -> Predictor:
        """Of a file of weights alone, e.g. one in `weights/`, and the config it was trained with.

        Raises:
            ValueError: weights of another model, a mistake in the config.
        """
        return cls(load_weights_file(weights, config, device, cpu_ops), **settings)

    @classmethod
    def from_export(cls, folder: str | Path, device: str = "auto", **settings: Any) -> Predictor:
        """Of a folder that `tools/export_model.py` wrote; it does the one thing it was made for.

        Raises:
            ValueError: no export, or a damaged one.
        """
        runtime.select_device(device)
        return cls(load_exported(folder), **settings)

    @property
    def class_names(self) -> list[str]:
        """One a class; none of a network without classes."""
        return self.preprocessing.class_names

    @property
    def name(self) -> str:
        """The model's, as in its config."""
        return self.source.name

    def classify(
        self, images: Any, top_k: int = 5, skipped: list[Skipped] | None = None
    ) -> list[Prediction]:
        """The `top_k` likeliest classes of each image (all, where there are fewer).

        Raises:
            ValueError: the network knows no classes, a `top_k` below 1; images as above.
        """
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        part, names, predictions = self._part("classifier"), self.class_names, []
        for sources, batch in self._batches(gather(images), skipped):
            (logits,) = _call(part, batch)
            for source, row in zip(sources, _softmax(logits)):
                best = np.argsort(-row, kind="stable")[:top_k]
                scores = [Score(names[i], int(i), float(row[i])) for i in best]
                predictions.append(Prediction(source, scores))
        return predictions

    def features(self, images: Any, skipped: list[Skipped] | None = None) -> np.ndarray:
        """float32 [N, D]: what stands before a classifier's head, as `tools/extract_features.py`.

        Of a pretraining run they are those of its encoder in a classifier that has not learned.

        Raises:
            ValueError: an export of another kind, no image that can be read; images as above.
        """
        part = self._part("encoder")
        batches = self._batches(gather(images), skipped)
        return _joined([_call(part, batch)[0] for _, batch in batches])

    def reconstruct(
        self,
        images: Any,
        mask_ratio: float | None = None,
        seed: int = 0,
        noise: np.ndarray | None = None,
        skipped: list[Skipped] | None = None,
    ) -> Reconstruction:
        """What an autoencoder makes of what the masks left.

        Args:
            mask_ratio: share of the patches that is removed; None takes that of the training.
            seed: of the masks.
            noise: float32 [N, L], one row for each image that can be read, in place of the seed:
                the patches with the smallest noise stay.

        Raises:
            ValueError: the network does not reconstruct, an impossible mask ratio, noise of another
                shape, no image that can be read; images as above.
        """
        part = self._part("reconstruction", mask_ratio)
        items, length = gather(images), self.source.num_patches
        if noise is not None:
            noise = np.asarray(noise)
            fewer = skipped is not None and noise.shape[:1] <= (len(items),)
            if noise.shape[1:] != (length,) or not (fewer or len(noise) == len(items)):
                raise ValueError(f"noise must be {[len(items), length]}, got {list(noise.shape)}")
        rng, done, pieces = np.random.default_rng(seed), 0, []
        for sources, batch in self._batches(items, skipped):
            if noise is None:
                masks = rng.random((len(batch), length))
            else:
                masks = noise[done : done + len(batch)]
            done += len(sources)
            predicted, mask = _call(part, batch, masks.astype(np.float32))
            prepare = self.preprocessing
            pieces.append(as_pictures(batch, predicted, mask, prepare.mean, prepare.std))
        return Reconstruction(*(_joined([piece[i] for piece in pieces]) for i in range(4)))

    def draw(
        self,
        images: Any,
        mask_ratios: Sequence[float | None] = (None,),
        seed: int = 0,
        skipped: list[Skipped] | None = None,
    ) -> Figure:
        """The figure of `tools/visualize.py`: a row an image, panels for each mask ratio.

        Raises:
            ValueError: as for `reconstruct`.
        """
        items, panels = gather(images), {}
        for number, ratio in enumerate(mask_ratios):
            noted = [] if number and skipped is not None else skipped  # once is enough
            result = self.reconstruct(items, ratio, seed, skipped=noted)
            panels[self.source.mask_ratio if ratio is None else ratio] = result.panels()
        note = NORM_PIX_NOTE if self.source.norm_pix_loss else ""
        return reconstruction_figure(result.original, panels, note)

    def _part(self, kind: str, mask_ratio: float | None = None) -> nn.Layer:
        if (kind, mask_ratio) not in self._parts:
            self._parts[kind, mask_ratio] = self.source.part(kind, mask_ratio)
        return self._parts[kind, mask_ratio]

    def _batches(
        self, items: list, skipped: list[Skipped] | None
    ) -> Iterator[tuple[list[str], np.ndarray]]:
        """(names, float32 [b, C, H, W]) of the images that can be read."""
        size, reading = self.batch_size, self.preprocessing.reading
        pieces = [(items[first : first + size], first) for first in range(0, len(items), size)]
        drawn = self.progress and len(pieces) > 1
        with bar(len(items), "images", "image") if drawn else nullcontext() as progress:
            read_pieces = self._workers.map(read, ((*piece, reading) for piece in pieces))
            for (inputs, first), (images, problems) in zip(pieces, read_pieces):
                if problems and skipped is None:
                    raise ValueError(problems[0][1])
                wrong = dict(problems)
                names = {place: name_of(item, place) for place, item in enumerate(inputs, first)}
                for place, reason in problems:
                    skipped.append(Skipped(place, names[place], reason))
                if len(images):
                    kept = [name for place, name in names.items() if place not in wrong]
                    yield kept, self.preprocessing.normalize(images)
                if progress is not None:
                    progress.update(len(inputs))


def _call(part: nn.Layer, *arrays: np.ndarray) -> list[np.ndarray]:
    with paddle.no_grad():
        outputs = part(*map(paddle.to_tensor, arrays))
    outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    return [output.astype("float32").numpy() for output in outputs]


def _softmax(logits: np.ndarray) -> np.ndarray:
    """[B, classes], in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    if not parts:
        raise ValueError("none of the images can be read")
    return np.concatenate(parts)
