"""Writes CIFAR-10 as a folder of PNG files, each with its label in a text file beside it.

python tools/write_image_list.py --output output/cifar10_list --per-class 500 [--data FILE]

OUTPUT/train and OUTPUT/test hold img_00001.png with img_00001.txt (`img_00001.png, 3`), and so on;
OUTPUT/classes.txt the names. Read it with Data.name: ImageList (docs/efficientnet.md).
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_mae import cli, runtime


def main(args: argparse.Namespace) -> None:
    output = Path(args.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is there already: choose another --output, or delete it")
    runtime.import_paddle()  # which downloads CIFAR-10 where there is no --data
    from passl_mae.data.datasets import Cifar10
    from passl_mae.data.in_memory import Subset, few_labels

    counts = {"train": args.per_class, "test": args.test_per_class}
    sets = {}
    for split, count in counts.items():
        dataset = Cifar10(split, args.data)
        if count is not None:
            dataset = Subset(dataset, few_labels(dataset.labels, count, args.seed))
        sets[split] = dataset
    for split, dataset in sets.items():
        write(dataset, output / split)
        print(f"wrote {output / split}: {len(dataset)} images and as many labels")
    names = "".join(f"{name}\n" for name in Cifar10.CLASS_NAMES)
    (output / "classes.txt").write_text(names, encoding="utf-8")


def write(dataset, folder: Path) -> None:
    """`img_00001.png` and `img_00001.txt`, ... of a data set's images, in its order."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True)
    images, labels = dataset.fetch(np.arange(len(dataset)))
    for number, (pixels, label) in enumerate(zip(images, labels), 1):
        name = f"img_{number:05d}.png"
        Image.fromarray(pixels).save(folder / name)
        (folder / name).with_suffix(".txt").write_text(f"{name}, {label}\n", encoding="utf-8")


if __name__ == "__main__":
    parser = cli.make_parser(__doc__)
    parser.add_argument("--output", required=True, metavar="FOLDER", help="a new folder")
    parser.add_argument("--per-class", type=int, help="training images a class; all")
    parser.add_argument("--test-per-class", type=int, help="test images a class; all")
    parser.add_argument("--data", metavar="FILE", help="cifar-10-python.tar.gz or its folder")
    parser.add_argument("--seed", type=int, default=0, help="which images are taken")
    cli.run(main, parser)
