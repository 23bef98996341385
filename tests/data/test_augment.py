import math

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from passl_mae.data import augment
from passl_mae.data.augment import OPS, RandAugment
from passl_mae.data.random import BatchRandom
from passl_mae.data.transforms import RandomErasing

GEOMETRIC = {"rotate", "shear_x", "shear_y", "translate_x", "translate_y"}
FILL = (10, 200, 90)


def rng(b, key=(0,)):
    return BatchRandom(key, b)


def pictures(b, h, w, c, seed=0):
    """Half noise, half smooth like photographs, some of them of little contrast."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (b, h, w, c), dtype=np.uint8)
    for i in range(0, b, 2):
        small = Image.fromarray(images[i, :5, :6].reshape(5, 6, c).squeeze())
        smooth = np.asarray(small.resize((w, h), Image.BICUBIC)).reshape(h, w, c)
        images[i] = smooth // (1 + i % 3) + 20 * (i % 3)
    return images


def pillow(name, image, level, sign, fill=FILL):
    """One image through Pillow, with the arguments of timm's increasing set; level in 0..1."""
    grey = image.shape[2] == 1
    picture = Image.fromarray(image[..., 0] if grey else image)
    colour = fill[0] if grey else tuple(fill)
    w, h = picture.size
    factor = max(0.1, 1.0 + sign * level * 0.9)

    def affine(*matrix):
        return picture.transform(
            (w, h), Image.AFFINE, matrix, resample=Image.BILINEAR, fillcolor=colour
        )

    def solarize_add():
        table = [min(255, i + int(level * 110)) if i < 128 else i for i in range(256)]
        return picture.point(table * image.shape[2])

    results = {
        "identity": lambda: picture,
        "autocontrast": lambda: ImageOps.autocontrast(picture),
        "equalize": lambda: ImageOps.equalize(picture),
        "invert": lambda: ImageOps.invert(picture),
        "rotate": lambda: picture.rotate(
            sign * level * 30, resample=Image.BILINEAR, fillcolor=colour
        ),
        "posterize": lambda: ImageOps.posterize(picture, max(1, 4 - int(level * 4))),
        "solarize": lambda: ImageOps.solarize(picture, 256 - int(level * 256)),
        "solarize_add": solarize_add,
        "color": lambda: ImageEnhance.Color(picture).enhance(factor),
        "contrast": lambda: ImageEnhance.Contrast(picture).enhance(factor),
        "brightness": lambda: ImageEnhance.Brightness(picture).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(picture).enhance(factor),
        "shear_x": lambda: affine(1, sign * level * 0.3, 0, 0, 1, 0),
        "shear_y": lambda: affine(1, 0, 0, sign * level * 0.3, 1, 0),
        "translate_x": lambda: affine(1, 0, sign * level * 0.45 * w, 0, 1, 0),
        "translate_y": lambda: affine(1, 0, 0, 0, 1, sign * level * 0.45 * h),
    }
    return np.asarray(results[name]()).reshape(image.shape)


def same_as_pillow(found, expected, name):
    """To the bit, but for resampling: Pillow cuts off in float64, so whole numbers may differ."""
    difference = abs(found.astype(int) - expected)
    if name in GEOMETRIC:
        assert difference.max() <= 1 and (difference > 0).mean() < 0.02
    else:
        assert difference.max() == 0


@pytest.mark.parametrize("h,w,c", [(32, 32, 3), (24, 41, 3), (28, 28, 1)])
@pytest.mark.parametrize("name", OPS)
def test_operations_are_pillows(name, h, w, c):
    level = np.repeat([0.0, 0.08, 0.31, 0.5, 0.77, 0.9, 0.99, 1.0], 6)
    sign = np.where(np.arange(48) // 3 % 2 == 0, 1.0, -1.0)
    images = pictures(48, h, w, c)
    before = images.copy()
    out = OPS[name](images, level, sign, np.array(FILL[:c], np.uint8))
    assert out.dtype == np.uint8 and out.shape == images.shape
    expected = [pillow(name, images[i], level[i], sign[i]) for i in range(48)]
    same_as_pillow(out, np.stack(expected), name)
    np.testing.assert_array_equal(images, before)
    assert name == "identity" or (name == "color" and c == 1) or (out != images).any()


@pytest.mark.parametrize("name", ["autocontrast", "equalize", "contrast"])
def test_operations_on_histograms_of_few_levels_are_pillows(name):
    images = np.zeros((6, 16, 16, 3), np.uint8)
    images[1] = 200  # one level
    images[2, :8] = (3, 4, 255)  # two
    images[3, 0, 0] = 255  # too few of the others to equalise
    images[4, ..., 1] = np.arange(256).reshape(16, 16)  # all levels, of one channel
    images[5] = 100 + np.arange(256).reshape(16, 16, 1) % 3
    level, sign = np.full(6, 0.9), np.array([1.0, -1.0] * 3)
    out = OPS[name](images, level, sign, np.zeros(3, np.uint8))
    for i in range(6):
        np.testing.assert_array_equal(out[i], pillow(name, images[i], level[i], sign[i]), str(i))


@pytest.mark.parametrize("h,w", [(1, 1), (1, 5), (2, 2), (3, 3)])
@pytest.mark.parametrize("name", OPS)
def test_tiny_images(name, h, w):
    images = pictures(3, 6, 6, 3)[:, :h, :w].copy()
    out = OPS[name](images, np.full(3, 0.62), np.ones(3), np.array(FILL, np.uint8))
    same_as_pillow(out, np.stack([pillow(name, image, 0.62, 1.0) for image in images]), name)


def test_rotation_is_about_the_centre_and_fills_the_corners():
    images = np.full((1, 33, 33, 3), 255, np.uint8)
    images[0, 16, 16] = 0
    out = OPS["rotate"](images, np.ones(1), np.ones(1), np.array(FILL, np.uint8))
    assert (out[0, 16, 16] == 0).all()
    for y, x in ((0, 0), (0, 32), (32, 0), (32, 32)):
        assert tuple(out[0, y, x]) == FILL


def test_rand_augment_is_a_loop_over_images_and_pillow():
    images = pictures(60, 32, 32, 3)
    before = images.copy()
    names = [name for name in OPS if name not in GEOMETRIC]
    out = RandAugment(num_ops=3, magnitude=7, magnitude_std=2.0, ops=names)(images, rng(60))
    draws = rng(60)  # the same numbers again
    choice = draws.integers(0, len(names), 3)
    applied, positive = draws.uniform(3) < 0.5, draws.uniform(3) < 0.5
    magnitude = np.clip(7 + 2.0 * draws.normal(3).astype(np.float64), 0, 10)
    for i in range(60):
        expected = images[i]
        for k in range(3):
            if applied[i, k]:
                sign = 1.0 if positive[i, k] else -1.0
                expected = pillow(names[choice[i, k]], expected, magnitude[i, k] / 10, sign)
        np.testing.assert_array_equal(out[i], expected)
    np.testing.assert_array_equal(images, before)


def test_default_operations_are_the_fifteen_of_timm():
    assert len(RandAugment().ops) == 15
    assert set(RandAugment().ops) == set(OPS) - {"identity"}


@pytest.mark.parametrize("arguments", [dict(prob=0.0), dict(num_ops=0), dict(ops=["identity"])])
def test_rand_augment_that_does_nothing(arguments):
    images = pictures(20, 12, 12, 3)
    np.testing.assert_array_equal(RandAugment(**arguments)(images, rng(20)), images)


def test_rand_augment_does_not_depend_on_the_split_or_the_chunks(monkeypatch):
    images = pictures(50, 16, 20, 3)
    transform = RandAugment(num_ops=3, prob=0.8)
    whole = transform(images, rng(50))
    parts = [slice(0, 1), slice(1, 30), slice(30, 50)]
    split = [transform(images[part], BatchRandom((0,), 50, part)) for part in parts]
    np.testing.assert_array_equal(np.concatenate(split), whole)
    monkeypatch.setattr(augment, "_CHUNK_PIXELS", 1)
    np.testing.assert_array_equal(transform(images, rng(50)), whole)
    assert (whole != images).any(axis=(1, 2, 3)).mean() > 0.8


def test_shares_of_operations_and_probability():
    images = np.zeros((4000, 1, 1, 1), np.uint8)
    inverted = RandAugment(1, prob=0.3, ops=["invert"])(images, rng(4000)) == 255
    assert abs(inverted.mean() - 0.3) < 0.03
    chosen = RandAugment(1, prob=1.0, ops=["invert", "identity", "color", "rotate"])
    assert abs((chosen(images, rng(4000)) == 255).mean() - 0.25) < 0.03
    twice = RandAugment(2, prob=1.0, ops=["invert", "identity"])  # with replacement
    assert abs((twice(images, rng(4000)) == 255).mean() - 0.5) < 0.03


def test_magnitudes_and_signs_have_their_distributions():
    images = np.zeros((4000, 1, 1, 1), np.uint8)

    def added(**arguments):
        transform = RandAugment(1, prob=1.0, ops=["solarize_add"], **arguments)
        return transform(images, rng(4000)).astype(float).ravel()

    assert set(added(magnitude=9, magnitude_std=0)) == {99.0}
    spread = added(magnitude=5, magnitude_std=0.5)  # 55 +- 5.5, less the fraction
    assert abs(spread.mean() - 54.5) < 0.3 and abs(spread.std() - 5.5) < 0.3
    clipped = added(magnitude=10, magnitude_std=1)
    assert abs((clipped == 110).mean() - 0.5) < 0.03 and clipped.max() == 110
    assert added(magnitude=0, magnitude_std=3).min() == 0

    images = np.broadcast_to(np.arange(9, dtype=np.uint8)[:, None], (4000, 3, 9, 1))
    moved = RandAugment(1, 10, 0, 1.0, ["translate_x"], fill=255)(images.copy(), rng(4000))
    assert abs((moved[:, 0, 0, 0] == 255).mean() - 0.5) < 0.03


def test_fill_is_one_grey_or_a_colour():
    images = np.zeros((3, 8, 8, 3), np.uint8)
    right = dict(num_ops=1, magnitude=10, magnitude_std=0, prob=1.0, ops=["translate_x"])
    for fill, expected in ((128, (128,) * 3), (FILL, FILL)):
        out = RandAugment(**right, fill=fill)(images, rng(3))
        filled = out[(out != 0).any(axis=-1)]
        assert len(filled) and (filled == expected).all()


@pytest.mark.parametrize(
    "arguments,message",
    [
        (dict(num_ops=-1), "num_ops must be 0 or more, got -1"),
        (dict(magnitude=11), r"magnitude must lie in 0..10, got 11"),
        (dict(magnitude_std=-1), "magnitude_std must be finite and 0 or more, got -1"),
        (dict(magnitude_std=math.inf), "magnitude_std must be finite"),
        (dict(prob=2), r"prob must lie in 0..1, got 2"),
        (dict(ops=["invert", "blur"]), "unknown operation 'blur': choose from identity, auto"),
        (dict(ops=[]), "ops is empty: choose from identity"),
        (dict(fill=256), r"fill must be whole numbers in 0..255, .* got 256"),
        (dict(fill=(1, 2)), "fill must be"),
        (dict(fill=0.5), "fill must be"),
    ],
)
def test_rand_augment_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandAugment(**arguments)


def test_rand_augment_refuses_batches_it_cannot_treat():
    with pytest.raises(ValueError, match="got float32: put it before Normalize"):
        RandAugment()(np.zeros((2, 4, 4, 3), np.float32), rng(2))
    with pytest.raises(ValueError, match="grey or RGB images, got 4 channels"):
        RandAugment()(np.zeros((2, 4, 4, 4), np.uint8), rng(2))
    with pytest.raises(ValueError, match="fill has 3 colours but the images 1: give 1 number"):
        RandAugment(fill=FILL)(np.zeros((2, 4, 4, 1), np.uint8), rng(2))


def ones(b, h=16, w=20, c=3):
    return np.ones((b, c, h, w), np.float32)


def boxes(erased):
    """(height, width) of the erased box of each image of `ones` [B, C, H, W], (0, 0) for none."""
    found = []
    for image in erased:
        changed = image != 1
        np.testing.assert_array_equal(changed, np.broadcast_to(changed[0], changed.shape))
        rows, columns = changed[0].any(axis=1), changed[0].any(axis=0)
        np.testing.assert_array_equal(changed[0], np.outer(rows, columns))
        if rows.any():
            assert np.ptp(np.flatnonzero(rows)) + 1 == rows.sum()
            assert np.ptp(np.flatnonzero(columns)) + 1 == columns.sum()
        found.append((rows.sum(), columns.sum()))
    return np.array(found)


@pytest.mark.parametrize("mode", ["const", "pixel"])
def test_random_erasing_against_a_loop(mode):
    images = np.random.default_rng(0).standard_normal((200, 3, 16, 20)).astype(np.float32)
    before = images.copy()
    out = RandomErasing(0.5, scale=(0.1, 0.9), mode=mode)(images, rng(200))
    draws = rng(200)  # the same numbers again
    chosen, areas, aspects = draws.uniform() < 0.5, draws.uniform(10), draws.uniform(10)
    places = draws.uniform(2)
    erased, later_attempts = 0, 0
    for i in range(200):
        expected = images[i].copy()
        for attempt in range(10):
            area = (0.1 + 0.8 * float(areas[i, attempt])) * 16 * 20
            aspect = 0.3 * (1 / 0.09) ** float(aspects[i, attempt])
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if w < 20 and h < 16:
                break
        else:
            h = w = 0
        if chosen[i] and h:
            top, left = int(places[i, 0] * (17 - h)), int(places[i, 1] * (21 - w))
            inside = (slice(None), slice(top, top + h), slice(left, left + w))
            expected[inside] = 0 if mode == "const" else out[i][inside]
            assert (out[i][inside] != images[i][inside]).all()
            erased += 1
            later_attempts += attempt > 0
        np.testing.assert_array_equal(out[i], expected)
    assert 70 < erased < 130 and later_attempts > 10
    np.testing.assert_array_equal(images, before)


def test_boxes_of_random_erasing_have_their_distributions():
    out = RandomErasing(1.0, scale=(0.05, 0.3), ratio=(0.5, 2.0))(ones(3000, 32, 32), rng(3000))
    h, w = boxes(out).T
    assert h.min() >= 1 and w.min() >= 1 and h.max() < 32 and w.max() < 32
    share = h * w / 1024
    assert share.min() > 0.04 and share.max() < 0.33 and abs(share.mean() - 0.175) < 0.005
    aspect = np.log(w / h)
    assert abs(aspect.mean()) < 0.03 and abs(aspect.std() - np.log(4) / math.sqrt(12)) < 0.03
    # The erased places spread alike over the image's halves, up to both borders.
    where = (out != 1)[:, 0].mean(axis=0)
    assert where.min() > 0
    assert abs(where[:16].sum() / where.sum() - 0.5) < 0.02
    assert abs(where[:, :16].sum() / where.sum() - 0.5) < 0.02


@pytest.mark.parametrize("p,low,high", [(0.0, 0, 0), (0.25, 420, 580), (1.0, 2000, 2000)])
def test_random_erasing_erases_its_share_of_the_images(p, low, high):
    out = RandomErasing(p)(ones(2000, 12, 12), rng(2000))
    assert low <= (out != 1).any(axis=(1, 2, 3)).sum() <= high


def test_the_noise_is_normal_and_each_images_own():
    out = RandomErasing(1.0, scale=(0.3, 0.33), ratio=(1, 1))(ones(400), rng(400))
    noise = [image[image != 1] for image in out]
    values = np.concatenate(noise)
    assert abs(values.mean()) < 0.02 and abs(values.std() - 1) < 0.02
    assert abs((values**4).mean() - 3) < 0.15
    assert len({float(n[0]) for n in noise}) == 400


def test_random_erasing_does_not_depend_on_the_split():
    images = ones(40)
    for mode in ("pixel", "const"):
        erase = RandomErasing(0.5, mode=mode)
        whole, parts = erase(images, rng(40)), [slice(0, 7), slice(7, 8), slice(8, 40)]
        split = [erase(images[part], BatchRandom((0,), 40, part)) for part in parts]
        np.testing.assert_array_equal(np.concatenate(split), whole)
    later = []
    for arguments in (dict(p=0.0), dict(p=1.0), dict(p=0.5, mode="const")):
        random = rng(40)
        RandomErasing(**arguments)(images, random)
        later.append(random.uniform())
    assert (later[0] == later[1]).all() and (later[0] == later[2]).all()


def test_where_no_box_fits_nothing_is_erased():
    images = ones(30, 1, 50)
    np.testing.assert_array_equal(RandomErasing(1.0)(images, rng(30)), images)
    images = ones(30)
    whole = RandomErasing(1.0, scale=(1, 1), ratio=(1.25, 1.25))  # fits, but is not smaller
    np.testing.assert_array_equal(whole(images, rng(30)), images)


@pytest.mark.parametrize(
    "arguments,message",
    [
        (dict(p=-0.1), r"erasing probability must lie in 0..1, got -0.1"),
        (dict(scale=(0.5, 0.2)), r"scale must be \(low, high\) .* got \(0.5, 0.2\)"),
        (dict(scale=(0.5, 2)), "scale must be .* <= 1"),
        (dict(ratio=(0, 1)), "ratio must be"),
        (dict(mode="rand"), "unknown erasing mode 'rand': choose one of const, pixel"),
    ],
)
def test_random_erasing_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandomErasing(**arguments)


def test_random_erasing_refuses_bytes():
    with pytest.raises(ValueError, match="got uint8: put it after Normalize"):
        RandomErasing()(np.zeros((2, 4, 4, 3), np.uint8), rng(2))
