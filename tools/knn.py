"""Classify by the nearest neighbours of frozen features: what an encoder is worth, untrained.

    python tools/knn.py -c configs/finetune/cifar10_cpu.yaml
        -o Global.pretrained_model=encoder.pdparams --random --cache output/features

Weighted by cosine as in Wu et al. 2018, MoCo and DINO. --random adds a row for the same encoder as
it was initialised. --cache keeps the features for the next time.
--json holds the figures of k = 20 or, where that is not asked for, of the first k.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_mae import cli, runtime
from passl_mae.config import load_config
from passl_mae.files import write_json


def main(args: argparse.Namespace) -> None:
    config = load_config(args.config, args.override)
    runtime.import_paddle()
    from passl_mae import distributed
    from passl_mae.engine.build_probes import encode_for_comparison
    from passl_mae.knn import knn_accuracy

    rows = []
    for encoded in encode_for_comparison(config, args.random, args.cache):
        classes = len(encoded.class_names)
        result = knn_accuracy(encoded.train, encoded.test, classes, args.k, args.temperature)
        rows += [(encoded.encoder, k, *result[k].values()) for k in args.k]
    if distributed.is_main():
        print(f"{encoded.data}; cosine, temperature {args.temperature:g}")
        print(f"{'k':>6} {'top-1 %':>8} {'top-5 %':>8}  encoder")
        for encoder, k, top1, top5 in rows:
            print(f"{k:>6} {100 * top1:>8.2f} {100 * top5:>8.2f}  {encoder}")
        if args.json:
            encoder, k, top1, top5 = max(rows, key=lambda row: row[1] == 20)
            write_json(args.json, {"encoder": encoder, "k": k, "top1": top1, "top5": top5})


if __name__ == "__main__":
    parser = cli.make_parser(__doc__, config=True)
    parser.add_argument("--k", type=int, nargs="+", default=[10, 20, 100, 200], help="neighbours")
    parser.add_argument("--temperature", type=float, default=0.07)
    cli.add_probe_options(parser)
    cli.run(main, parser)
