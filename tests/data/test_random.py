import numpy as np
import pytest

from passl_mae.data.random import BatchRandom, keyed_generator

GOLDEN_INTEGERS = [622, 639, 776, 946]
GOLDEN_UNIFORM = [0.22360408, 0.19696575, 0.15027255, 0.63293666]
GOLDEN_ORDER = [3, 0, 5, 1, 2, 4]
GOLDEN_NORMAL = [0.43863025, -0.03651078, 0.06450933, -1.15324986]
GOLDEN_BETA = 0.9315981366531559


def draw(key, batch_size, part):
    random = BatchRandom(key, batch_size, part)
    return [random.uniform(), random.integers(-2, 7, 3), random.normal(2), random.uniform(2, 5)]


@pytest.mark.parametrize("cuts", [[0, 12], [0, 6, 12], [0, 1, 2, 11, 12]])
def test_parts_of_a_batch_draw_what_the_whole_batch_draws(cuts):
    whole = draw((7, 1, 3), 12, slice(None))
    parts = [draw((7, 1, 3), 12, slice(a, b)) for a, b in zip(cuts, cuts[1:])]
    for i, expected in enumerate(whole):
        np.testing.assert_array_equal(np.concatenate([part[i] for part in parts]), expected)


def test_draws_have_the_promised_types_shapes_and_ranges():
    random = BatchRandom((0,), 1000, slice(100, 900))
    u, i, n = random.uniform(4), random.integers(-2, 3), random.normal(5)
    assert u.dtype == np.float32 and u.shape == (800, 4) and len(random) == 800
    assert u.min() >= 0 and u.max() < 1 and abs(u.mean() - 0.5) < 0.02
    assert i.dtype == np.int64 and set(i) == {-2, -1, 0, 1, 2}
    assert n.dtype == np.float32 and n.shape == (800, 5)
    assert abs(n.mean()) < 0.05 and abs(n.std() - 1) < 0.05


def test_the_shared_generator_is_alike_on_every_part_and_its_own_stream():
    parts = [BatchRandom((3,), 8, part) for part in (slice(None), slice(0, 4), slice(4, 8))]
    numbers = [random.shared_generator().random(3) for random in parts]
    np.testing.assert_array_equal(numbers[0], numbers[1])
    np.testing.assert_array_equal(numbers[0], numbers[2])
    # How much is drawn from it does not matter, and the next one is another.
    parts[0].shared_generator().random(5)
    parts[1].shared_generator()
    np.testing.assert_array_equal(parts[0].uniform()[:4], parts[1].uniform())
    assert parts[0].shared_generator().random() != parts[0].shared_generator().random()


def test_successive_draws_and_other_keys_differ():
    random = BatchRandom((1, 2), 8, slice(None))
    assert not np.array_equal(random.uniform(), random.uniform())


def test_every_key_has_its_own_stream():
    # NumPy's SeedSequence takes the first four for one (it pads with zeros), and the next two.
    keys = [(5,), (5, 0), (5, 0, 0), (5, 0, 0, 0), (5 + (7 << 32),), (5, 7), (7, 5), (6,)]
    first = {keyed_generator(key).integers(2**62) for key in keys}
    assert len(first) == len(keys)


def test_the_stream_is_the_same_on_every_version():
    """A run resumed elsewhere goes on with these numbers."""
    random = BatchRandom((1, 2, 3), 4, slice(None))
    np.testing.assert_array_equal(random.integers(0, 1000), GOLDEN_INTEGERS)
    np.testing.assert_allclose(random.uniform(), GOLDEN_UNIFORM, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(keyed_generator((4,)).permutation(6), GOLDEN_ORDER)
    np.testing.assert_allclose(random.normal(), GOLDEN_NORMAL, rtol=0, atol=1e-6)
    assert random.shared_generator().beta(0.8, 0.8) == pytest.approx(GOLDEN_BETA, abs=1e-9)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"seeds must lie in 0 .. .*, got -1"):
        keyed_generator((3, -1))
    with pytest.raises(ValueError, match="contiguous"):
        BatchRandom((0,), 8, slice(0, 8, 2))
