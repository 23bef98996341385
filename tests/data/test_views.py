"""Colours and blur against Pillow, colorsys and slow NumPy; draws, views and refusals."""

import colorsys
import itertools

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from passl_mae.data import views
from passl_mae.data.random import BatchRandom
from passl_mae.data.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip
from passl_mae.data.views import ColorJitter, GaussianBlur, RandomGrayscale, TwoViews

FACTORS = np.array([0.0, 0.6, 0.95, 1.0, 1.3, 1.8])


def rng(b, key=(0,)):
    return BatchRandom(key, b)


def pictures(b, h=13, w=17, c=3, seed=0):
    """Half noise, half smooth like photographs."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (b, h, w, c), dtype=np.uint8)
    for i in range(0, b, 2):
        small = Image.fromarray(images[i, :5, :6].squeeze())
        images[i] = np.asarray(small.resize((w, h), Image.BICUBIC)).reshape(h, w, c)
    return images


@pytest.mark.parametrize(
    ("function", "enhancer"),
    [
        (views.adjust_brightness, ImageEnhance.Brightness),
        (views.adjust_contrast, ImageEnhance.Contrast),
        (views.adjust_saturation, ImageEnhance.Color),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_enhancements_are_pillows(function, enhancer, channels):
    images = pictures(len(FACTORS), c=channels)
    found = function(images, FACTORS)
    for image, factor, result in zip(images, FACTORS, found):
        enhanced = np.asarray(enhancer(Image.fromarray(image.squeeze())).enhance(factor))
        np.testing.assert_array_equal(result, enhanced.reshape(image.shape))


def test_the_hue_is_turned_as_colorsys_does():
    turns = np.array([0.0, 0.1, -0.1, 0.37, -0.5, 0.5])
    images = pictures(len(turns), 5, 7)
    images[:, 0, 0], images[:, 0, 1], images[:, 0, 2] = 0, 255, 128  # greys have no hue
    images[:, 0, 3], images[:, 0, 4] = (255, 0, 0), (0, 255, 255)
    found = views.adjust_hue(images, turns)
    for i, y, x in itertools.product(range(len(turns)), range(5), range(7)):
        hue, saturation, value = colorsys.rgb_to_hsv(*(images[i, y, x] / 255))
        expected = 255 * np.array(colorsys.hsv_to_rgb((hue + turns[i]) % 1, saturation, value))
        assert np.abs(found[i, y, x] - expected).max() <= 0.5 + 1e-3
    np.testing.assert_array_equal(found[0], images[0])


def test_the_hue_is_pillows_but_for_its_rounding():
    """torchvision turns the hue byte of Pillow's HSV; whole numbers of hue cost a few levels."""
    images, turns = pictures(6, 32, 32), np.linspace(-0.1, 0.1, 6)
    found = views.adjust_hue(images, turns).astype(int)
    for image, turn, result in zip(images, turns, found):
        hsv = np.array(Image.fromarray(image).convert("HSV"))
        hsv[..., 0] += np.uint8(int(turn * 255) % 256)
        expected = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB")).astype(int)
        # the hue, its turn and the new hue each lose up to 1/255 of the circle: six levels
        assert np.abs(result - expected).mean() < 2 and np.abs(result - expected).max() <= 18


def test_greys_are_pillows_luma():
    images = pictures(8)
    found = RandomGrayscale(1.0)(images, rng(8))
    for image, result in zip(images, found):
        luma = np.asarray(Image.fromarray(image).convert("L"))
        np.testing.assert_array_equal(result, np.stack([luma] * 3, axis=-1))
    one = pictures(2, c=1)
    np.testing.assert_array_equal(RandomGrayscale(1.0)(one, rng(2)), one)


@pytest.mark.parametrize("channels", [1, 3])
def test_blur_is_a_gaussian(channels):
    """Pixel by pixel; the border's pixels are repeated, the sum of the weights is 1."""
    sigmas = np.array([0.1, 0.7, 1.0, 2.0])
    images = pictures(len(sigmas), 9, 11, channels)
    found = views.blur(images, sigmas)
    for image, sigma, result in zip(images.astype(np.float64), sigmas, found):
        radius = int(np.ceil(3 * sigma))
        weights = [np.exp(-(d**2) / (2 * sigma**2)) for d in range(-radius, radius + 1)]
        total = sum(weights)
        for y, x in itertools.product(range(9), range(11)):
            value = 0.0
            for dy, wy in zip(range(-radius, radius + 1), weights):
                for dx, wx in zip(range(-radius, radius + 1), weights):
                    pixel = image[min(max(y + dy, 0), 8), min(max(x + dx, 0), 10)]
                    value = value + wy * wx * pixel / total**2
            assert np.abs(result[y, x] - value).max() <= 0.5 + 1e-3


def test_blur_is_near_pillows():
    images, sigma = pictures(2, 64, 64)[:1], 1.5
    theirs = Image.fromarray(images[0]).filter(ImageFilter.GaussianBlur(sigma))
    difference = views.blur(images, np.array([sigma]))[0].astype(int) - np.asarray(theirs)
    assert np.abs(difference).mean() < 1.0


def test_jitter_is_its_operations_in_each_images_own_order():
    """Image by image with the same draws: which are changed, the order, the factors."""
    b, jitter = 40, ColorJitter(0.4, 0.3, 0.2, 0.1, p=0.7)
    images = pictures(b)
    found = jitter(images, rng(b))
    draws = rng(b)
    chosen = draws.uniform() < 0.7
    order = np.argsort(draws.uniform(4), axis=1)
    amount = 2 * draws.uniform(4) - 1
    functions = [
        views.adjust_brightness, views.adjust_contrast, views.adjust_saturation, views.adjust_hue,
    ]  # fmt: skip
    assert 20 < chosen.sum() < 36 and len({tuple(row) for row in order}) > 12
    for i in range(b):
        expected = images[i : i + 1]
        for number in order[i] if chosen[i] else []:
            strength = (0.4, 0.3, 0.2, 0.1)[number]
            factor = amount[i, number] * np.float32(strength) + (number < 3)
            expected = functions[number](expected, np.array([factor]))
        np.testing.assert_array_equal(found[i], expected[0], err_msg=str(i))


def test_factors_are_not_negative_and_what_is_off_does_nothing():
    images = pictures(30)
    dark = ColorJitter(brightness=3.0, contrast=0, saturation=0, hue=0, p=1.0)(images, rng(30))
    black = (dark == 0).all(axis=(1, 2, 3)).mean()
    assert 0.1 < black < 0.6  # factors from -2 to 0 are a third
    np.testing.assert_array_equal(ColorJitter(0, 0, 0, 0, p=1.0)(images, rng(30)), images)
    np.testing.assert_array_equal(ColorJitter(p=0.0)(images, rng(30)), images)
    np.testing.assert_array_equal(GaussianBlur(0.0)(images, rng(30)), images)


def transforms():
    return Compose(
        [
            RandomCrop(padding=2),
            RandomHorizontalFlip(),
            ColorJitter(),
            RandomGrayscale(),
            GaussianBlur(),
            Normalize([0.5] * 3, [0.25] * 3),
        ]
    )


def test_two_views_have_draws_of_their_own_and_follow_from_the_key():
    images, two = pictures(16, 16, 16), TwoViews(transforms())
    found = two(images, rng(16))
    assert found.shape == (16, 2, 3, 16, 16) and found.dtype == np.float32
    assert all((pair[0] != pair[1]).any() for pair in found)
    np.testing.assert_array_equal(found, two(images, rng(16)))
    assert (found != two(images, rng(16, (1,)))).any()
    first = transforms()(images, rng(16))
    np.testing.assert_array_equal(found[:, 0], first)


def test_parts_of_a_batch_are_what_the_whole_has():
    images, two = pictures(12, 16, 16), TwoViews(transforms())
    whole = two(images, rng(12))
    for part in (slice(0, 4), slice(4, 12)):
        np.testing.assert_array_equal(two(images[part], BatchRandom((0,), 12, part)), whole[part])


def test_the_given_images_stay_as_they_are():
    images = pictures(8)
    before = images.copy()
    for transform in (ColorJitter(p=1.0), RandomGrayscale(1.0), GaussianBlur(1.0)):
        transform(images, rng(8))
        np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ColorJitter(brightness=-1), "brightness must be finite and 0 or more, got -1"),
        (lambda: ColorJitter(hue=0.6), "hue must lie in 0..0.5, got 0.6"),
        (lambda: ColorJitter(p=2), "jitter probability must lie in 0..1, got 2"),
        (lambda: RandomGrayscale(-1), "grayscale probability must lie in 0..1, got -1"),
        (lambda: GaussianBlur(p=1.5), "blur probability must lie in 0..1, got 1.5"),
        (lambda: GaussianBlur(sigma=(0, 2)), "0 < low <= high, got"),
        (lambda: ColorJitter()(np.zeros((1, 4, 4, 3), np.float32), rng(1)), "got float32 with 3"),
        (lambda: RandomGrayscale()(np.zeros((1, 4, 4, 2), np.uint8), rng(1)), "uint8 with 2 chan"),
        (lambda: GaussianBlur()(np.zeros((1, 4, 4, 3)), rng(1)), "takes uint8 .* got float64"),
    ],
)
def test_arguments_out_of_bounds(make, message):
    with pytest.raises(ValueError, match=message):
        make()
