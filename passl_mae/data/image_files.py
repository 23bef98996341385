"""One image file as bytes of the wanted size and channels, or an error that names it.

Whatever Pillow is fed with, by accident or on purpose, comes through `decode`. Only formats that it
decodes by itself are opened: its EPS reader, for one, would start Ghostscript.
"""

from __future__ import annotations

import functools
import math
import os
import stat
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, UnidentifiedImageError

EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif",
)  # fmt: skip
MAX_PIXELS = 178_956_970  # above it Pillow itself refuses, as a decompression bomb
MODES = {1: "L", 3: "RGB", 4: "RGBA"}

_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
_ORIENTATION = 0x0112  # of EXIF; how the stored image becomes an upright one:
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = [_UPRIGHT[value] for value in (5, 6, 7, 8)]
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# A JPEG may be decoded at 1/2, 1/4 or 1/8 where that leaves this many pixels for each wanted one.
_DRAFT_GAP = 2.0

# What is damaged is refused or read; Pillow's remarks on the rest would be noise, a line a file.
warnings.filterwarnings("ignore", module=r"PIL\.")

Box = tuple[float, float, float, float]  # top, left, height, width
Plan = Callable[[int, int], Box]  # of the height and width of the upright image


def show(path: str | os.PathLike[str]) -> str:
    """The path for a message of one line: quoted and escaped if it holds control characters."""
    text = os.fspath(path)
    return text if text.isprintable() else repr(text)


def check_channels(channels: int) -> None:
    """Raises ValueError unless image files can be read with so many channels."""
    if channels not in MODES:
        raise ValueError(
            f"image files are read with 1 (grey), 3 (RGB) or 4 (RGBA) channels, not {channels}: "
            "set Model.in_chans"
        )


def cover(size: tuple[int, int]) -> Plan:
    """The largest central box with the aspect of `size` (H, W)."""

    def plan(height: int, width: int) -> Box:
        h, w = min(height, width * size[0] / size[1]), min(width, height * size[1] / size[0])
        return (height - h) / 2, (width - w) / 2, h, w

    return plan


def fitting(image: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of an image resized, in its aspect, to the largest that fits into `size` (H, W)."""
    scale = min(size[0] / image[0], size[1] / image[1])
    height, width = (max(1, min(limit, round(s * scale))) for s, limit in zip(image, size))
    return height, width


def decode(
    path: str,
    channels: int,
    size: tuple[int, int] | None = None,
    plan: Plan | None = None,
    max_pixels: int = MAX_PIXELS,
    interpolation: str = "bicubic",
    tight: bool = False,
    pad_fill: int | None = None,
) -> np.ndarray:
    """One image file as uint8 [H, W, C], upright.

    EXIF's rotation is applied. Transparency is laid on white (but kept with 4 channels), 16 bits
    lose their lower 8, CMYK and palettes become RGB without colour management, of an animation the
    first frame counts. Resizing is Pillow's, antialiased.

    Args:
        channels: 1 grey, 3 RGB, 4 RGBA.
        size: (H, W) of the result; None keeps the image's.
        plan: which box of the upright image is resized to `size`; None takes the whole.
        max_pixels: refuse larger images before they are decoded; at most `MAX_PIXELS`.
        interpolation: "bicubic" or "bilinear".
        tight: resize the box as if it had been cut out; else the pixels around it count at its
            border, as in the resizing of the whole image.
        pad_fill: keep the image's aspect: it becomes as large as fits into `size`, in its centre,
            and what is around it takes this value (opaque); without a `plan`.

    Raises:
        ValueError: the file is not there, not an image, damaged or too large; says which and why.
    """
    try:
        _check_file(path)
        with Image.open(path, formats=_formats()) as image:
            _check_pixels(image, max_pixels)
            resampling = _FILTERS[interpolation]
            return _decode(image, channels, size, plan, resampling, tight, pad_fill)
    except Exception as error:  # Pillow's plugins raise anything on damaged bytes
        raise ValueError(f"{show(path)} cannot be read as an image: {_reason(error)}") from None


def convert(
    image: Image.Image,
    channels: int,
    size: tuple[int, int],
    plan: Plan | None,
    max_pixels: int = MAX_PIXELS,
    name: str = "the image",
    pad_fill: int | None = None,
) -> np.ndarray:
    """What `decode` makes of a file, of an image that is open already and stays as it is.

    A large JPEG is not decoded smaller here, so its pixels may differ a little from `decode`'s.

    Raises:
        ValueError: as for `decode`, with `name` in place of the path.
    """
    try:
        _check_pixels(image, max_pixels)
        return _decode(image.copy(), channels, size, plan, _FILTERS["bicubic"], False, pad_fill)
    except Exception as error:  # it may not be loaded yet
        raise ValueError(f"{name} cannot be read: {_reason(error)}") from None


def resize_box(
    image: np.ndarray,
    box: tuple[int, int, int, int],
    size: tuple[int, int],
    interpolation: str = "bicubic",
) -> np.ndarray:
    """Of an image uint8 [h, w, C] the box, cut out and resized: uint8 [*size, C].

    At 224 pixels this is many times faster than the matrix products of `resample`, which suit small
    images.
    """
    channels = image.shape[2]
    top, left, h, w = box
    cut = np.ascontiguousarray(image[top : top + h, left : left + w])
    picture = Image.fromarray(cut[..., 0] if channels == 1 else cut)
    resized = picture.resize(size[::-1], _FILTERS[interpolation])
    return np.asarray(resized).reshape(*size, channels)


def read_images(
    files: Sequence[str], size: tuple[int, int], channels: int, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Image files as uint8 [N, H, W, C]: upright, the short side resized, the centre kept.

    Args:
        size: (H, W) in pixels of the result.
        channels: 1 grey, 3 RGB, 4 RGBA.

    Raises:
        ValueError: a file that cannot be read (named, see `decode`), or other channel counts.
    """
    check_channels(channels)
    return np.stack([decode(file, channels, size, cover(size), max_pixels) for file in files])


@functools.lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    Image.init()  # all plugins are known from here on; old Pillows know fewer formats
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _check_pixels(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise ValueError(
            f"{image.width} x {image.height} pixels are more than Data.max_pixels {max_pixels}"
        )


def _check_file(path: str) -> None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        if os.path.islink(path):
            raise ValueError(f"a dangling link to {show(os.readlink(path))}") from None
        raise
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for ever
        raise ValueError("a folder, pipe or device, not a file")
    if found.st_size == 0:
        raise ValueError("the file is empty (0 bytes)")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or damaged at its beginning"
    if isinstance(error, Image.DecompressionBombError):
        return f"more pixels than {MAX_PIXELS}, a decompression bomb to Pillow"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    return text if isinstance(error, (ValueError, OSError)) and text else f"damaged ({error!r})"


def _decode(
    image: Image.Image,
    channels: int,
    size: tuple[int, int] | None,
    plan: Plan | None,
    resampling: Image.Resampling,
    tight: bool,
    pad_fill: int | None,
) -> np.ndarray:
    jpeg = image.format in ("JPEG", "MPO")
    if not jpeg:
        image.load()  # PNG and TIFF may name their orientation behind the pixels
    turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION))
    sideways = turn in _SIDEWAYS
    height, width = image.size if sideways else image.size[::-1]
    box = (0, 0, height, width) if plan is None else plan(height, width)
    padded = None
    if pad_fill is not None and size is not None:
        assert plan is None, "what is padded is the whole image"
        padded, size = size, fitting((height, width), size)
    shrunk = 1.0
    if jpeg and size is not None:
        shrunk = _draft(image, (height, width), size, box, sideways)
    image.load()
    if turn is not None:
        image = image.transpose(turn)
    image = _with_mode(image, MODES[channels])
    if size is not None:
        top, left, h, w = (value * shrunk for value in box)
        right, bottom = min(left + w, image.width), min(top + h, image.height)
        if tight:  # to whole pixels, which a draft may have divided
            x, y = math.floor(left), math.floor(top)
            image = image.crop((x, y, math.ceil(right), math.ceil(bottom)))
            left, top, right, bottom = left - x, top - y, right - x, bottom - y
        image = image.resize(size[::-1], resampling, (left, top, right, bottom))
    pixels = np.array(image, np.uint8).reshape(image.height, image.width, channels)
    return pixels if padded is None else _in_the_centre(pixels, padded, pad_fill)


def _in_the_centre(pixels: np.ndarray, size: tuple[int, int], fill: int) -> np.ndarray:
    """uint8 [h, w, C] in the centre of [*size, C]; an odd pixel goes behind, alpha is opaque."""
    height, width, channels = pixels.shape
    out = np.full((*size, channels), fill, np.uint8)
    out[..., 3:] = 255
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    out[top : top + height, left : left + width] = pixels
    return out


def _draft(
    image: Image.Image,
    full: tuple[int, int],
    size: tuple[int, int],
    box: Box,
    sideways: bool,
) -> float:
    """Has a JPEG decoded smaller where that leaves enough pixels; 1, 1/2, 1/4 or 1/8.

    full: (H, W) of the whole upright image, of which `box` becomes `size`.
    """
    wanted = [
        max(1, math.ceil(side * min(1.0, _DRAFT_GAP * out / part)))
        for side, out, part in zip(full, size, box[2:])
    ]
    before = image.size
    drafted = image.draft(None, tuple(wanted if sideways else wanted[::-1]))
    return 1.0 if drafted is None else drafted[1][2] / before[0]


def _with_mode(image: Image.Image, mode: str) -> Image.Image:
    """The loaded image as L, RGB or RGBA."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("whole numbers of 32 bits; save it with 8 or 16 bits a channel")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert(mode)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range; save it with 8 or 16 bits")
    transparent = image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info
    if transparent and mode != "RGBA":
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert(mode)
