"""Evaluate weights on the evaluation images: accuracy of a classifier, loss of an autoencoder.

python tools/evaluate.py -c CONFIG -o Global.pretrained_model=mae_finetune.pdparams
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
    from passl_mae.engine.build import evaluate

    count, result = evaluate(config)
    print(f"{config.Data.name}, {count} evaluation images, {config.Global.pretrained_model}")
    for name, value in result.items():
        print(f"  {name}: {value:.4f}")


if __name__ == "__main__":
    cli.run(main, cli.make_parser(__doc__, config=True))
