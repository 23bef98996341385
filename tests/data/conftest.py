"""A small CIFAR-10 in the layout of the real one."""

import io
import pickle
import tarfile

import numpy as np
import pytest

NAMES = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"]


class SmallCifar:
    """pixels uint8 [N, 3072], labels; five training batches of 12 images, a test batch of 20."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.batches = {}
        for name in [*NAMES, "test_batch"]:
            n = 20 if name == "test_batch" else 12
            self.batches[name] = {
                b"batch_label": b"some batch",
                b"labels": [int(label) for label in rng.permutation(n) % 10],
                b"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8),
                b"filenames": [b"a.png"] * n,
            }

    def members(self, protocol=2):
        """Name -> bytes of each file of the archive."""
        files = {"batches.meta": {b"num_vis": 3072}, **self.batches}
        return {name: pickle.dumps(content, protocol) for name, content in files.items()}

    def write_folder(self, folder, **changed):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in {**self.members(), **changed}.items():
            (folder / name).write_bytes(content)
        return folder

    def write_archive(self, path, mode="w:gz", prefix="cifar-10-batches-py/", **changed):
        with tarfile.open(path, mode) as archive:
            for name, content in {**self.members(), **changed}.items():
                info = tarfile.TarInfo(prefix + name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return path

    def expected(self, names):
        """images [N, 32, 32, 3] and labels, pixel by pixel after the data set's own description.

        The first 1024 bytes of a row are red, then green, then blue, each row by row.
        """
        images, labels = [], []
        for name in names:
            for row in self.batches[name][b"data"]:
                image = np.zeros((32, 32, 3), np.uint8)
                for y in range(32):
                    for channel in range(3):
                        start = 1024 * channel + 32 * y
                        image[y, :, channel] = row[start : start + 32]
                images.append(image)
            labels += self.batches[name][b"labels"]
        return np.array(images), np.array(labels)


@pytest.fixture
def small_cifar():
    return SmallCifar()
