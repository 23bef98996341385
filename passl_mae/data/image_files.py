"""Image files of any size as one batch of a model's size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps


def read_images(files: Sequence[str], size: tuple[int, int], channels: int) -> np.ndarray:
    """Image files as uint8 [N, H, W, C]: upright, the short side resized, the centre kept.

    Args:
        size: (H, W) in pixels of the result.
        channels: 3 for colour, 1 for grey.

    Raises:
        ValueError: a file that is missing or is not an image (named), or other channel counts.
    """
    modes = {1: "L", 3: "RGB"}
    if channels not in modes:
        raise ValueError(f"image files can be read with 1 or 3 channels, the model has {channels}")
    images = []
    for file in files:
        try:
            with Image.open(file) as opened:
                upright = ImageOps.exif_transpose(opened).convert(modes[channels])
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{file} cannot be read as an image: {error}") from None
        fitted = ImageOps.fit(upright, (size[1], size[0]), Image.Resampling.BICUBIC)
        images.append(np.asarray(fitted, np.uint8).reshape(*size, channels))
    return np.stack(images)
