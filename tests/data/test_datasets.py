import io
import os
import pickle
import tarfile
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from passl_mae.data import datasets
from passl_mae.data.datasets import DATASETS, Cifar10
from passl_mae.data.in_memory import InMemoryDataset, Subset, few_labels, hold_out, label_share

TRAIN = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"]


@pytest.mark.parametrize("mode,suffix", [("w:gz", ".tar.gz"), ("w", ".tar")])
@pytest.mark.parametrize("split,names", [("train", TRAIN), ("test", ["test_batch"])])
def test_cifar_is_read_from_an_archive(small_cifar, tmp_path, split, names, mode, suffix):
    path = small_cifar.write_archive(tmp_path / ("cifar" + suffix), mode)
    data = Cifar10(split, path=str(path))
    images, labels = small_cifar.expected(names)
    np.testing.assert_array_equal(data.images, images)
    np.testing.assert_array_equal(data.labels, labels)
    assert data.images.dtype == np.uint8 and data.labels.dtype == np.int64
    assert len(data) == len(labels) and data.image_size == (32, 32) and data.in_chans == 3
    assert data.class_names[3] == "cat" and len(data.class_names) == 10
    assert sorted(os.listdir(tmp_path)) == [path.name]  # nothing was unpacked


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-py"])
def test_cifar_is_read_from_a_folder_or_the_folder_around_it(small_cifar, tmp_path, inner):
    small_cifar.write_folder(tmp_path / inner)
    images, labels = small_cifar.expected(["test_batch"])
    data = Cifar10("test", path=tmp_path)
    np.testing.assert_array_equal(data.images, images)
    np.testing.assert_array_equal(data.labels, labels)


def test_cifar_is_found_in_the_folder_of_the_archive(small_cifar, tmp_path):
    small_cifar.write_archive(tmp_path / "cifar-10-python.tar.gz")
    assert len(Cifar10("train", path=tmp_path)) == 60


def test_fetch_copies(small_cifar, tmp_path):
    data = Cifar10("test", path=small_cifar.write_folder(tmp_path / "c"))
    images, labels = data.fetch(np.array([4, 4, 0]))
    np.testing.assert_array_equal(images, data.images[[4, 4, 0]])
    np.testing.assert_array_equal(labels, data.labels[[4, 4, 0]])
    images[:] = 0
    assert data.images[4].any()


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_absent_path_is_named_with_both_ways_out(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such file .*Shapes") as error:
        Cifar10("train", path=tmp_path / "nowhere")
    assert "cifar-10-python.tar.gz" in one_line(error)


def test_an_absent_batch_is_named(small_cifar, tmp_path):
    folder = small_cifar.write_folder(tmp_path / "c")
    (folder / "data_batch_4").unlink()
    assert len(Cifar10("test", path=folder)) == 20
    with pytest.raises(FileNotFoundError, match="data_batch_4: absent"):
        Cifar10("train", path=folder)


@pytest.mark.parametrize("mode", ["w:gz", "w"])
@pytest.mark.parametrize("share", [0.0, 0.0001, 0.1, 0.5, 0.8])
def test_a_truncated_archive_is_named(small_cifar, tmp_path, mode, share):
    path = small_cifar.write_archive(tmp_path / "cifar.tar.gz", mode)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"cifar.tar.gz: cut off or not") as error:
        Cifar10("test", path=path)
    one_line(error)


def test_a_damaged_archive_is_named(small_cifar, tmp_path):
    path = small_cifar.write_archive(tmp_path / "cifar.tar.gz")
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 50] = bytes(50)
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"cifar.tar.gz"):
        Cifar10("test", path=path)


def test_a_truncated_batch_in_a_folder_is_named(small_cifar, tmp_path):
    content = small_cifar.members()["data_batch_2"]
    folder = small_cifar.write_folder(tmp_path / "c", data_batch_2=content[:-100])
    with pytest.raises(ValueError, match="c/data_batch_2: cut off or not a pickle") as error:
        Cifar10("train", path=folder)
    one_line(error)


def test_other_files_are_not_taken_for_cifar(small_cifar, tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("hello " * 1000)
    with pytest.raises(ValueError, match=r"notes.txt: cut off or not a tar archive"):
        Cifar10("train", path=text)
    hundred = small_cifar.write_archive(tmp_path / "c100.tar.gz", prefix="cifar-100-python/")
    with pytest.raises(
        ValueError, match=r"c100.tar.gz: .*not CIFAR-10, it has no cifar-10-batches"
    ):
        Cifar10("train", path=hundred)


LABELS = [0] * 20
GOOD = np.zeros((20, 3072), np.uint8)


@pytest.mark.parametrize(
    "content,message",
    [
        ([1, 2], "expected a dictionary with data and labels"),
        ({b"data": GOOD}, "expected a dictionary with data and labels"),
        ({b"data": GOOD[:, :3000], b"labels": LABELS}, r"data is uint8 \(20, 3000\)"),
        ({b"data": GOOD.reshape(-1), b"labels": LABELS}, r"data is uint8 \(61440,\)"),
        ({b"data": GOOD.astype(np.float32), b"labels": LABELS}, "data is float32"),
        ({b"data": [1], b"labels": [1]}, "data is list"),
        ({b"data": GOOD[:0], b"labels": []}, "it holds no images"),
        ({b"data": GOOD, b"labels": LABELS[1:]}, "labels is not a list of 20 numbers"),
        ({b"data": GOOD, b"labels": b"x" * 20}, "labels is not a list"),
        ({b"data": GOOD, b"labels": [*LABELS[1:], 10]}, "a label is not a whole number in 0 .. 9"),
        ({b"data": GOOD, b"labels": [*LABELS[1:], -1]}, "a label is not a whole number in 0 .. 9"),
        ({b"data": GOOD, b"labels": [*LABELS[1:], 0.5]}, "a label is not a whole number in 0 .. 9"),
    ],
)
def test_a_batch_of_the_wrong_content_is_named(small_cifar, tmp_path, content, message):
    content = pickle.dumps(content, 2)
    path = small_cifar.write_archive(tmp_path / "c.tar.gz", test_batch=content)
    with pytest.raises(
        ValueError, match=f"c.tar.gz/test_batch: not CIFAR-10, .*{message}"
    ) as error:
        Cifar10("test", path=path)
    one_line(error)


class Bomb:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_malicious_batch_runs_nothing(small_cifar, tmp_path):
    marker = tmp_path / "ran"
    content = pickle.dumps({b"data": GOOD, b"labels": Bomb(f"touch {marker}")}, 2)
    path = small_cifar.write_archive(tmp_path / "c.tar.gz", test_batch=content)
    with pytest.raises(ValueError, match=r"c.tar.gz/test_batch: refused, .*system"):
        Cifar10("test", path=path)
    assert not marker.exists()


@pytest.mark.parametrize("prefix", ["../cifar-10-batches-py/", "/cifar-10-batches-py/", "", "a/"])
def test_only_exact_member_names_count(small_cifar, tmp_path, prefix):
    path = small_cifar.write_archive(tmp_path / "c.tar.gz", prefix=prefix)
    with pytest.raises(ValueError, match="it has no cifar-10-batches-py/test_batch"):
        Cifar10("test", path=path)


def test_a_link_in_the_archive_is_not_followed(small_cifar, tmp_path):
    path = tmp_path / "c.tar.gz"
    secret = tmp_path / "secret"
    secret.write_bytes(small_cifar.members()["test_batch"])
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("cifar-10-batches-py/test_batch")
        info.type, info.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(info)
    with pytest.raises(ValueError, match="test_batch is not a regular file"):
        Cifar10("test", path=path)


def test_a_gigantic_member_is_refused_before_it_is_read(tmp_path):
    header = tarfile.TarInfo("cifar-10-batches-py/test_batch")
    header.size = 1 << 40
    path = tmp_path / "c.tar"
    path.write_bytes(header.tobuf() + bytes(10240))
    with pytest.raises(ValueError, match="test_batch: not CIFAR-10, 1099511627776 bytes are too"):
        Cifar10("test", path=path)


def test_unknown_split_is_refused():
    with pytest.raises(
        ValueError, match="unknown split 'val' of Cifar10: choose one of train, tes"
    ):
        Cifar10("val")


def test_without_a_path_the_checked_file_is_downloaded_to_where_paddle_keeps_it(
    small_cifar, tmp_path, monkeypatch
):
    common = pytest.importorskip("paddle.dataset.common")
    calls = []

    def download(url, file, md5):
        calls.append((url, file, md5))
        return small_cifar.write_archive(tmp_path / "c.tar.gz")

    monkeypatch.setattr(datasets, "fetch", download)
    assert len(Cifar10("test")) == 20
    # The sum that the CIFAR-10 page gives for the python version.
    ((url, file, md5),) = calls
    assert url.endswith("/cifar-10-python.tar.gz")
    assert file == Path(common.DATA_HOME) / "cifar/cifar-10-python.tar.gz"
    assert md5 == "c58f30108f718f92721af3b95e74349a"


def test_offline_without_a_path_both_ways_out_are_said(monkeypatch, tmp_path):
    common = pytest.importorskip("paddle.dataset.common")

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(common, "DATA_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(
        FileNotFoundError, match=r"given no path and the download .* failed"
    ) as error:
        Cifar10("train")
    assert "give its path" in one_line(error) and "Shapes" in one_line(error)


def test_data_sets_are_found_by_their_names():
    names = {name: cls.__name__ for name, cls in DATASETS.items()}
    files = {"ImageFolder": "ImageFiles", "ImageList": "ImageFiles"}
    assert names == {"Cifar10": "Cifar10", "Shapes": "Shapes", **files}


LABELS_30 = np.array([0] * 10 + [1] * 15 + [4] * 5)[np.random.default_rng(0).permutation(30)]


def test_few_labels_are_balanced_seeded_and_nested():
    chosen = few_labels(LABELS_30, 4, seed=1)
    assert chosen.dtype == np.int64 and (np.diff(chosen) > 0).all()
    assert list(np.bincount(LABELS_30[chosen])) == [4, 4, 0, 0, 4]
    np.testing.assert_array_equal(chosen, few_labels(LABELS_30, 4, seed=1))
    assert set(chosen) < set(few_labels(LABELS_30, 5, seed=1))
    assert set(chosen) != set(few_labels(LABELS_30, 4, seed=2))
    with pytest.raises(ValueError, match="class 4 has 5 samples, 6 were asked for"):
        few_labels(LABELS_30, 6)
    with pytest.raises(ValueError, match="per_class must be at least 1"):
        few_labels(LABELS_30, 0)


def test_a_share_of_the_labels_is_balanced_and_agrees_with_few_labels():
    labels = np.repeat([0, 1, 4], [40, 10, 3])
    chosen = label_share(labels, 0.1, seed=1)
    assert list(np.bincount(labels[chosen])) == [4, 1, 0, 0, 1]  # never less than one of a class
    even = np.arange(60) % 3
    np.testing.assert_array_equal(label_share(even, 0.25, seed=2), few_labels(even, 5, seed=2))
    np.testing.assert_array_equal(label_share(labels, 1.0), np.arange(53))
    for wrong in (0.0, 1.1, -1):
        with pytest.raises(ValueError, match=r"lies in \(0, 1\]"):
            label_share(labels, wrong)


def test_hold_out_is_a_balanced_partition_that_its_own_seed_moves():
    labels = np.repeat([0, 1, 2], [50, 30, 17])
    kept, held = hold_out(labels, 0.2)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(97))
    assert len(held) == round(97 * 0.2) == 19
    # shares of 9.79, 5.88 and 3.33: the floors, and one more to the two largest remainders
    assert list(np.bincount(labels[held])) == [10, 6, 3]
    np.testing.assert_array_equal(held, hold_out(labels, 0.2)[1])
    other = hold_out(labels, 0.2, seed=1)[1]
    assert list(np.bincount(labels[other])) == [10, 6, 3] and set(other) != set(held)
    # not what few_labels would choose first, whatever the class
    assert set(held) != set(few_labels(np.zeros(97, np.int64), 19))
    for wrong in (0.001, 0.999, 0.0):
        with pytest.raises(ValueError, match="leaves one side without any"):
            hold_out(labels, wrong)


def test_a_subset_is_a_view_of_its_samples():
    images = np.arange(30, dtype=np.uint8).reshape(30, 1, 1, 1)
    data = InMemoryDataset(images, LABELS_30, list("abcde"), (0.5,), (0.2,))
    part = Subset(data, [7, 3, 21])
    assert len(part) == 3 and part.image_size == (1, 1) and part.in_chans == 1
    assert part.class_names == data.class_names and (part.mean, part.std) == ((0.5,), (0.2,))
    np.testing.assert_array_equal(part.labels, LABELS_30[[7, 3, 21]])
    fetched, labels = part.fetch(np.array([2, 0]))
    assert list(fetched.reshape(-1)) == [21, 7]
    np.testing.assert_array_equal(labels, LABELS_30[[21, 7]])
    for bad in ([30], [-1]):
        with pytest.raises(ValueError, match="lie outside the data set of 30 images"):
            Subset(data, bad)
    with pytest.raises(ValueError, match="a subset needs a list of indices"):
        Subset(data, [])


def test_the_archive_is_not_read_through_paddle(small_cifar, tmp_path):
    """The data package is light: paddle comes in for the download alone."""
    import subprocess
    import sys

    path = small_cifar.write_archive(tmp_path / "c.tar.gz")
    code = (
        "import sys\nfrom passl_mae.data.datasets import Cifar10\n"
        f"assert len(Cifar10('test', {str(path)!r})) == 20\nassert 'paddle' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_bytes_after_the_wanted_members_do_not_matter(small_cifar, tmp_path):
    path = small_cifar.write_archive(tmp_path / "c.tar", "w")
    buffer = io.BytesIO(path.read_bytes())
    path.write_bytes(buffer.getvalue()[: -tarfile.BLOCKSIZE])
    assert len(Cifar10("test", path=path)) == 20
