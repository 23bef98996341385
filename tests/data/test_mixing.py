import numpy as np
import pytest

from passl_mae.data import mixing as module
from passl_mae.data.mixing import Mixing, cutmix_box
from passl_mae.data.random import BatchRandom


def batch(b=6, h=8, w=10, seed=0):
    images = np.random.default_rng(seed).standard_normal((b, 3, h, w)).astype(np.float32)
    return images, np.arange(b)


def rng(b, *key):
    return BatchRandom(key or (0,), b)


def numbered(b, h, w):
    """Image i is i everywhere, so that every pixel tells where it comes from."""
    return np.broadcast_to(np.arange(b, dtype=np.float32)[:, None, None, None], (b, 3, h, w)).copy()


def share_of_first(targets):
    """lambda, read off the target of sample 0 (label 0) without smoothing."""
    return float(targets[0, 0])


@pytest.mark.parametrize("b", [6, 5, 1])
def test_mixup_averages_images_and_targets_with_one_lambda(b):
    images, labels = batch(b)
    before = images.copy()
    out, targets = Mixing(b, mixup=8.0)(images, labels, rng(b, 5))
    assert out.dtype == targets.dtype == np.float32 and targets.shape == (b, b)
    lam = share_of_first(targets)
    assert 0.1 < lam < 0.9 or b == 1
    for i in range(b):
        partner = b - 1 - i
        expected = lam * images[i].astype(np.float64) + (1 - lam) * images[partner]
        np.testing.assert_allclose(out[i], expected, atol=1e-6)
        target = np.zeros(b)
        target[i] += lam
        target[partner] += 1 - lam
        np.testing.assert_allclose(targets[i], target, atol=1e-6)
    if b == 5:  # the middle one meets itself
        np.testing.assert_allclose(out[2], images[2], atol=1e-6)
        assert targets[2, 2] == pytest.approx(1)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("h,w", [(8, 10), (7, 5)])
def test_cutmix_pastes_one_box_and_lambda_is_the_area_left(h, w):
    shares = set()
    for key in range(200):
        images = numbered(6, h, w)
        out, targets = Mixing(6, cutmix=1.0)(images, np.arange(6), rng(6, key))
        np.testing.assert_array_equal(images, numbered(6, h, w))
        pasted = out[0, 0] == 5
        assert set(np.unique(out[0])) <= {0, 5}
        rows, columns = pasted.any(axis=1), pasted.any(axis=0)
        np.testing.assert_array_equal(pasted, np.outer(rows, columns))
        if pasted.any():  # a box: rows and columns without gaps
            assert np.ptp(np.flatnonzero(rows)) + 1 == rows.sum()
            assert np.ptp(np.flatnonzero(columns)) + 1 == columns.sum()
        for i in range(6):  # the same box in every image and channel
            np.testing.assert_array_equal(
                out[i], np.broadcast_to(np.where(pasted, 5 - i, i), out[i].shape)
            )
            assert targets[i, i] == pytest.approx(1 - pasted.sum() / (h * w), abs=1e-6)
            assert targets[i, 5 - i] == pytest.approx(pasted.sum() / (h * w), abs=1e-6)
        shares.add(pasted.sum())
    assert len(shares) > 8


@pytest.mark.parametrize(
    "height,width,lam,centre,box",
    [
        (32, 32, 0.75, (16, 16), (8, 24, 8, 24)),  # half of each side
        (32, 32, 0.75, (0, 31), (0, 8, 23, 32)),  # a quarter of it lies inside
        (10, 20, 0.0, (5, 10), (0, 10, 0, 20)),
        (10, 20, 0.0, (9, 0), (4, 10, 0, 10)),
        (32, 32, 0.95, (16, 16), (13, 19, 13, 19)),  # 7.2 pixels: 3 on either side
        (32, 16, 0.75, (20, 3), (12, 28, 0, 7)),
        (32, 32, 1.0, (5, 5), (5, 5, 5, 5)),
    ],
)
def test_cutmix_boxes_worked_by_hand(height, width, lam, centre, box):
    assert cutmix_box(height, width, lam, centre) == box


def test_draws_of_cutmix_have_their_distributions(monkeypatch):
    drawn = []

    def recorded(height, width, lam, centre):
        drawn.append((lam, *centre))
        return cutmix_box(height, width, lam, centre)

    monkeypatch.setattr(module, "cutmix_box", recorded)
    images = numbered(2, 4, 6)
    mixing = Mixing(2, cutmix=2.0)
    for key in range(3000):
        mixing(images, np.arange(2), rng(2, key))
    lam, y, x = np.array(drawn).T
    assert abs(lam.mean() - 0.5) < 0.015
    assert abs(lam.var() - 1 / 20) < 0.005  # Beta(a, a): 1 / (4 (2 a + 1))
    assert (abs(np.bincount(y.astype(int)) - 750) < 90).all() and len(set(y)) == 4
    assert (abs(np.bincount(x.astype(int)) - 500) < 75).all() and len(set(x)) == 6


def test_lambda_of_mixup_is_beta_distributed():
    images, labels = batch(2, 2, 2)
    lam = [
        share_of_first(Mixing(2, mixup=0.8)(images, labels, rng(2, key))[1]) for key in range(3000)
    ]
    assert abs(np.mean(lam) - 0.5) < 0.02
    assert abs(np.var(lam) - 1 / 10.4) < 0.007
    assert min(lam) >= 0 and max(lam) <= 1


@pytest.mark.parametrize(
    "arguments,mixup,cutmix",
    [
        (dict(mixup=0.8, cutmix=1.0), 0.5, 0.5),
        (dict(mixup=0.8, cutmix=1.0, switch_prob=0.2), 0.8, 0.2),
        (dict(mixup=0.8, cutmix=1.0, prob=0.4), 0.2, 0.2),
        (dict(mixup=0.8, switch_prob=1.0), 1.0, 0.0),
        (dict(cutmix=1.0, switch_prob=0.0), 0.0, 1.0),
        (dict(mixup=0.8, cutmix=1.0, prob=0.0), 0.0, 0.0),
    ],
)
def test_shares_of_mixup_and_cutmix(arguments, mixup, cutmix):
    mixing = Mixing(2, **arguments)
    images = numbered(2, 16, 16)
    counts = {"none": 0, "mixup": 0, "cutmix": 0}
    for key in range(1000):
        out, targets = mixing(images, np.arange(2), rng(2, key))
        if targets[0, 0] == 1:
            np.testing.assert_array_equal(out, images)
            counts["none"] += 1
        else:
            counts["cutmix" if set(np.unique(out)) <= {0, 1} else "mixup"] += 1
    # Some boxes of cutmix are smaller than 2 pixels, and then nothing is pasted.
    assert abs(counts["mixup"] - 1000 * mixup) < 50
    assert -70 < counts["cutmix"] - 1000 * cutmix < 50


def test_targets_worked_by_hand():
    # K = 4, s = 0.2: 0.05 everywhere and 0.8 more for the label, shared 3 : 1 with the partner's.
    targets = Mixing(4, smoothing=0.2).targets(np.array([0, 3, 1]), lam=0.75)
    expected = [[0.65, 0.25, 0.05, 0.05], [0.05, 0.05, 0.05, 0.85], [0.25, 0.65, 0.05, 0.05]]
    np.testing.assert_allclose(targets, expected, atol=1e-6)
    # Partners of one class add up.
    np.testing.assert_allclose(
        Mixing(3).targets(np.array([1, 1]), lam=0.3), [[0, 1, 0], [0, 1, 0]], atol=1e-6
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_targets_sum_to_one(smoothing):
    images, _ = batch(7)
    labels = np.array([0, 9, 3, 3, 1, 0, 8])
    mixing = Mixing(10, mixup=0.8, cutmix=1.0, smoothing=smoothing)
    for key in range(20):
        _, targets = mixing(images, labels, rng(7, key))
        np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
        assert targets.min() >= smoothing / 10 - 1e-7


def test_without_alphas_only_the_labels_are_smoothed():
    images, _ = batch(3)
    random = rng(3)
    out, targets = Mixing(5, smoothing=0.1)(images, np.array([4, 0, 2]), random)
    np.testing.assert_array_equal(out, images)
    np.testing.assert_allclose(targets, 0.02 + 0.9 * np.eye(5)[[4, 0, 2]], atol=1e-7)
    np.testing.assert_array_equal(random.uniform(), rng(3).uniform())  # nothing was drawn


@pytest.mark.parametrize("key", range(8))
def test_every_rank_mixes_alike_within_its_own_part(key):
    images = numbered(12, 8, 8)
    mixing = Mixing(12, mixup=0.8, cutmix=1.0)
    _, whole = mixing(images, np.arange(12), rng(12, key))
    for part in (slice(0, 4), slice(4, 7), slice(7, 12)):
        random = BatchRandom((key,), 12, part)
        out, targets = mixing(images[part], np.arange(12)[part], random)
        first, last = part.start, part.stop - 1
        np.testing.assert_allclose(targets[0, first], whole[0, 0], atol=1e-6)
        np.testing.assert_allclose(targets[0, last], whole[0, 11], atol=1e-6)
        assert out.min() >= first and out.max() <= last
        np.testing.assert_allclose(
            out.mean(axis=(1, 2, 3)), targets @ np.arange(12), rtol=1e-5, atol=1e-5
        )


def test_later_draws_do_not_depend_on_what_was_mixed():
    images, labels = batch(4)
    later = []
    for arguments in (dict(mixup=0.8), dict(cutmix=1.0), dict(mixup=1.0, prob=0.0)):
        random = rng(4)
        Mixing(4, **arguments)(images, labels, random)
        later.append(random.uniform())
    np.testing.assert_array_equal(later[0], later[1])
    np.testing.assert_array_equal(later[0], later[2])


@pytest.mark.parametrize(
    "arguments,message",
    [
        (dict(num_classes=0), "num_classes must be at least 1, got 0"),
        (dict(mixup=-0.1), "mixup must be a finite alpha, 0 for none, got -0.1"),
        (dict(cutmix=float("inf")), "cutmix must be a finite alpha"),
        (dict(prob=1.1), r"prob must lie in 0..1, got 1.1"),
        (dict(switch_prob=-1), r"switch_prob must lie in 0..1"),
        (dict(smoothing=float("nan")), r"smoothing must lie in 0..1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Mixing(**{"num_classes": 10, **arguments})


@pytest.mark.parametrize("label", [10, -1])
def test_labels_that_are_no_class_are_refused(label):
    images, _ = batch(2)
    message = rf"label {label} lies outside 0 .. 9: give the data set's num_classes"
    with pytest.raises(ValueError, match=message):
        Mixing(10)(images, np.array([3, label]), rng(2))
