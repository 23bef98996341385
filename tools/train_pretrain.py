"""Pretrain a masked autoencoder, or MoCo.

python tools/train_pretrain.py -c configs/pretrain/demo_shapes.yaml [-o Key.sub=value ...]
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_mae import cli, runtime
from passl_mae.config import load_config


def main(args: argparse.Namespace) -> None:
    config = load_config(args.config, args.override)
    if config.task == "classify":
        raise ValueError(
            f"{config.Model.name} is a classifier: finetune it with tools/train_finetune.py, or "
            "set Model.name to a pretraining model"
        )
    runtime.import_paddle()
    from passl_mae.engine.build import build_trainer

    build_trainer(config).train()


if __name__ == "__main__":
    cli.run(main, cli.make_parser(__doc__, config=True))
