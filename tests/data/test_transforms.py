import numpy as np
import pytest
from PIL import Image

from passl_mae.data.random import BatchRandom
from passl_mae.data.resample import resample
from passl_mae.data.transforms import (
    Compose,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomShift,
    RandomVerticalFlip,
    Resize,
    denormalize,
)

PILLOW = {"bicubic": Image.BICUBIC, "bilinear": Image.BILINEAR}


def batch(b=6, h=8, w=10, c=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (b, h, w, c), dtype=np.uint8)


def smooth(b, h, w, seed=0):
    """Random images with the smoothness of photographs, from few random points."""
    small = batch(b, 6, 7, 3, seed)
    return np.stack([np.asarray(Image.fromarray(i).resize((w, h), Image.BICUBIC)) for i in small])


def rng(b, key=(0,)):
    return BatchRandom(key, b)


@pytest.mark.parametrize("mode", ["reflect", "constant"])
@pytest.mark.parametrize("size,padding", [(None, 3), ((6, 7), 2), (5, 0)])
def test_random_crop_against_a_loop(mode, size, padding):
    images = batch(40)
    before = images.copy()
    out = RandomCrop(size, padding, mode)(images, rng(40))
    height, width = (8, 10) if size is None else (size, size) if size == 5 else size
    draws = rng(40)  # the same numbers again
    tops = draws.integers(0, 8 + 2 * padding - height + 1)
    lefts = draws.integers(0, 10 + 2 * padding - width + 1)

    def pixel(image, y, x):
        if mode == "constant" and not (0 <= y < 8 and 0 <= x < 10):
            return [0, 0, 0]
        y = -y if y < 0 else 14 - y if y > 7 else y
        x = -x if x < 0 else 18 - x if x > 9 else x
        return image[y, x]

    assert out.shape == (40, height, width, 3) and out.dtype == np.uint8
    for n in range(40):
        for y in range(height):
            for x in range(width):
                expected = pixel(images[n], tops[n] - padding + y, lefts[n] - padding + x)
                assert list(out[n, y, x]) == list(expected)
    np.testing.assert_array_equal(images, before)
    assert len(set(tops)) > 3 and len(set(lefts)) > 3


def test_random_crop_reaches_every_place_evenly():
    tops = []
    images = np.broadcast_to(np.arange(9, dtype=np.uint8)[:, None, None], (9000, 9, 9, 1))
    out = RandomCrop(5, padding=0)(images.copy(), rng(9000))
    tops = np.bincount(out[:, 0, 0, 0], minlength=5)
    assert len(tops) == 5 and (abs(tops - 1800) < 200).all()


def test_random_crop_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="crop of 13 x 13 does not fit an image of 8 x 10 padded"):
        RandomCrop(13, padding=2)(batch(), rng(6))
    with pytest.raises(ValueError, match="reflect padding 8 must be smaller than the image of 8 x"):
        RandomCrop(8, padding=8)(batch(), rng(6))
    with pytest.raises(ValueError, match="unknown padding mode 'edge': choose one of"):
        RandomCrop(8, mode="edge")
    with pytest.raises(ValueError, match="padding must be 0 or more"):
        RandomCrop(8, padding=-1)
    with pytest.raises(ValueError, match="crop size must be at least 1 pixel"):
        RandomCrop((8, 0))


@pytest.mark.parametrize("p,low,high", [(0.0, 0, 0), (1.0, 2000, 2000), (0.25, 420, 580)])
def test_horizontal_flip_mirrors_its_share_of_the_images(p, low, high):
    images = batch(2000, 4, 5)
    before = images.copy()
    out = RandomHorizontalFlip(p)(images, rng(2000))
    flipped = 0
    for a, b in zip(images, out):
        mirrored = np.fliplr(a)
        assert (b == a).all() or (b == mirrored).all()
        flipped += bool((b == mirrored).all())
    assert low <= flipped <= high
    np.testing.assert_array_equal(images, before)
    with pytest.raises(ValueError, match=r"flip probability must lie in 0..1, got 1.5"):
        RandomHorizontalFlip(1.5)


def test_a_vertical_flip_turns_the_rows_of_those_that_a_horizontal_one_would_mirror():
    images = batch(300, 4, 5)
    across = (RandomHorizontalFlip(0.3)(images, rng(300)) != images).any(axis=(1, 2, 3))
    out = RandomVerticalFlip(0.3)(images, rng(300))
    assert 0 < across.sum() < 300
    for image, turned, chosen in zip(images, out, across):
        np.testing.assert_array_equal(turned, np.flipud(image) if chosen else image)


def slow_resize(image, box, size, kernel):
    """Pixel by pixel, in float64: the weights of both axes multiplied."""
    top, left, h, w = box

    def weight(t):
        t = abs(t)
        if kernel == "bilinear":
            return max(0.0, 1 - t)
        if t < 1:
            return 1.5 * t**3 - 2.5 * t**2 + 1
        return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0

    def taps(i, length, out):
        scale = length / out
        raw = [weight((s + 0.5 - (i + 0.5) * scale) / max(scale, 1)) for s in range(length)]
        return np.array(raw) / sum(raw)

    crop = image[top : top + h, left : left + w].astype(np.float64)
    result = np.zeros((*size, image.shape[2]))
    for y in range(size[0]):
        for x in range(size[1]):
            weights = np.outer(taps(y, h, size[0]), taps(x, w, size[1]))
            result[y, x] = (weights[..., None] * crop).sum((0, 1))
    return np.clip(result, 0, 255)


BOXES = [(0, 0, 12, 15), (2, 3, 10, 12), (5, 0, 4, 15), (11, 14, 1, 1), (0, 9, 7, 3)]


@pytest.mark.parametrize("kernel", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(8, 8), (5, 20)])
def test_resampling_of_boxes_against_slow_loops(kernel, size):
    images = batch(len(BOXES), 12, 15)
    out = resample(images, *np.array(BOXES).T, size, kernel)
    assert out.dtype == np.uint8
    for image, box, found in zip(images, BOXES, out):
        assert abs(found - slow_resize(image, box, size, kernel)).max() <= 0.501


@pytest.mark.parametrize("kernel", ["bicubic", "bilinear"])
def test_resampling_of_boxes_against_pillow(kernel):
    boxes = [(0, 0, 40, 50), (3, 7, 20, 11), (10, 10, 30, 40)]
    images = smooth(3, 40, 50)
    out = resample(images, *np.array(boxes).T, (24, 32), kernel)
    for image, (t, le, h, w), found in zip(images, boxes, out):
        crop = Image.fromarray(image).crop((le, t, le + w, t + h))
        expected = np.asarray(crop.resize((32, 24), PILLOW[kernel]))
        # Pillow rounds between its two passes.
        assert abs(found.astype(int) - expected).max() <= 1


def test_a_large_batch_is_resampled_in_chunks_alike(monkeypatch):
    images = batch(7, 12, 15)
    boxes = np.array([(i % 3, i, 9, 8 - i % 4) for i in range(7)]).T
    whole = resample(images, *boxes, (6, 6), "bicubic")
    monkeypatch.setattr("passl_mae.data.resample._CHUNK_BYTES", 1)
    np.testing.assert_array_equal(resample(images, *boxes, (6, 6), "bicubic"), whole)


def test_random_resized_crop_is_its_box_resized_by_pillow():
    images = smooth(20, 40, 50)
    crop = RandomResizedCrop((24, 32), scale=(0.2, 1.0))
    out = crop(images, rng(20))
    for image, found, t, le, h, w in zip(images, out, *crop.boxes(40, 50, crop.draw(rng(20)))):
        part = Image.fromarray(image[t : t + h, le : le + w])
        expected = np.asarray(part.resize((32, 24), Image.BICUBIC))
        assert abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("height,width", [(32, 32), (40, 64)])
def test_boxes_of_random_resized_crop_keep_area_aspect_and_borders(height, width):
    crop = RandomResizedCrop(16, scale=(0.2, 0.5), ratio=(0.8, 1.25))  # always fits
    top, left, h, w = crop.boxes(height, width, crop.draw(rng(4000)))
    assert (top >= 0).all() and (left >= 0).all() and h.min() >= 1 and w.min() >= 1
    assert (top + h <= height).all() and (left + w <= width).all()
    area, aspect = h * w / (height * width), w / h
    assert area.min() > 0.2 * 0.93 and area.max() < 0.5 * 1.07  # whole pixels
    assert abs(area.mean() - 0.35) < 0.01
    assert aspect.min() > 0.8 * 0.9 and aspect.max() < 1.25 * 1.1
    assert abs(np.log(aspect).mean()) < 0.01
    # Places are uniform in the room that is left, first and last included.
    room = height - h
    assert (top == 0).any() and (top == room).any()
    wide = room >= 4
    assert abs((top[wide] / room[wide]).mean() - 0.5) < 0.03


def test_random_resized_crop_of_the_whole_image_changes_nothing():
    images = batch(5, 9, 9)
    out = RandomResizedCrop(9, scale=(1, 1), ratio=(1, 1))(images, rng(5))
    np.testing.assert_array_equal(out, images)


@pytest.mark.parametrize(
    "height,width,expected", [(10, 100, (0, 43, 10, 13)), (100, 10, (43, 0, 13, 10))]
)
def test_when_no_box_fits_the_central_one_is_taken(height, width, expected):
    # All of the area fits only at the image's own aspect.
    crop = RandomResizedCrop(8, scale=(1, 1), ratio=(3 / 4, 4 / 3))
    boxes = np.stack(crop.boxes(height, width, crop.draw(rng(50))), axis=1)
    assert (boxes == expected).all()


@pytest.mark.parametrize(
    "arguments,message",
    [
        (dict(size=0), "size must be at least 1 pixel"),
        (dict(size=8, scale=(0.5, 0.2)), r"scale must be \(low, high\) .* got \(0.5, 0.2\)"),
        (dict(size=8, scale=(0.5, 2)), "scale must be .* <= 1"),
        (dict(size=8, ratio=(0, 1)), "ratio must be"),
        (dict(size=8, interpolation="nearest"), "'nearest': choose one of bicubic, bilinear"),
    ],
)
def test_random_resized_crop_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandomResizedCrop(**arguments)


@pytest.mark.parametrize("size,expected", [((20, 30), (20, 30)), (16, (16, 20)), (60, (60, 75))])
def test_resize_is_pillows(size, expected):
    images = smooth(3, 40, 50)
    out = Resize(size)(images, rng(3))
    for image, found in zip(images, out):
        pillow = np.asarray(Image.fromarray(image).resize(expected[::-1], Image.BICUBIC))
        assert found.shape == (*expected, 3)
        assert abs(found.astype(int) - pillow).max() <= 1


@pytest.mark.parametrize("mean,std", [((0.5, 0.4, 0.3), (0.2, 0.3, 0.25)), ((0.13,), (0.3,))])
def test_normalize_is_the_formula_and_denormalize_its_inverse(mean, std):
    images = batch(300, 3, 4, len(mean))
    out = Normalize(mean, std)(images, rng(300))
    assert out.dtype == np.float32 and out.flags.c_contiguous
    expected = np.empty(out.shape)
    for c in range(len(mean)):
        expected[:, c] = (images[..., c].astype(np.float64) / 255 - mean[c]) / std[c]
    np.testing.assert_allclose(out, expected, rtol=1e-7, atol=1e-8)
    back = denormalize(out, mean, std)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, images / 255, atol=1e-6)


def test_denormalize_clips_to_what_a_figure_can_show():
    out = denormalize(np.array([[-9.0, 0.0, 9.0]]).reshape(1, 1, 1, 3), (0.5,), (0.2,))
    np.testing.assert_allclose(out.reshape(-1), [0, 0.5, 1])


def test_statistics_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="images have 1 channels but mean and std have 3"):
        Normalize((0.5,) * 3, (0.5,) * 3)(batch(c=1), rng(6))
    with pytest.raises(ValueError, match="one number a channel, got 3 and 1"):
        Normalize((0.5,) * 3, (0.5,))
    with pytest.raises(ValueError, match="every std must be positive"):
        Normalize((0.5,), (0.0,))
    with pytest.raises(ValueError, match="images have 3 channels but mean and std have 1"):
        denormalize(np.zeros((1, 3, 2, 2)), (0.5,), (0.5,))


def test_compose_goes_in_order_and_the_parts_of_a_batch_agree():
    images = batch(12, 10, 10)
    steps = [RandomCrop(padding=2), RandomResizedCrop(8), RandomHorizontalFlip()]
    steps.append(Normalize((0.5,) * 3, (0.5,) * 3))
    compose = Compose(steps)
    whole = compose(images, rng(12))
    expected, random = images, rng(12)
    for step in steps:
        expected = step(expected, random)
    np.testing.assert_array_equal(whole, expected)
    parts = [slice(0, 5), slice(5, 12)]
    split = [compose(images[part], BatchRandom((0,), 12, part)) for part in parts]
    np.testing.assert_array_equal(np.concatenate(split), whole)


def test_shifts_move_images_within_their_share_and_repeat_their_edges():
    rows, columns = np.meshgrid(np.arange(20), np.arange(30), indexing="ij")
    image = np.stack([rows, columns, rows + columns], axis=-1).astype(np.uint8)
    images = np.repeat(image[None], 400, axis=0)
    found = RandomShift(0.1)(images, BatchRandom((0,), 400))
    assert found.shape == images.shape and found.dtype == np.uint8
    seen = set()
    for shifted in found.astype(int):
        down, right = shifted[10, 15, 0] - 10, shifted[10, 15, 1] - 15
        seen.add((down, right))
        np.testing.assert_array_equal(shifted[..., 0], np.clip(rows + down, 0, 19))
        np.testing.assert_array_equal(shifted[..., 1], np.clip(columns + right, 0, 29))
    assert seen == {(d, r) for d in range(-2, 3) for r in range(-3, 4)}
    np.testing.assert_array_equal(RandomShift(0.0)(images, BatchRandom((0,), 400)), images)
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match="a shift must be a share of the side"):
            RandomShift(share)
