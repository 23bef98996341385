"""Takes the encoder out of pretraining weights, ready for the classifier.

    python tools/extract_encoder.py --checkpoint X.pdparams --output Y.pdparams

Prints what was taken, dropped, and will be newly initialised by the classifier. On request the
position table is interpolated to another grid of patches and the patch projection is adapted to
another number of channels.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_mae import runtime
from passl_mae.cli import make_parser, run


def grid(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"a grid is ROWSxCOLUMNS, e.g. 8x8, got {text!r}")
    return int(match.group(1)), int(match.group(2))


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="pretraining weights (any known kind)")
    parser.add_argument("--output", required=True, help="the file to write, e.g. Y.pdparams")
    parser.add_argument(
        "--method",
        choices=["auto", "mae", "moco"],
        default="auto",
        help="whose weights they are: MAE's, or MoCo's, of which the query encoder is taken",
    )
    parser.add_argument(
        "--keep-norm",
        action="store_true",
        help="keep the encoder's norm, for a classifier with global_pool=False (class token)",
    )
    parser.add_argument(
        "--grid", type=grid, metavar="RxC", help="interpolate pos_embed to this grid of patches"
    )
    parser.add_argument(
        "--old-grid", type=grid, metavar="RxC", help="the checkpoint's grid, if it is not square"
    )
    parser.add_argument("--in-chans", type=int, help="adapt the patch projection to these channels")
    parser.add_argument(
        "--channels",
        choices=["average", "repeat"],
        help="how to adapt it: average over the old channels, or repeat them",
    )
    return parser


def main(args: argparse.Namespace) -> None:
    runtime.import_paddle()
    from passl_mae.models import adapt, weights

    if (args.in_chans is None) != (args.channels is None):
        raise ValueError("--in-chans and --channels belong together: give both or neither")
    if args.old_grid and not args.grid:
        raise ValueError("--old-grid only says where --grid starts from: give --grid too")
    weights.refuse_same_file(args.checkpoint, args.output)
    notes: list[str] = []
    state = weights.load_weights(args.checkpoint, notes)
    if args.method == "moco" or (args.method == "auto" and weights.is_moco(state)):
        if args.keep_norm:
            raise ValueError("--keep-norm is for MAE's encoder; MoCo's keeps the norm it trained")
        state, report = weights.extract_query_encoder(state)
    else:
        state, report = weights.extract_encoder(state, global_pool=not args.keep_norm)
    if (args.grid or args.in_chans is not None) and "pos_embed" not in state:
        raise ValueError("--grid and --in-chans are for a Vision Transformer; this is none")
    if args.grid:
        old = adapt.grid_of(state["pos_embed"], args.old_grid)
        state["pos_embed"] = adapt.resize_pos_embed(state["pos_embed"], old, args.grid)
        notes.append(f"pos_embed: grid {old[0]}x{old[1]} to {args.grid[0]}x{args.grid[1]}")
    if args.in_chans is not None:
        weight = state["patch_embed.proj.weight"]
        state["patch_embed.proj.weight"] = adapt.adapt_channels(
            weight, args.in_chans, args.channels
        )
        notes.append(f"patch_embed: {weight.shape[1]} channels to {args.in_chans}, {args.channels}")
    weights.save_weights(state, args.output)
    print(report)
    for note in notes:
        print(f"note: {note}")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    run(main, parser())
