"""Mean and standard deviation of a data set's training images, as lines for its config.

python tools/dataset_stats.py -c CONFIG [-o Key.sub=value ...]
python tools/dataset_stats.py FOLDER [--channels 3]

Exact: every pixel of every image file at its full size counts once. FOLDER takes all images in it,
at any depth.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_mae import cli


def main(args: argparse.Namespace) -> None:
    if (args.config is None) == (args.folder is None):
        raise ValueError("give a folder of images or -c CONFIG")
    if args.config is None and args.override:
        raise ValueError("-o overrides the keys of a config: give -c CONFIG, or leave it out")
    if args.config is not None and args.channels is not None:
        raise ValueError("--channels is for a folder: a config has Model.in_chans")
    from passl_mae.data.statistics import mean_and_std

    if args.config is None:
        sums, what = of_folder(args)
    else:
        sums, what = of_config(args)
    mean, std = mean_and_std(sums)
    print(f"# {what}, {sums[0]} pixels")
    print(f"mean: [{', '.join(f'{value:.6f}' for value in mean)}]")
    print(f"std: [{', '.join(f'{value:.6f}' for value in std)}]")


def of_folder(args: argparse.Namespace) -> tuple:
    from passl_mae import runtime
    from passl_mae.data.image_files import check_channels
    from passl_mae.data.image_lists import index_folder
    from passl_mae.data.statistics import sums_of_files
    from passl_mae.data.workers import shared_workers

    channels = 3 if args.channels is None else args.channels
    check_channels(channels)
    paths = index_folder(args.folder, labels=False).paths
    workers = shared_workers(runtime.available_cores())
    return sums_of_files(paths, channels, workers), f"{len(paths)} images of {args.folder}"


def of_config(args: argparse.Namespace) -> tuple:
    from passl_mae import runtime
    from passl_mae.config import load_config

    config = load_config(args.config, args.override)
    runtime.import_paddle()
    from passl_mae.engine.build_images import training_sums

    count, sums = training_sums(config)
    return sums, f"{count} training images of {config.Data.name}"


if __name__ == "__main__":
    parser = cli.make_parser(__doc__)
    parser.add_argument("folder", nargs="?", help="a folder of images")
    parser.add_argument("-c", "--config", help="the YAML file of a run")
    parser.add_argument("-o", "--override", action="extend", nargs="+", default=[])
    parser.add_argument("--channels", type=int, help="of a folder: 1 grey, 3 RGB (default), 4 RGBA")
    cli.run(main, parser)
