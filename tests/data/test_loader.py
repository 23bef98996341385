import gc
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from passl_mae.data.in_memory import InMemoryDataset
from passl_mae.data.loader import EvalLoader, TrainLoader
from passl_mae.data.transforms import (
    Compose,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
)

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


def make_dataset(n=50):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 8, 10, 3), dtype=np.uint8)
    return InMemoryDataset(images, np.arange(n) % 7, list("abcdefg"), MEAN, STD)


AUGMENT = Compose(
    [RandomCrop(padding=2), RandomResizedCrop(8), RandomHorizontalFlip(), Normalize(MEAN, STD)]
)
PLAIN = Normalize(MEAN, STD)


def prefetch_threads():
    return [t for t in threading.enumerate() if t.name == "passl_mae-prefetch"]


def identity(images, random):
    return images


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_ranks_together_see_what_one_process_sees(world_size):
    data = make_dataset()
    alone = TrainLoader(data, AUGMENT, 12, seed=3)
    ranks = [TrainLoader(data, AUGMENT, 12, 3, rank, world_size) for rank in range(world_size)]
    assert alone.steps_per_epoch == len(alone) == 4
    for whole, *parts in zip(alone.epoch(2), *(loader.epoch(2) for loader in ranks)):
        for name in ("images", "labels", "indices"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(joined, getattr(whole, name))
        # The task's draws come after the augmentation's, from the same stream.
        joined = np.concatenate([part.random.uniform(5) for part in parts])
        np.testing.assert_array_equal(joined, whole.random.uniform(5))


def test_an_epoch_takes_each_sample_once_and_drops_the_incomplete_batch():
    data = make_dataset(50)
    batches = list(TrainLoader(data, PLAIN, 12, seed=0).epoch(0))
    indices = np.concatenate([b.indices for b in batches])
    assert len(batches) == 4 and len(set(indices)) == 48
    for batch in batches:
        assert batch.images.shape == (12, 3, 8, 10) and batch.images.dtype == np.float32
        assert batch.labels.dtype == batch.indices.dtype == np.int64
        np.testing.assert_array_equal(batch.labels, batch.indices % 7)
        expected = data.images[batch.indices] / 255
        expected = ((expected - MEAN) / STD).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(batch.images, expected, atol=1e-6)


def test_order_and_augmentation_depend_on_seed_and_epoch_only():
    def run(seed, epoch):
        return [(b.indices, b.images) for b in TrainLoader(data, AUGMENT, 10, seed).epoch(epoch)]

    data = make_dataset()
    first, again = run(1, 0), run(1, 0)
    for (i, x), (j, y) in zip(first, again):
        np.testing.assert_array_equal(i, j)
        np.testing.assert_array_equal(x, y)
    assert not np.array_equal(first[0][0], run(1, 1)[0][0])
    assert not np.array_equal(first[0][0], run(2, 0)[0][0])


def test_augmentation_differs_between_epochs_and_steps():
    data = make_dataset(16)
    loader = TrainLoader(data, AUGMENT, 8, shuffle=False)
    one, two = list(loader.epoch(0)), list(loader.epoch(1))
    np.testing.assert_array_equal(one[0].indices, np.arange(8))
    assert not np.array_equal(one[0].images, two[0].images)
    assert not np.array_equal(one[0].random.uniform(), one[1].random.uniform())


def test_start_step_goes_on_where_the_epoch_was_left_and_loads_nothing_before():
    data = make_dataset()
    fetched = []
    original = data.fetch
    data.fetch = lambda indices: fetched.append(len(indices)) or original(indices)
    loader = TrainLoader(data, AUGMENT, 10, seed=5)
    whole = list(loader.epoch(1))
    fetched.clear()
    rest = list(loader.epoch(1, start_step=3))
    assert fetched == [10, 10]
    for a, b in zip(rest, whole[3:]):
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.random.uniform(3), b.random.uniform(3))
    assert list(loader.epoch(1, start_step=5)) == []
    with pytest.raises(ValueError, match="start_step 6 lies outside the epoch of 5 steps"):
        loader.epoch(1, start_step=6)


@pytest.mark.parametrize("n,batch,world_size", [(50, 12, 1), (50, 12, 5), (7, 4, 3), (3, 8, 4)])
def test_evaluation_sees_each_sample_once_in_order(n, batch, world_size):
    data = make_dataset(n)
    loaders = [EvalLoader(data, PLAIN, batch, rank, world_size) for rank in range(world_size)]
    runs = [list(loader) for loader in loaders]
    assert [len(loader) for loader in loaders] == [len(run) for run in runs]
    seen = np.concatenate([b.indices for run in runs for b in run])
    np.testing.assert_array_equal(np.sort(seen), np.arange(n))
    for run in runs:
        order = np.concatenate([b.indices for b in run] or [[]])
        assert (np.diff(order) > 0).all() and all(len(b.indices) for b in run)
        for b in run:
            np.testing.assert_array_equal(b.labels, data.labels[b.indices])
            assert len(b.images) == len(b.indices) == len(b.random.uniform())


def test_evaluation_draws_do_not_depend_on_the_split():
    data = make_dataset(20)
    whole = {
        i: u for b in EvalLoader(data, PLAIN, 8) for i, u in zip(b.indices, b.random.uniform())
    }
    for rank in range(3):
        for b in EvalLoader(data, PLAIN, 8, rank, 3):
            assert [whole[i] for i in b.indices] == list(b.random.uniform())


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_prefetching_changes_nothing_but_the_time(prefetch):
    data = make_dataset()
    expected = list(TrainLoader(data, AUGMENT, 10, prefetch=0).epoch(0))
    found = list(TrainLoader(data, AUGMENT, 10, prefetch=prefetch).epoch(0))
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        np.testing.assert_array_equal(a.images, b.images)
    assert prefetch_threads() == []


def test_prefetching_runs_ahead_by_its_depth_and_no_further():
    made = []
    seen = threading.Event()

    def count(images, random):
        made.append(len(made))
        if len(made) == 4:
            seen.set()
        return images

    batches = TrainLoader(make_dataset(), count, 2, prefetch=3).epoch(0)
    next(batches)
    assert seen.wait(5)  # one consumed, three ahead
    time.sleep(0.1)
    assert len(made) == 4
    batches.close()


class BrokenError(Exception):
    pass


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_in_the_background_reaches_the_consumer_as_itself(prefetch):
    def fail(images, random):
        if 0 in images[:, 0, 0, 0]:
            raise BrokenError("image 3")
        return images

    data = make_dataset()
    data.images[:, 0, 0, 0] = 1
    data.images[25, 0, 0, 0] = 0
    consumed = 0
    with pytest.raises(BrokenError, match="image 3"):
        for _ in TrainLoader(data, fail, 10, prefetch=prefetch, shuffle=False).epoch(0):
            consumed += 1
    assert consumed == 2  # the batches before it arrived
    assert prefetch_threads() == []


def test_leaving_the_loop_stops_the_thread():
    loader = TrainLoader(make_dataset(), identity, 2)
    for _ in loader.epoch(0):
        break
    gc.collect()
    assert prefetch_threads() == []
    with pytest.raises(KeyError):
        for _ in loader.epoch(0):
            raise KeyError
    gc.collect()
    assert prefetch_threads() == []
    batches = iter(EvalLoader(make_dataset(), identity, 2))
    next(batches)
    assert len(prefetch_threads()) == 1
    batches.close()
    assert prefetch_threads() == []


def test_a_process_that_exits_in_the_middle_of_an_epoch_ends():
    code = (
        "import numpy as np\n"
        "from passl_mae.data.in_memory import InMemoryDataset\n"
        "from passl_mae.data.loader import TrainLoader\n"
        "x = np.zeros((64, 4, 4, 1), np.uint8)\n"
        "d = InMemoryDataset(x, np.zeros(64, np.int64), ['a'], (0.5,), (0.5,))\n"
        "batches = TrainLoader(d, lambda images, random: images, 2).epoch(0)\n"
        "next(batches)\n"
        "print('left')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "left\n", "")


@pytest.mark.parametrize(
    "arguments,message",
    [
        (dict(batch_size=51), "batch_size 51 is larger than the data set of 50 images"),
        (dict(batch_size=10, world_size=4), "batch_size 10 .* does not divide by 4 ranks"),
        (dict(batch_size=0), "batch_size must be at least 1, got 0"),
        (dict(batch_size=4, rank=2, world_size=2), "rank 2 is not one of 2 ranks"),
        (dict(batch_size=4, prefetch=-1), "prefetch must be 0 or more, got -1"),
        (dict(batch_size=4, seed=-1), "seeds must lie in .*, got -1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainLoader(make_dataset(), PLAIN, **arguments)


def test_evaluation_refuses_bad_arguments():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        EvalLoader(make_dataset(), PLAIN, 0)
    with pytest.raises(ValueError, match="rank 3 is not one of 3 ranks"):
        EvalLoader(make_dataset(), PLAIN, 8, rank=3, world_size=3)
