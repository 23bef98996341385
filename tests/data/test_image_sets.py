"""Files as a data set: the same pixels whatever reads them, and the cache that saves reading."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from passl_mae.data.image_cache import cached_images
from passl_mae.data.image_lists import ImageIndex, index_folder
from passl_mae.data.image_sets import CachedImages, CropOnRead, ImageFiles, Reading
from passl_mae.data.in_memory import InMemoryDataset, Subset, hold_out
from passl_mae.data.loader import EvalLoader, TrainLoader
from passl_mae.data.statistics import mean_and_std, sums_of_arrays, sums_of_files
from passl_mae.data.transforms import Compose, Normalize, RandomHorizontalFlip, RandomResizedCrop
from passl_mae.data.workers import Workers, shared_workers

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
CROP = RandomResizedCrop((12, 16))


@pytest.fixture
def folder(tmp_path):
    """20 PNGs of other sizes, each unlike the others, in two classes."""
    rng = np.random.default_rng(0)
    for i in range(20):
        path = tmp_path / "images" / f"c{i % 2}" / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = rng.integers(10, 60, 2)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return tmp_path / "images"


@pytest.fixture
def same_size(tmp_path):
    """The images of `arrays` [16, 12, 16, 3] as files."""
    arrays = np.random.default_rng(1).integers(60, 196, (16, 12, 16, 3), np.uint8)
    for i, pixels in enumerate(arrays):
        path = tmp_path / "same" / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path / "same", arrays


def dataset(folder, size=(12, 16), crop_pct=1.0, workers=0, **reading):
    return ImageFiles(index_folder(folder), Reading(size, crop_pct, **reading), None, None, workers)


def test_it_offers_what_a_data_set_in_memory_does(same_size):
    folder, arrays = same_size
    files = dataset(folder)
    images, labels = files.fetch(np.array([3, 0, 15]))
    np.testing.assert_array_equal(images, arrays[[3, 0, 15]])
    assert images.dtype == np.uint8 and labels.tolist() == [0, 0, 0] and len(files) == 16
    assert files.image_size == (12, 16) and files.in_chans == 3 and files.class_names == []
    assert files.mean == (0.485, 0.456, 0.406) and files.std == (0.229, 0.224, 0.225)
    part = Subset(files, [5, 2])
    np.testing.assert_array_equal(part.fetch(np.array([1]))[0], arrays[[2]])
    assert part.crops_on_read
    grey = ImageFiles(index_folder(folder), Reading((12, 16), channels=1), (0.5,), (0.2,))
    assert grey.fetch(np.arange(2))[0].shape == (2, 12, 16, 1) and grey.mean == (0.5,)
    with pytest.raises(
        ValueError, match=r"of 1 channels need Data\.mean and Data\.std; tools/data"
    ):
        ImageFiles(index_folder(folder), Reading((12, 16), channels=1))


def test_evaluation_resizes_the_short_side_and_cuts_the_centre(tmp_path):
    """224 pixels at 0.875: short side 256, the centre; another way there."""
    ys, xs = np.mgrid[:300, :400]
    waves = [np.sin(xs / 9), np.cos(ys / 7), np.sin((xs + ys) / 11)]
    pixels = (127 + 100 * np.stack(waves, axis=2)).astype(np.uint8)
    (tmp_path / "x").mkdir()
    Image.fromarray(pixels).save(tmp_path / "x/a.png")
    (image,), _ = dataset(tmp_path / "x", (224, 224), 0.875).fetch(np.array([0]))
    resized = Image.fromarray(pixels).resize((341, 256), Image.Resampling.BICUBIC)
    left = (341 - 224) / 2
    expected = np.asarray(resized.crop((int(left), 16, int(left) + 224, 240))).astype(int)
    # Resizing the width to 341.33 and to 341 is not quite the same, half a pixel at most.
    assert np.abs(image.astype(int) - expected).mean() < 4
    square = Image.fromarray(pixels[:, 50:350]).resize((256, 256), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(image, np.asarray(square)[16:240, 16:240])


def batches(loader):
    return list(loader.epoch(1)) if isinstance(loader, TrainLoader) else list(loader)


TRANSFORM = Compose([RandomHorizontalFlip(), Normalize(MEAN, STD)])


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_does_not_change_the_pixels(folder, workers):
    for kind in ("train", "eval"):
        runs = []
        for count in (0, workers):
            files = dataset(folder, workers=count)
            runs.append(
                batches(TrainLoader(CropOnRead(files, CROP), TRANSFORM, 10, seed=1))
                if kind == "train"
                else batches(EvalLoader(files, TRANSFORM, 7))
            )
        assert len(runs[0]) == len(runs[1])
        for a, b in zip(*runs):
            np.testing.assert_array_equal(a.images, b.images)
            np.testing.assert_array_equal(a.labels, b.labels)


@pytest.mark.parametrize("world_size", [2, 5])
def test_ranks_together_read_what_one_process_reads(folder, world_size):
    source = CropOnRead(Subset(dataset(folder), np.arange(19)), CROP)
    alone = TrainLoader(source, TRANSFORM, 10, seed=3)
    ranks = [TrainLoader(source, TRANSFORM, 10, 3, r, world_size) for r in range(world_size)]
    for epoch in (0, 1):
        for whole, *parts in zip(alone.epoch(epoch), *(rank.epoch(epoch) for rank in ranks)):
            joined = np.concatenate([part.images for part in parts])
            np.testing.assert_array_equal(joined, whole.images)
            draws = np.concatenate([part.random.uniform() for part in parts])
            np.testing.assert_array_equal(draws, whole.random.uniform())


def test_crops_on_reading_are_those_of_the_transform(same_size):
    """Boxes, flips and draws alike; pixels too, as far as Pillow rounds (and clips) in between."""
    folder, arrays = same_size
    memory = InMemoryDataset(arrays, np.zeros(16, np.int64), ["a"], MEAN, STD)
    files = CropOnRead(dataset(folder), CROP)
    identity = Normalize((0, 0, 0), (1 / 255,) * 3)
    flips = RandomHorizontalFlip()
    ours = TrainLoader(files, Compose([flips, identity]), 8, seed=2)
    theirs = TrainLoader(memory, Compose([CROP, flips, identity]), 8, seed=2)
    for a, b in zip(ours.epoch(1), theirs.epoch(1)):
        np.testing.assert_allclose(a.images, b.images, atol=1.01)
        np.testing.assert_array_equal(a.random.uniform(3), b.random.uniform(3))
        np.testing.assert_array_equal(a.indices, b.indices)


def test_a_crop_is_a_part_of_the_whole_image(tmp_path):
    """A ramp of a large image: what the crop shows tells where it lies."""
    ramp = np.zeros((100, 200, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(200), np.arange(100)[:, None]
    for i in range(8):
        (tmp_path / "r").mkdir(exist_ok=True)
        Image.fromarray(ramp).save(tmp_path / f"r/{i}.png")
    crop = RandomResizedCrop((10, 10), scale=(0.1, 0.4))
    source = CropOnRead(dataset(tmp_path / "r", (10, 10)), crop)
    loader = TrainLoader(source, lambda images, random: images, 8)
    (batch,) = list(loader.epoch(0))
    top, left, height, width = crop.boxes(100, 200, crop.draw(_same_random(loader)))
    for i, image in enumerate(batch.images):
        centre = image[4:6, 4:6].astype(float).mean(axis=(0, 1))
        assert centre[0] == pytest.approx(left[i] + width[i] / 2 - 0.5, abs=1)
        assert centre[1] == pytest.approx(top[i] + height[i] / 2 - 0.5, abs=1)
    assert (left + width > 150).any()  # beyond the central square


def _same_random(loader):
    from passl_mae.data.random import BatchRandom

    return BatchRandom((loader.seed, 0, 0, 1), loader.batch_size)


def test_an_unreadable_file_stops_with_its_path(folder):
    (folder / "c0/04.png").write_bytes(b"text")
    for workers in (0, 1):
        with pytest.raises(
            ValueError, match=r"c0/04\.png cannot be read as an image: not an image"
        ):
            list(EvalLoader(dataset(folder, workers=workers), TRANSFORM, 8))


def test_a_dead_worker_is_an_error_and_not_a_hang():
    workers = Workers(1)
    assert list(workers.map(divmod, [(7, 2), (9, 4)])) == [(3, 1), (2, 1)]
    with pytest.raises(ChildProcessError, match=r"a process that reads images died .*num_workers"):
        list(workers.map(os._exit, [(9,)]))
    assert list(workers.map(divmod, [(7, 2)])) == [(3, 1)]  # others take its place
    workers.close()
    with pytest.raises(ValueError, match="0 or more, got -1"):
        Workers(-1)
    assert shared_workers(2) is shared_workers(2)


def test_relative_paths_are_those_of_the_caller_who_may_have_moved(tmp_path, monkeypatch):
    workers = Workers(1)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        monkeypatch.chdir(tmp_path / name)
        assert list(workers.map(Path.read_text, [(Path("file"),)])) == [name]
    workers.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path, number):
    script = tmp_path / "run.py"
    script.write_text(
        "import os, signal, time\n"
        "from passl_mae.data.workers import Workers\n"
        # a shell's background job, as a CI may be, is born deaf to it
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "if __name__ == '__main__':\n"
        "    print(*Workers(1).map(os.getpid, [()]), flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as parent:
        worker = int(parent.stdout.readline())
        parent.send_signal(number)
        parent.wait(20)
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("the worker goes on")


# The cache.


@pytest.mark.parametrize("reading", [{}, {"crop_pct": 0.75}, {"whole": (18, 20), "crop_pct": 0.9}])
def test_the_cache_shows_what_the_files_show(folder, tmp_path, reading):
    files = dataset(folder, **reading)
    cached = cached_images(files, tmp_path / "cache", "a")
    order = np.array([7, 0, 19, 3])
    np.testing.assert_array_equal(cached.fetch(order)[0], files.fetch(order)[0])
    np.testing.assert_array_equal(cached.fetch(order)[1], files.labels[order])
    for name in ("class_names", "mean", "std", "image_size", "in_chans"):
        assert getattr(cached, name) == getattr(files, name)
    assert isinstance(cached.images, np.memmap) and cached.images.dtype == np.uint8
    height, width = reading.get("whole", (12, 16) if not reading else (16, 21))
    assert cached.images.shape == (20, height, width, 3)


def test_random_crops_of_cached_images_are_those_of_their_files(same_size, tmp_path):
    files = dataset(same_size[0])
    cached = cached_images(files, tmp_path / "cache", "a")
    pair = (TrainLoader(CropOnRead(d, CROP), TRANSFORM, 8, seed=4) for d in (files, cached))
    for a, b in zip(*(loader.epoch(0) for loader in pair)):
        np.testing.assert_array_equal(a.images, b.images)


def opened(files, tmp_path, **options):
    said = []
    cached = cached_images(files, tmp_path / "cache", "a", say=said.append, **options)
    return cached, said


def test_a_cache_is_built_once_and_again_when_the_files_change(folder, tmp_path):
    first, said = opened(dataset(folder), tmp_path)
    assert "building the cache" in said[0] and "there is none yet" in said[0] and len(said) == 2
    before = np.array(first.images)
    _, said = opened(dataset(folder), tmp_path)
    assert said == []
    changed = folder / "c1/05.png"
    Image.new("RGB", (20, 20), "red").save(changed)
    second, said = opened(dataset(folder), tmp_path)
    assert "1 files have changed, such as " in said[0] and "c1/05.png" in said[0]
    rows = [i for i, path in enumerate(second.index.paths) if path != str(changed)]
    np.testing.assert_array_equal(second.images[rows], before[rows])
    np.testing.assert_array_equal(
        second.fetch(np.array([12]))[0][0], np.full((12, 16, 3), [255, 0, 0])
    )
    os.utime(folder / "c0/00.png", (1, 1))
    assert "1 files have changed" in opened(dataset(folder), tmp_path)[1][0]
    (folder / "c0/00.png").unlink()
    third, said = opened(dataset(folder), tmp_path)
    assert "of other files (20)" in said[0] and len(third) == 19
    _, said = opened(dataset(folder, crop_pct=0.5), tmp_path)
    assert "other settings" in said[0]


@pytest.mark.parametrize("damage", ["index", "array", "both", "short", "json", "types"])
def test_a_damaged_or_interrupted_cache_is_built_anew(folder, tmp_path, damage):
    expected = np.array(opened(dataset(folder), tmp_path)[0].images)
    array, index = tmp_path / "cache/a.npy", tmp_path / "cache/a.json"
    if damage in ("index", "both"):
        index.unlink()
    if damage in ("array", "both"):
        array.unlink()
    if damage == "short":
        array.write_bytes(array.read_bytes()[:-100])
    if damage == "json":
        index.write_text("{}")
    if damage == "types":
        content = json.loads(index.read_text())
        index.write_text(json.dumps({**content, "files": [1], "problems": {"x": 1}}))
    stale = tmp_path / "cache/.a.npy.12345.tmp"  # of a process that was killed
    stale.write_bytes(b"half")
    cached, said = opened(dataset(folder), tmp_path)
    assert len(said) == 2 and not stale.exists()
    np.testing.assert_array_equal(cached.images, expected)


def test_an_error_in_the_middle_leaves_no_cache(folder, tmp_path):
    (folder / "c1/19.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"19\.png .*\(0 bytes\); Data\.on_error=skip leaves"):
        opened(dataset(folder), tmp_path)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["a.lock"]


def test_unreadable_files_are_left_out_of_the_cache(folder, tmp_path):
    whole = dataset(folder)
    expected, labels = whole.fetch(np.arange(20))
    bad = [2, 11, 19]
    for i in bad:
        path = whole.index.paths[i]
        size = os.stat(path).st_size
        with open(path, "r+b") as file:
            file.truncate(size // 2)
    cached, _ = opened(whole, tmp_path, skip=True)
    kept = np.setdiff1d(np.arange(20), bad)
    assert len(cached) == 17 and len(cached.skipped) == 3
    assert [line.split(" cannot")[0] for line in cached.skipped] == [
        whole.index.paths[i] for i in bad
    ]
    np.testing.assert_array_equal(cached.fetch(np.arange(17))[0], expected[kept])
    np.testing.assert_array_equal(cached.labels, labels[kept])
    again, said = opened(whole, tmp_path, skip=True)
    assert said == [] and again.skipped == cached.skipped
    with pytest.raises(ValueError, match=r"cannot be read .*; Data\.on_error=skip"):
        opened(whole, tmp_path)


def test_nothing_is_left_of_all_unreadable_files(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of 1 images can be read; the first: .*a\.png"):
        opened(dataset(tmp_path / "x"), tmp_path, skip=True)


def test_a_full_disk_is_foreseen(folder, tmp_path, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(ValueError, match="the cache takes 0 MiB and the disk has 0 left: set Data"):
        opened(dataset(folder), tmp_path)


def test_a_cache_is_no_pickle(folder, tmp_path):
    opened(dataset(folder), tmp_path)
    np.save(tmp_path / "cache/a.npy", np.array([{}], object), allow_pickle=True)
    assert "damaged" in opened(dataset(folder), tmp_path)[1][0]
    assert json.loads((tmp_path / "cache/a.json").read_text())["problems"] == {}


def test_a_split_keeps_to_its_images(folder):
    """The same images are held out each time, a share of each class."""
    files = dataset(folder)
    kept, held = hold_out(files.labels, 0.2)
    assert np.bincount(files.labels[held]).tolist() == [2, 2] and len(kept) == 16
    np.testing.assert_array_equal(held, hold_out(dataset(folder).labels, 0.2)[1])
    assert set(kept) | set(held) == set(range(20))
    (image,), _ = Subset(files, held).fetch(np.array([0]))
    np.testing.assert_array_equal(image, files.fetch(held[:1])[0][0])


# Mean and standard deviation.


@pytest.mark.parametrize("workers", [0, 1])
def test_statistics_are_those_of_all_pixels(folder, workers):
    files = dataset(folder)
    pixels = [np.asarray(Image.open(path)).reshape(-1, 3) for path in files.index.paths]
    pixels = np.concatenate(pixels) / 255
    sums = sums_of_files(files.index.paths, 3, shared_workers(workers))
    assert sums[0] == len(pixels)
    mean, std = mean_and_std(sums)
    np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(axis=0), rtol=1e-12)


def test_statistics_by_hand():
    images = np.array([[[[0, 10]], [[255, 10]]]], np.uint8)  # two pixels of two channels
    mean, std = mean_and_std(sums_of_arrays(images))
    assert mean == [0.5, 10 / 255] and std == [0.5, 0.0]


def test_an_index_by_hand_is_enough(same_size):
    folder, arrays = same_size
    index = ImageIndex([str(folder / "03.png")], np.array([1]), ["a", "b"])
    files = ImageFiles(index, Reading((12, 16)))
    images, labels = files.fetch(np.array([0]))
    np.testing.assert_array_equal(images[0], arrays[3])
    assert labels.tolist() == [1] and not isinstance(files, CachedImages)


def test_padded_images_are_the_same_from_files_and_from_the_cache(folder, tmp_path):
    """And a cache of covered images is not taken for one of padded ones."""
    padded, covered = dataset(folder, pad_fill=255), dataset(folder)
    rows, said = np.arange(20), []
    for files in (covered, padded, padded):
        cached = cached_images(files, tmp_path / "cache", "own", say=said.append)
        np.testing.assert_array_equal(cached.fetch(rows)[0], files.fetch(rows)[0])
    assert [text.split(": ")[-1] for text in said if "building" in text] == [
        "there is none yet", "the old one has other settings",
    ]  # fmt: skip
    images = padded.fetch(rows)[0]
    white = (images == 255).all(axis=(2, 3)).any(axis=1) | (images == 255).all(axis=(1, 3)).any(1)
    assert white.sum() >= 15  # whole rows or columns of filling; 10 to 60 pixels a side, at random
