"""Write the features of a classifier's encoder: training and evaluation images, not augmented.

    python tools/extract_features.py -c configs/finetune/cifar10_cpu.yaml
        -o Global.pretrained_model=encoder.pdparams --output features.npz

The .npz holds train_features [N, D], train_labels [N], test_features, test_labels, class_names.
-o Model.global_pool=false takes the class token (extract the encoder with --keep-norm then). Runs
on several ranks, too.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_mae import cli, runtime
from passl_mae.config import load_config


def main(args: argparse.Namespace) -> None:
    config = load_config(args.config, args.override)
    runtime.import_paddle()
    from passl_mae import distributed
    from passl_mae.engine.build_probes import encode, save_encoded

    encoded = encode(config, random=args.random)
    if distributed.is_main():
        save_encoded(encoded, args.output)
        print(f"{encoded.data}; encoder: {encoded.encoder}")
        print(f"wrote {args.output}: {encoded.train.features.shape[1]} features an image")


if __name__ == "__main__":
    parser = cli.make_parser(__doc__, config=True)
    parser.add_argument("--output", required=True, help="the .npz file to write")
    parser.add_argument("--random", action="store_true", help="of an encoder as initialised")
    cli.run(main, parser)
