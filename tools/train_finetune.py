"""Finetune a classifier, from an extracted encoder or from scratch.

python tools/train_finetune.py -c CONFIG -o Global.pretrained_model=encoder.pdparams
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_mae import cli, runtime
from passl_mae.config import load_config


def main(args: argparse.Namespace) -> None:
    config = load_config(args.config, args.override)
    if config.task != "classify":
        raise ValueError(
            f"{config.Model.name} is a pretraining model: train it with tools/train_pretrain.py, "
            "or set Model.name to a classifier"
        )
    runtime.import_paddle()
    from passl_mae.engine.build import build_trainer

    build_trainer(config).train()


if __name__ == "__main__":
    cli.run(main, cli.make_parser(__doc__, config=True))
