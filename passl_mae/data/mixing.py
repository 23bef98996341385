"""Mixup and cutmix of whole batches, and the soft targets that go with them."""

from __future__ import annotations

import math

import numpy as np

from passl_mae.data.random import BatchRandom


class Mixing:
    """Mixup (Zhang et al. 2017, arXiv 1710.09412) or cutmix (Yun et al. 2019, arXiv 1905.04899).

    As MAE finetunes (He et al. 2021, A.1; timm's `Mixup` in mode "batch"): one lambda a batch, from
    Beta(alpha, alpha), and image i is mixed with image b - 1 - i; the middle one of an odd batch
    meets itself and stays. Mixup averages both, cutmix pastes a box of the partner and sets lambda
    to the share of the area that is left; the targets are averaged alike. Choice, lambda and box
    are the same on every rank, but partners are taken within a rank's part of the batch, so they
    (alone) depend on the number of ranks.

    Args:
        num_classes: length of a target.
        mixup: alpha of mixup, 0 for none.
        cutmix: alpha of cutmix, 0 for none. With both 0 the images stay as they are.
        prob: probability that a batch is mixed.
        switch_prob: probability of cutmix where both are on.
        smoothing: label smoothing s (Szegedy et al. 2015, sec. 7): a one-hot target has
            1 - s + s / num_classes on its label and s / num_classes elsewhere.

    Raises:
        ValueError: an argument out of its bounds; on a batch, a label that is not a class.
    """

    def __init__(
        self,
        num_classes: int,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        smoothing: float = 0.0,
    ) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        for name, alpha in (("mixup", mixup), ("cutmix", cutmix)):
            if not 0 <= alpha < math.inf:
                raise ValueError(f"{name} must be a finite alpha, 0 for none, got {alpha}")
        shares = (("prob", prob), ("switch_prob", switch_prob), ("smoothing", smoothing))
        for name, share in shares:
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must lie in 0..1, got {share}")
        self.num_classes = num_classes
        self.mixup = mixup
        self.cutmix = cutmix
        self.prob = prob
        self.switch_prob = switch_prob
        self.smoothing = smoothing

    def __call__(
        self, images: np.ndarray, labels: np.ndarray, random: BatchRandom
    ) -> tuple[np.ndarray, np.ndarray]:
        """images float32 [b, C, H, W], labels int64 [b] -> (images, targets float32 [b, classes]).

        The given images are not changed.
        """
        images, lam = self._mix(images, random)
        return images, self.targets(labels, lam)

    def targets(self, labels: np.ndarray, lam: float = 1.0) -> np.ndarray:
        """float32 [b, num_classes]: lam of each label's target, 1 - lam of its partner's."""
        outside = (labels < 0) | (labels >= self.num_classes)
        if outside.any():
            raise ValueError(
                f"label {labels[outside][0]} lies outside 0 .. {self.num_classes - 1}: "
                "give the data set's num_classes"
            )
        targets = np.full(
            (len(labels), self.num_classes), self.smoothing / self.num_classes, np.float32
        )
        rows = np.arange(len(labels))
        targets[rows, labels] += (1 - self.smoothing) * lam
        targets[rows, labels[::-1]] += (1 - self.smoothing) * (1 - lam)
        return targets

    def _mix(self, images: np.ndarray, random: BatchRandom) -> tuple[np.ndarray, float]:
        """(mixed images, share of the image's own pixels)."""
        if self.mixup == 0 and self.cutmix == 0:
            return images, 1.0
        generator = random.shared_generator()
        if generator.random() >= self.prob:
            return images, 1.0
        switch_prob = 0.0 if self.cutmix == 0 else 1.0 if self.mixup == 0 else self.switch_prob
        if generator.random() >= switch_prob:
            lam = float(generator.beta(self.mixup, self.mixup))
            # float32 scalars: NumPy 1 and 2 then agree on the type of the product.
            mixed = images * np.float32(lam)
            mixed += images[::-1] * np.float32(1 - lam)
            return mixed, lam
        lam = float(generator.beta(self.cutmix, self.cutmix))
        height, width = images.shape[2:]
        centre = (int(generator.integers(height)), int(generator.integers(width)))
        top, bottom, left, right = cutmix_box(height, width, lam, centre)
        mixed = images.copy()
        mixed[:, :, top:bottom, left:right] = images[::-1, :, top:bottom, left:right]
        return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def cutmix_box(
    height: int, width: int, lam: float, centre: tuple[int, int]
) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of the pasted box: of the image's aspect, 1 - lam of its area.

    It is clipped at the image's border, so that its true area may be smaller. An odd side loses a
    pixel, as in the reference code.
    """
    ratio = math.sqrt(1 - lam)  # arXiv 1905.04899, eq. 2
    (y, half_h), (x, half_w) = zip(centre, (int(height * ratio) // 2, int(width * ratio) // 2))
    return max(y - half_h, 0), min(y + half_h, height), max(x - half_w, 0), min(x + half_w, width)
