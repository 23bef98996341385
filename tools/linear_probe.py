"""Train a linear classifier on frozen features: BatchNorm without scale and shift, then linear.

    python tools/linear_probe.py -c configs/finetune/cifar10_cpu.yaml
        -o Global.pretrained_model=encoder.pdparams --random --cache output/features

The features are extracted once, without augmentation, so a probe takes a minute; the probe with
augmentation is a run of tools/train_finetune.py with a config of configs/linprobe/. --random adds
a row for the same encoder as it was initialised. Nothing is chosen by the test images: choose
settings with --holdout, which probes on a part of the training images instead.
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
    from passl_mae.engine.build_probes import encode_for_comparison, hold_out
    from passl_mae.probe import probe_accuracy, train_probe

    rows = []
    for encoded in encode_for_comparison(config, args.random, args.cache):
        if args.holdout is not None:
            encoded = hold_out(encoded, args.holdout, config.Global.seed)
        head = train_probe(
            encoded.train,
            len(encoded.class_names),
            optimizer=args.optimizer,
            blr=args.blr,
            weight_decay=args.weight_decay,
            epochs=args.epochs,
            warmup_epochs=args.warmup_epochs,
            batch_size=args.batch_size,
            seed=config.Global.seed,
        )
        train, test = probe_accuracy(head, encoded.train), probe_accuracy(head, encoded.test)
        rows.append((train["top1"], test["top1"], test["top5"], encoded.encoder))
    if distributed.is_main():
        print(f"{encoded.data}; {args.optimizer}, blr {args.blr:g}, {args.epochs} epochs")
        print(f"{'train top-1 %':>14} {'top-1 %':>8} {'top-5 %':>8}  encoder")
        for train_top1, top1, top5, encoder in rows:
            print(f"{100 * train_top1:>14.2f} {100 * top1:>8.2f} {100 * top5:>8.2f}  {encoder}")
        if args.json:
            train_top1, top1, top5, encoder = rows[0]
            write_json(args.json, {"encoder": encoder, "top1": top1, "top5": top5})


if __name__ == "__main__":
    parser = cli.make_parser(__doc__, config=True)
    parser.add_argument("--optimizer", choices=["LARS", "SGD", "AdamW"], default="SGD")
    parser.add_argument("--blr", type=float, default=0.1, help="rate for a batch of 256")
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--warmup-epochs", type=float, default=10)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--holdout", type=float, help="share of the training images, e.g. 0.1")
    cli.add_probe_options(parser)
    cli.run(main, parser)
