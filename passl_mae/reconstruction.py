"""What an MAE makes of an image, in pixels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import paddle

from passl_mae.data.transforms import denormalize
from passl_mae.models.mae import MAE_Pretrain, patch_statistics

NORM_PIX_NOTE = (
    "norm_pix_loss: each patch is taken back to pixels with the mean and standard deviation of its "
    "target, which a real reconstruction would not know"
)


class Reconstruction(NamedTuple):
    """Images are float32 [B, H, W, C] on the 0..1 scale, clipped to it.

    mask: [B, H, W, 1], 1 = removed.
    reconstruction: the model's output everywhere; its loss is on removed patches only, so the
        visible ones look worse here (facebookresearch/mae#146).
    pasted: the visible pixels and the reconstruction of the removed ones.
    """

    original: np.ndarray
    mask: np.ndarray
    reconstruction: np.ndarray
    pasted: np.ndarray

    def masked(self, grey: float = 0.5) -> np.ndarray:
        """The original with removed patches in grey."""
        return self.original * (1 - self.mask) + grey * self.mask

    def panels(self) -> dict[str, np.ndarray]:
        """What a figure shows at one mask ratio, by title."""
        return {
            "masked": self.masked(),
            "reconstruction": self.reconstruction,
            "with visible": self.pasted,
        }


def reconstruct(
    model: MAE_Pretrain,
    images: np.ndarray,
    mask_ratio: float,
    noise: np.ndarray,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Reconstruction:
    """Masks and reconstructs images in evaluation mode, and takes the result back to pixels.

    A model with `norm_pix_loss` predicts each patch normalised by itself; it is taken back with the
    mean and standard deviation of the target patch, which a figure has to say.

    Args:
        images: float32 [B, C, H, W], normalised by `mean` and `std` (0..1 scale, per channel).
        noise: [B, L], fixes the masks.
    """
    training = model.training
    model.eval()
    with paddle.no_grad():
        pixels = predict_pixels(
            model, paddle.to_tensor(images), mask_ratio, paddle.to_tensor(noise)
        )
        predicted, mask = (part.astype("float32").numpy() for part in pixels)
    if training:
        model.train()
    return as_pictures(images, predicted, mask, mean, std)


def predict_pixels(
    model: MAE_Pretrain, images: paddle.Tensor, mask_ratio: float, noise: paddle.Tensor
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """(predicted [B, C, H, W], normalised as the images are; mask [B, 1, H, W], 1 = removed)."""
    latent, mask, ids_restore = model.forward_encoder(images, mask_ratio, noise)
    predicted = model.forward_decoder(latent, ids_restore).astype("float32")  # [B, L, p*q*C]
    if model.norm_pix_loss:
        own_mean, own_std = patch_statistics(model.patchify(images))
        predicted = predicted * own_std + own_mean
    p, q = model.patch_embed.patch_size
    mask = model.unpatchify(mask.unsqueeze(-1).tile([1, 1, p * q]))
    return model.unpatchify(predicted), mask


def as_pictures(
    images: np.ndarray,
    predicted: np.ndarray,
    mask: np.ndarray,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Reconstruction:
    """What `predict_pixels` gave for `images`, all float32 [B, C or 1, H, W], for the eye."""
    mask = mask.transpose(0, 2, 3, 1)
    original = denormalize(images, mean, std)
    reconstruction = denormalize(predicted, mean, std)
    pasted = original * (1 - mask) + reconstruction * mask
    return Reconstruction(original, mask, reconstruction, pasted)
