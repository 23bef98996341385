"""Each kind of image file, pixel by pixel, and each kind of file that is none."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from passl_mae.data.image_files import check_channels, cover, decode, fitting, read_images

H, W = 6, 9


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (H, W, 4), np.uint8)


def png(pixels, depth, colour, extra=b""):
    """A PNG file of raw rows, written by its specification: no Pillow involved."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra
        + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )  # fmt: skip


def on_white(rgba):
    """Composited on white, rounded; a byte's room for Pillow's integer arithmetic."""
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp", "a.ppm", "a.jp2", "a.gif"])
def test_lossless_formats_give_their_pixels(tmp_path, pixels, name):
    path = tmp_path / name
    rgb = pixels[..., :3]
    options = {"a.webp": {"lossless": True}, "a.jp2": {"irreversible": False}}.get(name, {})
    image = Image.fromarray(rgb)
    if name == "a.gif":  # a palette of 54 colours loses none
        image = image.quantize(256)
        rgb = np.asarray(image.convert("RGB"))
    image.save(path, **options)
    np.testing.assert_array_equal(decode(str(path), 3), rgb)


def test_grey_becomes_colour_and_colour_grey(tmp_path, pixels):
    grey, rgb = pixels[..., 0], pixels[..., :3]
    Image.fromarray(grey).save(tmp_path / "g.png")
    np.testing.assert_array_equal(decode(str(tmp_path / "g.png"), 1)[..., 0], grey)
    np.testing.assert_array_equal(
        decode(str(tmp_path / "g.png"), 3), np.repeat(grey[..., None], 3, 2)
    )
    Image.fromarray(rgb).save(tmp_path / "c.png")
    luma = rgb @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(decode(str(tmp_path / "c.png"), 1)[..., 0], luma, atol=0.51)


def test_alpha_is_laid_on_white_or_kept(tmp_path, pixels):
    path = str(tmp_path / "a.png")
    Image.fromarray(pixels, "RGBA").save(path)
    np.testing.assert_allclose(decode(path, 3), on_white(pixels), atol=1)
    np.testing.assert_array_equal(decode(path, 4), pixels)
    opaque = pixels.copy()
    opaque[..., 3] = 255
    Image.fromarray(opaque, "RGBA").save(path)
    np.testing.assert_array_equal(decode(path, 3), opaque[..., :3])
    two = np.ascontiguousarray(pixels[..., 2:])  # grey and alpha
    Image.fromarray(two, "LA").save(path)
    expected = two[..., 0] * (two[..., 1] / 255) + 255 - two[..., 1]
    np.testing.assert_allclose(decode(path, 1)[..., 0], expected, atol=1)


def test_a_palettes_transparent_colour_is_white(tmp_path):
    path = str(tmp_path / "p.png")
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    image.save(path, transparency=1)
    assert decode(path, 3).tolist() == [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]
    assert decode(path, 4)[0, :, 3].tolist() == [255, 0, 255]
    image.save(path, transparency=bytes([255, 0, 127]))
    np.testing.assert_allclose(decode(path, 3)[0, 2], [163, 168, 173], atol=1)


def test_a_transparent_colour_of_a_truecolour_png_is_white(tmp_path):
    rgb = np.array([[[1, 2, 3], [200, 100, 50]]], np.uint8)
    chunk = b"tRNS" + struct.pack(">HHH", 1, 2, 3)
    extra = struct.pack(">I", 6) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "t.png").write_bytes(png(rgb, 8, 2, extra))
    assert decode(str(tmp_path / "t.png"), 3).tolist() == [[[255] * 3, [200, 100, 50]]]


@pytest.mark.parametrize("kind", ["png", "tif", "tif_big_endian", "pgm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, kind):
    values = np.array([[0, 255, 256, 0x7FFF, 0x8000, 0xFEFF, 0xFFFF]], np.uint16)
    path = tmp_path / f"a.{kind[:3]}"
    if kind == "png":
        path.write_bytes(png(values.astype(">u2"), 16, 0))
    elif kind == "pgm":
        path.write_bytes(b"P5 7 1 65535\n" + values.astype(">u2").tobytes())
    elif kind == "tif":
        Image.fromarray(values).save(path)
    else:
        big = Image.frombytes("I;16B", (7, 1), values.astype(">u2").tobytes())
        big.save(path)
    expected = [0, 0, 1, 0x7F, 0x80, 0xFE, 0xFF]
    assert decode(str(path), 1)[0, :, 0].tolist() == expected
    assert decode(str(path), 3)[0].tolist() == [[v] * 3 for v in expected]


def test_sixteen_bits_of_colour(tmp_path):
    values = np.array([[[0, 0x1234, 0xFFFF], [0x8000, 0x00FF, 0xABCD]]], np.uint16)
    (tmp_path / "c.png").write_bytes(png(values.astype(">u2"), 16, 2))
    assert decode(str(tmp_path / "c.png"), 3).tolist() == (values >> 8).tolist()


def test_floats_and_long_whole_numbers_are_refused(tmp_path):
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(ValueError, match=r"f\.tif cannot be read .*floating-point pixels have no"):
        decode(str(tmp_path / "f.tif"), 3)
    Image.fromarray(np.full((2, 2), 70_000, np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(ValueError, match=r"i\.tif cannot be read .*whole numbers of 32 bits"):
        decode(str(tmp_path / "i.tif"), 3)


def test_one_bit_images_are_black_and_white(tmp_path):
    bits = np.random.default_rng(1).integers(0, 2, (H, W)).astype(bool)
    Image.fromarray(bits).save(tmp_path / "b.png")
    np.testing.assert_array_equal(decode(str(tmp_path / "b.png"), 1)[..., 0], bits * np.uint8(255))


def test_cmyk_is_not_inverted(tmp_path):
    """Ink: none is white, cyan takes the red away."""
    inks = np.zeros((16, 32, 4), np.uint8)
    inks[:, 16:, 0] = 255  # the right half is cyan
    for name in ("c.jpg", "c.tif"):  # Adobe's JPEGs hold it inverted, which is to be undone
        Image.fromarray(inks, "CMYK").save(tmp_path / name, quality=100)
        seen = decode(str(tmp_path / name), 3).astype(int)
        np.testing.assert_allclose(seen[:, :14], 255, atol=3)
        np.testing.assert_allclose(seen[:, 18:] - [0, 255, 255], 0, atol=3)


@pytest.mark.parametrize("name", ["e.jpg", "e.png", "e.webp", "e.tif"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_the_exif_rotation_is_applied(tmp_path, name, turn):
    """By the standard's words: where row 0 and column 0 of the stored image are seen."""
    ys, xs = np.mgrid[:64, :96]
    upright = np.stack([xs * 2, ys * 3, 255 - xs], axis=2).astype(np.uint8)
    stored = {
        1: upright,
        2: upright[:, ::-1],  # row 0 top, column 0 right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: upright.transpose(1, 0, 2),  # row 0 left, column 0 top
        6: upright.transpose(1, 0, 2)[::-1],  # row 0 right side, column 0 top
        7: upright.transpose(1, 0, 2)[::-1, ::-1],  # right, bottom
        8: upright.transpose(1, 0, 2)[:, ::-1],  # left, bottom
    }[turn]
    # Row 0 of the stored image is the right side: its pixels, left to right, run top to bottom.
    if turn == 6:
        stored = np.rot90(upright, 1)
    elif turn == 8:
        stored = np.rot90(upright, -1)
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / name
    options = {"e.webp": {"lossless": True}, "e.jpg": {"quality": 98, "subsampling": 0}}
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **options.get(name, {}))
    lossy = 3 if name == "e.jpg" else 0
    seen = decode(str(path), 3)
    assert seen.shape == upright.shape
    np.testing.assert_allclose(seen.astype(int), upright, atol=lossy)
    # A box counts in the upright image, drafted (16 times smaller than the file) or not.
    box = decode(str(path), 3, (4, 4), lambda h, w: (h / 2, 0, h / 2, w / 4))
    expected = upright[32:, :24].reshape(4, 8, 4, 6, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(box, expected, atol=8)


def test_of_an_animation_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "lime", "blue")]
    for name in ("a.gif", "a.webp", "a.png", "a.tif"):
        options = {"lossless": True} if name == "a.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(
            decode(str(tmp_path / name), 3), np.full((3, 4, 3), (255, 0, 0))
        )


def test_resizing_is_pillows(tmp_path):
    """The central box, bicubic: what `ImageOps.fit` makes, which is another way there."""
    rgb = np.random.default_rng(0).integers(0, 256, (31, 50, 3), np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    fitted = ImageOps.fit(Image.fromarray(rgb), (16, 12), Image.Resampling.BICUBIC)
    found = read_images([str(tmp_path / "a.png")], (12, 16), 3)
    np.testing.assert_array_equal(found[0], np.asarray(fitted))
    exact = decode(str(tmp_path / "a.png"), 3, (31, 50), cover((31, 50)))
    np.testing.assert_array_equal(exact, rgb)


def test_drafts_of_large_jpegs_stay_close(tmp_path):
    ys, xs = np.mgrid[:600, :800]
    smooth = 127 + 60 * np.sin(xs / 37) + 60 * np.cos(ys / 23)
    rgb = np.stack([smooth, smooth[::-1], smooth[:, ::-1]], axis=2).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.jpg", quality=97, subsampling=0)
    whole = Image.fromarray(rgb).resize((40, 30), Image.Resampling.BICUBIC)
    found = decode(str(tmp_path / "a.jpg"), 3, (30, 40), cover((30, 40)))
    np.testing.assert_allclose(found.astype(int), np.asarray(whole).astype(int), atol=4)


def encoded(kind="PNG", size=(40, 30), **options):
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"the file is empty \(0 bytes\)"),
        (b"\0" * 1000, "not an image, or damaged at its beginning"),
        (b"once upon a time\n" * 50, "not an image, or damaged at its beginning"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (encoded("JPEG")[:-300], "truncated"),
        (encoded("PNG")[:-300], "truncated|broken"),
        (encoded("GIF")[:-300], "truncated|broken"),
        (encoded("WEBP")[:-300], "not an image|truncated|damaged|could not"),
        (encoded("TIFF")[:-300], "."),
        (encoded("BMP")[:-300], "truncated"),
    ],
)
def test_what_is_no_image_is_named_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "照片 1.jpg"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"照片 1\.jpg cannot be read as an image: .*({reason})"
    ) as error:
        decode(str(path), 3)
    assert "\n" not in str(error.value)


def test_missing_files_links_folders_and_pipes(tmp_path):
    with pytest.raises(ValueError, match=r"no\.png cannot be read as an image: No such file"):
        decode(str(tmp_path / "no.png"), 3)
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(ValueError, match=r"link\.png cannot .* a dangling link to .*gone\.png"):
        decode(str(tmp_path / "link.png"), 3)
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("folder.png", "pipe.png"):
        with pytest.raises(ValueError, match=rf"{name} cannot .*a folder, pipe or device"):
            decode(str(tmp_path / name), 3)


def test_a_name_with_a_newline_is_read_and_shown_in_one_line(tmp_path, pixels):
    path = tmp_path / "two\nlines 图.png"
    Image.fromarray(pixels[..., :3]).save(path)
    np.testing.assert_array_equal(decode(str(path), 3), pixels[..., :3])
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"two\\nlines 图\.png' cannot be read") as error:
        decode(str(path), 3)
    assert "\n" not in str(error.value)


def test_decompression_bombs_are_refused_before_they_are_decoded(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(np.zeros((1, 1, 3), np.uint8), 8, 2))
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bomb\.png .*more pixels than 178956970, a decompressio"):
        decode(str(path), 3)
    (tmp_path / "a.png").write_bytes(encoded())
    with pytest.raises(ValueError, match=r"a\.png .*40 x 30 pixels are more than Data\.max_pixels"):
        decode(str(tmp_path / "a.png"), 3, max_pixels=1199)
    assert decode(str(tmp_path / "a.png"), 3, max_pixels=1200).shape == (30, 40, 3)


@pytest.mark.filterwarnings("error")
def test_pillows_warnings_do_not_leak(tmp_path):
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0" + b"\xff" * 20  # five entries, less than two there
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG", exif=exif))
    import warnings

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", module=r"PIL\.")
        assert decode(str(tmp_path / "a.jpg"), 3).shape == (30, 40, 3)
    assert seen == []


@pytest.mark.parametrize("channels", [0, 2, 5])
def test_other_channel_counts_are_refused(channels):
    with pytest.raises(
        ValueError, match=rf"1 \(grey\), 3 \(RGB\) or 4 .*, not {channels}: set Mod"
    ):
        check_channels(channels)


@pytest.mark.parametrize("image, size, wanted", [
    ((100, 200), (50, 50), (25, 50)),
    ((200, 100), (50, 50), (50, 25)),
    ((30, 40), (60, 60), (45, 60)),  # small images grow
    ((10, 10), (8, 16), (8, 8)),
    ((1, 1000), (8, 8), (1, 8)),  # never to nothing
    ((333, 334), (300, 300), (299, 300)),
])  # fmt: skip
def test_the_largest_that_fits_in_its_aspect(image, size, wanted):
    assert fitting(image, size) == wanted


@pytest.mark.parametrize("fill", [255, 7])
def test_padding_keeps_the_aspect_and_fills_around(tmp_path, fill):
    pixels = np.random.default_rng(3).integers(0, 256, (6, 12, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    found = decode(str(tmp_path / "wide.png"), 3, (9, 8), pad_fill=fill)
    inner = np.asarray(Image.fromarray(pixels).resize((8, 4), Image.Resampling.BICUBIC))
    expected = np.full((9, 8, 3), fill, np.uint8)
    expected[2:6] = inner  # 5 rows of filling: 2 above, 3 below
    np.testing.assert_array_equal(found, expected)


def test_padding_is_opaque_and_of_the_upright_image(tmp_path):
    rgba = np.random.default_rng(4).integers(0, 256, (4, 2, 4), np.uint8)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    found = decode(str(tmp_path / "a.png"), 4, (4, 4), pad_fill=9)
    np.testing.assert_array_equal(found[:, 1:3], rgba)
    assert (found[:, [0, 3], :3] == 9).all() and (found[:, [0, 3], 3] == 255).all()
    turned = Image.new("RGB", (80, 40), (200, 10, 10))
    exif = turned.getexif()
    exif[0x0112] = 6  # lies on its side
    turned.save(tmp_path / "t.jpg", exif=exif, quality=95)
    found = decode(str(tmp_path / "t.jpg"), 3, (16, 16), pad_fill=255)
    assert (found[:, :4] == 255).all() and (found[:, 12:] == 255).all()
    expected = np.broadcast_to([200, 10, 10], (16, 8, 3))
    np.testing.assert_allclose(found[:, 4:12], expected, atol=6)
