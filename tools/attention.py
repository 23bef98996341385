"""Draw what the class token, or a patch, of an encoder attends to: every head and their mean.

python tools/attention.py -c configs/finetune/cifar10_cpu.yaml
    -o Global.pretrained_model=encoder.pdparams --output out.png
    [--patch 3,4] [--block 0] [--indices 0 7 9 | --images a.png b.jpg ...]
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_mae import cli, runtime
from passl_mae.config import load_config


def patch(text: str) -> tuple:
    try:
        row, col = map(int, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"a patch is ROW,COLUMN, e.g. 3,4, got {text!r}") from None
    return row, col


def main(args: argparse.Namespace) -> None:
    config = load_config(args.config, args.override)
    runtime.import_paddle()
    from passl_mae.engine.build_probes import look
    from passl_mae.visualize import attention_figure, save_figure

    seen = look(config, args.images, args.indices, args.block, args.patch, args.random)
    who = "the class token" if args.patch is None else f"patch {args.patch[0]},{args.patch[1]}"
    block = "the last block" if args.block == -1 else f"block {args.block}"
    encoder = "random" if args.random else Path(config.Global.pretrained_model).name
    note = f"attention of {who} to the patches in {block}, each map on its own scale; {encoder}"
    save_figure(attention_figure(seen.images, seen.maps, note, args.patch), args.output)
    source = "files" if args.images else f"test split of {config.Data.name}"
    print(f"{len(seen.images)} images ({source}), wrote {args.output}")


if __name__ == "__main__":
    parser = cli.make_parser(__doc__, config=True)
    parser.add_argument("--output", required=True, help="PNG file to write")
    parser.add_argument("--images", nargs="+", help="image files; default: evaluation images")
    parser.add_argument("--indices", type=int, nargs="+", default=list(range(6)))
    parser.add_argument("--block", type=int, default=-1, help="0 is the first, -1 the last")
    parser.add_argument("--patch", type=patch, metavar="ROW,COL", help="default: the class token")
    parser.add_argument("--random", action="store_true", help="an encoder as it was initialised")
    cli.run(main, parser)
