"""The page's part that needs no page: masks by chance and by hand, and what is drawn."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from passl_mae import Predictor
from passl_mae.web.studio import Mask, Studio

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = {
    "mae": ("weights/cifar10_cpu_mae.safetensors", "configs/pretrain/cifar10_cpu.yaml"),
    "classifier": (
        "weights/cifar10_cpu_classifier.safetensors",
        "configs/finetune/cifar10_cpu.yaml",
    ),
}
DOG = str(ROOT / "docs/images/examples/dog.png")


def shipped(name: str) -> Predictor:
    return Predictor.from_weights(*(ROOT / part for part in SHIPPED[name]), device="cpu")


@pytest.fixture(scope="module")
def studio():
    return Studio(shipped("mae"), shipped("classifier"), max_pixels=10_000)


def small(picture: np.ndarray, studio: Studio) -> np.ndarray:
    return picture[:: studio.scale, :: studio.scale]


@pytest.mark.parametrize(("ratio", "visible"), [(0.75, 16), (0.5, 32), (0.0, 64), (0.98, 1)])
def test_what_is_drawn_is_the_predictors(studio, ratio, visible):
    mask = studio.random_mask(ratio, 7)
    assert mask.visible == visible
    pictures = studio.draw(studio.read(DOG), mask)
    expected = studio.autoencoder.reconstruct(DOG, ratio, seed=7)
    panels = (expected.original, expected.masked(), expected.reconstruction, expected.pasted)
    for shown, panel in zip(pictures, panels):
        assert shown.shape == (384, 384, 3)
        np.testing.assert_array_equal(small(shown, studio), np.rint(255 * panel[0]))
    np.testing.assert_array_equal(small(pictures.original, studio), np.asarray(Image.open(DOG)))


def test_a_touched_patch_is_covered_and_uncovered(studio):
    """Patches are 4 pixels, shown 48 wide: (200, 100) is in row 2, column 4 of 8."""
    mask = studio.random_mask(0.0, 0)
    image = studio.read(DOG)
    covered = studio.toggle(mask, 200, 100)
    assert np.flatnonzero(covered.removed).tolist() == [2 * 8 + 4]
    pictures = studio.draw(image, covered)
    grey = (pictures.masked == 128).all(axis=-1)
    assert grey[96:144, 192:240].all() and grey.sum() < 1.1 * 48 * 48
    outside = np.ones((384, 384), bool)
    outside[96:144, 192:240] = False
    np.testing.assert_array_equal(pictures.pasted[outside], pictures.original[outside])
    again = studio.toggle(covered, 239.9, 143.9)
    assert not again.removed.any()


def test_every_count_of_visible_patches_is_kept(studio):
    """Rounding never loses one: the network's mask is the hand's, for each of 1 to 64."""
    image = studio.read(DOG)
    for visible in (1, 7, 15, 29, 47, 57, 63):
        removed = np.random.default_rng(visible).permutation(64) >= visible
        pictures = studio.draw(image, Mask(np.zeros(64, np.float32), removed))
        covered = (small(pictures.masked, studio) == 128).all(axis=-1).reshape(8, 4, 8, 4)
        assert covered.all(axis=(1, 3)).flatten().tolist() == removed.tolist()


def test_the_last_patch_stays_and_clicks_beside_are_refused(studio):
    removed = np.ones(64, bool)
    removed[0] = False
    last = Mask(np.zeros(64, np.float32), removed)
    with pytest.raises(ValueError, match="at least one patch"):
        studio.toggle(last, 3, 3)
    for x, y in ((384, 0), (0, 384), (-1, 0)):
        with pytest.raises(ValueError, match="outside"):
            studio.toggle(last, x, y)


def test_classes_and_refusals(studio, tmp_path):
    scores = studio.classify(DOG)
    expected = studio.classifier.classify(DOG, 5)[0].classes
    assert scores == expected and len(scores) == 5
    assert Studio(shipped("mae"), None, 10_000).classify(DOG) == []
    large = tmp_path / "large.png"
    Image.new("RGB", (101, 100)).save(large)
    for use in (studio.read, studio.classify):
        with pytest.raises(ValueError, match="101 x 100 pixels are more than"):
            use(str(large))
    with pytest.raises(ValueError, match="does not reconstruct"):
        Studio(shipped("classifier"), None, 10_000)
    with pytest.raises(ValueError, match="knows no classes"):
        Studio(shipped("mae"), shipped("mae"), 10_000)
