"""The input in one pass of C++: bit for bit what the NumPy transforms give, and drawn alike."""

import numpy as np
import paddle
import pytest
from tiny_runs import TINY_FINETUNE, TINY_PRETRAIN

from passl_mae.config import load_config
from passl_mae.data.in_memory import InMemoryDataset, Subset
from passl_mae.data.loader import EvalLoader, TrainLoader
from passl_mae.data.random import BatchRandom
from passl_mae.data.transforms import (
    Compose,
    Normalize,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomShift,
    RandomVerticalFlip,
)
from passl_mae.data.views import TwoViews
from passl_mae.engine import build_data
from passl_mae.engine.build import build_trainer
from passl_mae.fast import choose, fuse
from passl_mae.fast.input import FastInput, move_and_look_up

pytestmark = pytest.mark.usefixtures("cache")

MEAN, STD = (0.49, 0.48, 0.45, 0.3), (0.25, 0.24, 0.26, 0.1)
ONE_TO_NINE = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3, 1)
TENFOLD = (10 * np.arange(256) + 5).astype(np.float32)[None]  # of one channel


def batch(b=6, h=8, w=10, c=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (b, h, w, c), dtype=np.uint8)


def normalize(channels=3):
    return Normalize(MEAN[:channels], STD[:channels])


def assert_same_bits(found, expected):
    assert found.dtype == expected.dtype == np.float32 and found.shape == expected.shape
    np.testing.assert_array_equal(found.view(np.int32), expected.view(np.int32))


def test_a_case_worked_by_hand():
    rows, cols = np.array([[2, -1, 0, 0]]), np.array([[1, 0, -1]])
    out = move_and_look_up(ONE_TO_NINE, rows, cols, TENFOLD)
    expected = [[85, 75, 5], [5, 5, 5], [25, 15, 5], [25, 15, 5]]
    np.testing.assert_array_equal(out, np.array(expected, np.float32)[None, None])


class Drawn:
    """Numbers that were chosen beforehand, in the place of a `BatchRandom` for one image."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def integers(self, low, high):
        assert low <= self.numbers[0] < high
        return np.array([self.numbers.pop(0)])

    def uniform(self):
        return np.array([self.numbers.pop(0)], np.float32)


@pytest.mark.parametrize(
    ("steps", "numbers", "expected"),
    [
        ([RandomCrop(padding=1)], (0, 1), [[4, 5, 6], [1, 2, 3], [4, 5, 6]]),
        ([RandomCrop(padding=1)], (2, 2), [[5, 6, 5], [8, 9, 8], [5, 6, 5]]),
        ([RandomCrop(padding=1, mode="constant")], (2, 0), [[0, 4, 5], [0, 7, 8], [0, 0, 0]]),
        ([RandomCrop((1, 2), 0)], (2, 1), [[8, 9]]),
        ([RandomShift(0.4)], (0, 2), [[2, 3, 3], [2, 3, 3], [5, 6, 6]]),
        ([RandomHorizontalFlip(0.5)], (0.4,), [[3, 2, 1], [6, 5, 4], [9, 8, 7]]),
        ([RandomHorizontalFlip(0.5)], (0.6,), [[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
        ([RandomVerticalFlip(0.5)], (0.4,), [[7, 8, 9], [4, 5, 6], [1, 2, 3]]),
        (
            [RandomCrop(padding=1, mode="constant"), RandomHorizontalFlip(), RandomShift(0.4)],
            (2, 0, 0.4, 2, 1),  # cut as above, [[5, 4, 0], [8, 7, 0], [0, 0, 0]], and up
            [[8, 7, 0], [0, 0, 0], [0, 0, 0]],
        ),
    ],
)
def test_moves_worked_by_hand(steps, numbers, expected):
    compose = Compose([*steps, Normalize((0.0,), (1 / 255,))])  # floats that are the bytes
    for transform in (compose, fuse(compose, "on")):
        out = transform(ONE_TO_NINE, Drawn(*numbers))
        np.testing.assert_allclose(out, np.array(expected)[None, None], atol=1e-4)


MOVES = {
    "nothing": [],
    "reflect": [RandomCrop(padding=4)],
    "constant": [RandomCrop(padding=9, mode="constant")],
    "smaller": [RandomCrop((5, 3), padding=2), RandomHorizontalFlip()],
    "larger": [RandomCrop((13, 11), padding=3), RandomVerticalFlip(0.7)],
    "no padding": [RandomCrop(4, padding=0)],
    "edge": [RandomShift(0.4)],
    "both flips": [RandomVerticalFlip(), RandomHorizontalFlip()],
    "all": [
        *(RandomCrop(padding=3, mode="constant"), RandomHorizontalFlip(0.3), RandomShift(0.2)),
        *(RandomVerticalFlip(0.6), RandomCrop((9, 7), padding=4), RandomShift(0.9)),
    ],
}


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("name", MOVES)
def test_all_moves_give_the_same_bits_and_leave_the_same_draws(name, channels):
    plain = Compose([*MOVES[name], normalize(channels)])
    fast = fuse(plain, "on")
    assert isinstance(fast, FastInput) and len(fast.moves) == len(MOVES[name])
    for h, w in [(8, 8), (7, 9), (17, 31), (33, 7)]:
        images = batch(12, h, w, channels, seed=h)
        before = images.copy()
        for part in (slice(None), slice(0, 5), slice(5, 12)):
            random, same = BatchRandom((h, w), 12, part), BatchRandom((h, w), 12, part)
            expected = plain(images[part], random)
            assert_same_bits(fast(images[part], same), expected)
            np.testing.assert_array_equal(same.uniform(), random.uniform())  # the mask noise
        np.testing.assert_array_equal(images, before)


def test_only_the_moves_before_normalize_are_fused():
    class Mirror(RandomHorizontalFlip):
        """A user's own: it does something else."""

        def __call__(self, images, random):
            return 255 - super().__call__(images, random)

    for before, moves, after in [
        ([RandomResizedCrop(9)], [RandomHorizontalFlip(), RandomVerticalFlip()], []),
        ([RandomCrop(padding=2), Mirror()], [RandomShift()], [RandomErasing(0.9)]),
    ]:
        plain = Compose([*before, *moves, normalize(), *after])
        fast = fuse(plain, "auto")
        assert (fast.before.transforms, fast.moves, fast.after.transforms) == (before, moves, after)
        expected = plain(batch(9), BatchRandom((1,), 9))
        assert_same_bits(fast(batch(9), BatchRandom((1,), 9)), expected)


def test_what_is_not_fused(monkeypatch, tmp_path):
    plain = Compose([RandomCrop(), normalize()])
    assert fuse(plain, "off") is plain
    for other in (Compose([RandomCrop()]), normalize(), TwoViews(plain)):
        assert fuse(other, "on") is other
    with pytest.raises(ValueError, match="auto, on, off, got 'yes'"):
        fuse(plain, "yes")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # nothing is built there
    assert fuse(plain, "auto") is plain
    with pytest.raises(ValueError, match=r"cpu_ops is on, but: .*not built.*build_ops"):
        fuse(plain, "on")


def test_views_side_by_side_and_arrays_of_any_layout():
    plain = Compose([RandomCrop(padding=3), RandomHorizontalFlip(), normalize()])
    pairs = batch(14).reshape(7, 2, 8, 10, 3)
    expected = TwoViews(plain)(pairs, BatchRandom((0,), 7))
    assert_same_bits(TwoViews(fuse(plain, "on"))(pairs, BatchRandom((0,), 7)), expected)
    for images in (
        batch(7)[::-1],
        batch(14)[::2],
        batch(7, 10, 8).swapaxes(1, 2),
        batch(7)[:, ::-1],
        np.broadcast_to(batch(1), (7, 8, 10, 3)),
    ):
        assert_same_bits(
            fuse(plain, "on")(images, BatchRandom((0,), 7)), plain(images, BatchRandom((0,), 7))
        )


@pytest.mark.parametrize("prefetch", [0, 2])
def test_loaders_of_two_ranks_and_of_a_subset(prefetch):
    labels = np.arange(40) % 4
    whole = InMemoryDataset(batch(40), labels, "abcd", MEAN[:3], STD[:3])
    for data in (whole, Subset(whole, np.arange(39, 2, -1))):
        plain = Compose([RandomCrop(padding=3), RandomHorizontalFlip(), normalize()])
        for rank in range(2):
            place = {"rank": rank, "world_size": 2, "prefetch": prefetch}
            expected, found = (
                [
                    *TrainLoader(data, t, 8, seed=5, **place).epoch(3),
                    *EvalLoader(data, t, 8, **place),
                ]
                for t in (plain, fuse(plain, "on"))
            )
            assert len(expected) == len(found) >= 8
            for a, b in zip(expected, found):
                assert_same_bits(b.images, a.images)
                np.testing.assert_array_equal(b.indices, a.indices)
                np.testing.assert_array_equal(b.random.uniform(3), a.random.uniform(3))


def test_wrong_images_are_refused_as_by_the_plain_transforms():
    for steps, images, message in [
        ([], batch(c=1), "the images have 1 channels but mean and std have 3"),
        ([RandomCrop(30)], batch(), "crop of 30 x 30 does not fit an image of 8 x 10"),
        ([RandomCrop(padding=8)], batch(), "reflect padding 8 must be smaller"),
    ]:
        plain = Compose([*steps, normalize()])
        for transform in (plain, fuse(plain, "on")):
            with pytest.raises(ValueError, match=message):
                transform(images, BatchRandom((0,), 6))


def test_wrong_arrays_are_refused():
    images, rows, cols = batch(), np.zeros((6, 4), np.int64), np.zeros((1, 4), np.int64)
    table = np.zeros((3, 256), np.float32)
    right = {"images": images, "rows": rows, "cols": cols, "table": table}
    assert move_and_look_up(**right).shape == (6, 3, 4, 4)
    for wrong, message in [
        ({"images": images.astype(np.int8)}, "images must be uint8 of 4 dimensions, got int8"),
        ({"images": images[0]}, r"images must be uint8 of 4 dimensions, got uint8 \[8, 10, 3\]"),
        ({"images": images[:5]}, r"rows must be \[5, n\] or \[1, n\], got \[6, 4\]"),
        ({"rows": rows.astype(np.int32)}, "rows must be int64 of 2 dimensions, got int32"),
        ({"rows": rows + 8}, r"rows must lie in -1 .. 7, got 8 .. 8"),
        ({"rows": rows - 2}, r"rows must lie in -1 .. 7, got -2 .. -2"),
        ({"cols": cols[0]}, r"cols must be int64 of 2 dimensions, got int64 \[4\]"),
        ({"cols": cols + 10}, r"cols must lie in -1 .. 9, got 10 .. 10"),
        ({"table": table.astype(np.float64)}, "table must be float32 of 2 dimensions, got float64"),
        ({"table": table[:2]}, r"images of 3 channels need a table \[3, 256\], got \(2, 256\)"),
        ({"table": table[:, :255]}, r"need a table \[3, 256\], got \(3, 255\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            move_and_look_up(**{**right, **wrong})


def test_nothing_in_gives_nothing_out_and_black_needs_no_pixels():
    table = np.full((3, 256), 7, np.float32)
    none, black = np.zeros((1, 0), np.int64), np.full((1, 2), -1)
    assert move_and_look_up(batch(0), black, black, table).shape == (0, 3, 2, 2)
    assert move_and_look_up(batch(), none, black, table).shape == (6, 3, 0, 2)
    out = move_and_look_up(batch(2, h=0), black, black, table)
    np.testing.assert_array_equal(out, np.full((2, 3, 2, 2), 7))


AUGMENTED = {
    "pretrain": (TINY_PRETRAIN, {"crop": "pad", "hflip": 0.5}),
    "finetune": (TINY_FINETUNE, {"crop": "pad", "shift": 0.2, "vflip": 0.3, "reprob": 0.5}),
}


@pytest.mark.parametrize("name", AUGMENTED)
def test_a_run_has_the_same_loss_and_weights(write_config, monkeypatch, name):
    settings, augment = AUGMENTED[name]
    data = {**settings["Data"], "train": {**settings["Data"]["train"], **augment}}
    model = settings["Model"] if name == "pretrain" else {**settings["Model"], "num_classes": 10}
    results = {}
    for way in ("fast", "plain"):
        if way == "plain":
            monkeypatch.setattr(build_data, "fuse", lambda transform, wish: transform)
        file = write_config({**settings, "Model": model, "Data": data}, f"{name}_{way}")
        trainer = build_trainer(load_config(file, ["Global.cpu_ops=on"]))
        for loader in (trainer.train_loader, trainer.eval_loader):
            assert isinstance(loader.transform, FastInput) == (way == "fast")
        loss = trainer.train_epoch()["train_loss"]
        results[way] = (loss, [p.numpy().tobytes() for p in trainer.model.parameters()])
        trainer.run.unlock()
    assert results["fast"] == results["plain"]


def test_on_a_gpu_the_input_alone_is_used(operators, monkeypatch, tmp_path):
    monkeypatch.setattr(paddle.device, "get_device", lambda: "gpu:0")
    model = paddle.nn.Linear(2, 2)
    assert choose(model, "auto") == (20, f"CPU operators: to prepare images for gpu:0, {operators}")
    assert type(model) is paddle.nn.Linear
    assert isinstance(fuse(Compose([normalize()]), "auto"), FastInput)
    with pytest.raises(ValueError, match="they are for the CPU, and the device is gpu:0"):
        choose(model, "on")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    level, line = choose(model, "auto")
    assert level == 20 and "not built; `python tools/build_ops.py` makes preparing images" in line
