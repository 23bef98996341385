"""Input pipeline alone: this library's whole-batch transforms against `paddle.io.DataLoader`.

    python tools/build_ops.py && python benchmarks/input_speed.py [--repeats 5]

Crop after padding, flip, normalise, on 32 x 32 images in memory, batches of 256: in NumPy, and in
one pass of the C++ operators.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common
import paddle
from paddle.vision import transforms
from PIL import Image

from passl_mae.data.in_memory import InMemoryDataset
from passl_mae.data.loader import TrainLoader
from passl_mae.data.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip
from passl_mae.fast import fuse

BATCH, IMAGES, EPOCHS = 256, 25_600, 8
MEAN, STD = [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]


def ours(images: np.ndarray, labels: np.ndarray, cpu_ops: str, prefetch: int) -> float:
    """images/s over some epochs; the time a training loop would wait with nothing else to do."""
    data = InMemoryDataset(images, labels, [str(i) for i in range(10)], MEAN, STD)
    plain = Compose([RandomCrop(padding=4), RandomHorizontalFlip(0.5), Normalize(MEAN, STD)])
    loader = TrainLoader(data, fuse(plain, cpu_ops), BATCH, prefetch=prefetch)
    begin = time.perf_counter()
    count = sum(len(batch.images) for e in range(EPOCHS) for batch in loader.epoch(e))
    return count / (time.perf_counter() - begin)


class OneByOne(paddle.io.Dataset):
    """The usual way: a transform a sample."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(0.5),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def data_loader(images: np.ndarray, labels: np.ndarray, workers: int) -> float:
    """images/s after the first batch, so that starting the workers is not counted."""
    loader = paddle.io.DataLoader(
        OneByOne(images, labels), batch_size=BATCH, shuffle=True, num_workers=workers
    )
    batches = iter(loader)
    next(batches)
    begin = time.perf_counter()
    count = sum(len(batch[1]) for batch in itertools.islice(batches, 16))
    return count / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(common.machine())
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, IMAGES)
    variants = {
        "ours, C++, made ahead in a thread": lambda: ours(images, labels, "on", 2),
        "ours, C++": lambda: ours(images, labels, "on", 0),
        "ours, NumPy, made ahead in a thread": lambda: ours(images, labels, "off", 2),
        "ours, NumPy": lambda: ours(images, labels, "off", 0),
        "DataLoader, 2 workers": lambda: data_loader(images, labels, 2),
        "DataLoader, no worker": lambda: data_loader(images, labels, 0),
    }
    results = common.interleaved(variants, args.repeats)
    rows = [["", "images/s", "the first is faster by"]]
    first = next(iter(results.values()))
    for name, speeds in results.items():
        median, least, most = common.ratio(first, speeds)
        rows.append([name, common.spread(speeds, 0), f"{median:.1f} ({least:.1f} to {most:.1f})"])
    print("\n" + common.table(rows))


if __name__ == "__main__":
    main()
