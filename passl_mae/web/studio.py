"""What the page does, without the page: an image in, masks by chance and by hand, pictures out."""

from __future__ import annotations

import threading
from typing import NamedTuple, Optional

import numpy as np

from passl_mae.data.preprocess import covered, name_of
from passl_mae.engine.build_predictor import Run
from passl_mae.engine.predictor import Predictor, Score
from passl_mae.models.mae import num_kept_patches

PANEL_PIXELS = 384  # about the width of a picture in the page; small ones are enlarged
TOP = 5


class Mask(NamedTuple):
    """Which patches are removed, and the order in which the network takes those that stay.

    noise: float32 [L], 0..1. removed: bool [L], row by row.
    """

    noise: np.ndarray
    removed: np.ndarray

    @property
    def visible(self) -> int:
        return int((~self.removed).sum())


class Pictures(NamedTuple):
    """uint8 [H * scale, W * scale, 3] each, as a page shows them."""

    original: np.ndarray
    masked: np.ndarray
    reconstruction: np.ndarray
    pasted: np.ndarray


class Studio:
    """An autoencoder and, where there is one, a classifier, for many visitors of a page.

    Args:
        autoencoder: of an MAE's pretraining run, or of its weights.
        classifier: any `Predictor` that knows classes.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        ValueError: the one does not reconstruct, or the other knows no classes.
    """

    def __init__(
        self, autoencoder: Predictor, classifier: Optional[Predictor], max_pixels: int
    ) -> None:
        run = autoencoder.source
        if not isinstance(run, Run):
            raise ValueError(f"{run.folder} is an export: give the folder of the training run")
        run.part("reconstruction")
        if classifier is not None:
            classifier.source.part("classifier")
        for predictor in (autoencoder, classifier):
            if predictor is not None:
                prepare = predictor.preprocessing
                limit = min(max_pixels, prepare.reading.max_pixels)
                reading = prepare.reading._replace(max_pixels=limit)
                predictor.preprocessing = prepare._replace(reading=reading)
        self.autoencoder, self.classifier, self.run = autoencoder, classifier, run
        self.grid = tuple(run.model.patch_embed.grid_size)  # rows, columns
        self.patch = tuple(run.model.patch_embed.patch_size)
        self.scale = max(1, round(PANEL_PIXELS / run.model.img_size[1]))
        self._network = threading.Lock()  # a page's visitors come in threads

    @property
    def max_ratio(self) -> float:
        """The largest mask ratio, in hundredths, that keeps a patch."""
        return int(100 * (1 - 1 / self.run.num_patches)) / 100

    def read(self, file: str) -> np.ndarray:
        """An image file as the autoencoder takes it: uint8 [H, W, C].

        Raises:
            ValueError: it cannot be read.
        """
        return covered(file, name_of(file, 0), self.autoencoder.preprocessing.reading)

    def classify(self, file: str) -> list[Score]:
        """The likeliest classes; none without a classifier.

        Raises:
            ValueError: the file cannot be read.
        """
        if self.classifier is None:
            return []
        with self._network:
            return self.classifier.classify(file, TOP)[0].classes

    def random_mask(self, mask_ratio: float, seed: int) -> Mask:
        """The mask that `Predictor.reconstruct` draws for one image.

        Raises:
            ValueError: a ratio that keeps no patch, a negative seed.
        """
        length = self.run.num_patches
        kept = num_kept_patches(length, mask_ratio)
        noise = np.random.default_rng(seed).random(length).astype(np.float32)
        removed = np.ones(length, bool)
        removed[np.argsort(noise, kind="stable")[:kept]] = False
        return Mask(noise, removed)

    def toggle(self, mask: Mask, x: float, y: float) -> Mask:
        """The mask with the patch under a pixel of the shown picture turned over.

        Raises:
            ValueError: a pixel outside the picture, or no patch would stay.
        """
        row, column = int(y // (self.patch[0] * self.scale)), int(x // (self.patch[1] * self.scale))
        if not (0 <= row < self.grid[0] and 0 <= column < self.grid[1]):
            raise ValueError(f"({x}, {y}) is outside the picture")
        removed = mask.removed.copy()
        removed[row * self.grid[1] + column] ^= True
        if removed.all():
            raise ValueError("at least one patch has to stay visible")
        return Mask(mask.noise, removed)

    def draw(self, image: np.ndarray, mask: Mask) -> Pictures:
        """What the autoencoder makes of what the mask leaves of an image that `read` gave."""
        length, kept = len(mask.removed), mask.visible
        # Half a patch more, or rounding down may lose one.
        ratio = max(0.0, 1 - (kept + 0.5) / length)
        noise = mask.noise + 2 * mask.removed.astype(np.float32)
        with self._network:
            result = self.autoencoder.reconstruct([image], ratio, noise=noise[None])
        panels = (result.original, result.masked(), result.reconstruction, result.pasted)
        return Pictures(*(self._enlarged(panel[0]) for panel in panels))

    def _enlarged(self, picture: np.ndarray) -> np.ndarray:
        """float32 [H, W, C], 0..1; other channels than three are drawn as the first, in grey."""
        if picture.shape[-1] != 3:
            picture = np.repeat(picture[..., :1], 3, axis=-1)
        pixels = np.rint(255 * picture).astype(np.uint8)
        return pixels.repeat(self.scale, axis=0).repeat(self.scale, axis=1)
