import numpy as np
import pytest

from passl_mae.data.shapes import _DISTANCES, Shapes


@pytest.fixture(scope="module")
def train():
    return Shapes("train", num_images=4000)


@pytest.fixture(scope="module")
def held_out():
    return Shapes("test", num_images=1000)


def test_sizes_types_and_balance(train):
    assert train.images.shape == (4000, 32, 32, 3) and train.images.dtype == np.uint8
    assert train.labels.dtype == np.int64 and len(train) == 4000
    assert (np.bincount(train.labels) == 400).all() and len(train.class_names) == 10
    # Each run of ten holds each class once, and not always in one order.
    runs = train.labels.reshape(-1, 10)
    assert (np.sort(runs, axis=1) == np.arange(10)).all() and len(np.unique(runs, axis=0)) > 300
    assert len(Shapes("train", 16)) == 10_000 and len(Shapes("test", 16)) == 2_000


def test_the_statistics_are_those_of_the_images(train):
    pixels = train.images.reshape(-1, 3) / 255
    np.testing.assert_allclose(pixels.mean(0), train.mean, atol=0.01)
    np.testing.assert_allclose(pixels.std(0), train.std, atol=0.01)


@pytest.mark.parametrize(
    "size,expected", [(16, (16, 16)), ((24, 40), (24, 40)), ([65, 33], (65, 33))]
)
def test_any_size_is_drawn(size, expected):
    data = Shapes("train", size, num_images=7)
    assert data.images.shape == (7, *expected, 3) and data.image_size == expected
    assert data.images.reshape(7, -1).std(axis=1).min() > 5


def test_the_seed_and_the_split_decide():
    def images(*args, **kwargs):
        return Shapes(*args, num_images=40, **kwargs).images

    np.testing.assert_array_equal(images("train", seed=3), images("train", seed=3))
    assert not np.array_equal(images("train", seed=3), images("train", seed=4))
    train, test = images("train", seed=3), images("test", seed=3)
    assert not set(map(bytes, train)) & set(map(bytes, test))
    # Scenes, not just the noise on them, differ: the nearest image is far away.
    a, b = (x.reshape(40, -1).astype(float) for x in (train, test))
    assert np.sqrt(((a[:, None] - b[None]) ** 2).mean(axis=2)).min() > 20


def test_a_smaller_set_begins_a_larger_one(train):
    small = Shapes("train", num_images=133)
    np.testing.assert_array_equal(small.labels, train.labels[:133])
    np.testing.assert_array_equal(small.images, train.images[:133])


def test_another_size_shows_the_same_scenes():
    small, large = Shapes(num_images=60), Shapes(image_size=96, num_images=60)
    np.testing.assert_array_equal(small.labels, large.labels)
    means = large.images.reshape(60, 32, 3, 32, 3, 3).mean(axis=(2, 4))
    assert abs(means - small.images).mean() < 12


def test_pixels_alone_do_not_tell_the_class(train, held_out):
    """A linear classifier (ridge regression on the labels, the best of several strengths)."""

    def rows(data):
        flat = data.images.reshape(len(data), -1) / 255 - 0.45
        return np.concatenate([flat, np.ones((len(data), 1))], axis=1).astype(np.float32)

    x, y = rows(train), np.eye(10, dtype=np.float32)[train.labels]
    gram, target, unseen = x.T @ x, x.T @ y, rows(held_out)
    best = 0.0
    for strength in (10, 300, 3000):
        weights = np.linalg.solve(gram + strength * np.eye(len(gram), dtype=np.float32), target)
        best = max(best, ((unseen @ weights).argmax(1) == held_out.labels).mean())
    assert best < 0.25


# Grid of the plane around the shapes, fine enough to find the nearest point of a contour.
# No shape's straight side lies on its lines.
GRID = np.linspace(-1.51, 1.52, 121, dtype=np.float32)
X, Y = (g[None] for g in np.meshgrid(GRID, GRID))
AREAS = {
    "disc": np.pi * 0.82**2,
    "ring": np.pi * (0.9**2 - 0.5**2),
    "cross": 5 * 0.6**2 + 4 * 0.05 * 0.6,
    "square": 2 * 0.92**2 + 4 * 0.05 * 0.92 * np.sqrt(2) + np.pi * 0.05**2,
    "triangle": 0.75 * np.sqrt(3) * 0.95**2 + 0.05 * 3 * np.sqrt(3) * 0.95 + np.pi * 0.05**2,
    # Quilez's heart of unit size: a square of diagonal 1 and two half discs on its sides.
    "heart": 1.6**2 * (0.5 + np.pi / 8),
    "flower": np.pi * (0.72**2 + 0.22**2 / 2),
    "arrow": 0.78 * 0.88 + 0.54 * 1.07,
}


@pytest.mark.parametrize("name", sorted(_DISTANCES))
def test_distances_are_distances(name):
    """Away from the contour the value is the distance to it, found by search on the grid."""
    distance = _DISTANCES[name](X, Y)[0]
    inside = distance < 0
    cell = GRID[1] - GRID[0]
    if name in AREAS:
        assert abs(inside.sum() * cell**2 - AREAS[name]) < 0.02
    assert not inside[np.hypot(X, Y)[0] > 1.1].any() and 0.8 < inside.sum() * cell**2 < 2.6
    edge = np.zeros_like(inside)
    edge[:, 1:] |= inside[:, 1:] != inside[:, :-1]
    edge[1:] |= inside[1:] != inside[:-1]
    points = np.stack([X[0][edge], Y[0][edge]], axis=1) - cell / 4
    every = (slice(None, None, 8), slice(None, None, 8))
    places = np.stack([X[0][every].ravel(), Y[0][every].ravel()], axis=1)
    nearest = np.sqrt(((places[:, None] - points) ** 2).sum(axis=2)).min(axis=1)
    tolerance = 0.25 if name == "flower" else 2 * cell  # the flower's is a first-order estimate
    outside = ~inside[every].ravel()
    assert abs(distance[every].ravel() - nearest)[outside].max() < tolerance


@pytest.mark.parametrize(
    "arguments,message",
    [
        (dict(split="val"), "unknown split 'val' of Shapes: choose one of train, test"),
        (dict(image_size=8), "image_size 8 x 8 is too small for Shapes: at least 16"),
        (dict(image_size=(32, 15)), "image_size 32 x 15 is too small"),
        (dict(num_images=0), "num_images must be at least 1, got 0"),
        (dict(seed=-1), "seeds must lie in .*, got -1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Shapes(**arguments)
