"""Converts weights between PyTorch's layout and Paddle's, and between kinds of files.

    python tools/convert_weights.py --from torch --input a.pth --output b.pdparams
    python tools/convert_weights.py --to torch --input b.pdparams --output a.pth

Reads .pth (official MAE files, plain or under `model`), .pdparams/.pd and .safetensors; writes
.pdparams, .safetensors and .pth. PyTorch is not needed. Linear weights are transposed, everything
else stays bit for bit; the fate of every key is printed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_mae import runtime
from passl_mae.cli import make_parser, run

LAYOUTS = ("torch", "paddle")


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--from", dest="source", choices=LAYOUTS, help="the input's layout (else not that of --to)"
    )
    parser.add_argument(
        "--to", dest="target", choices=LAYOUTS, help="the output's layout (else not that of --from)"
    )
    parser.add_argument("--input", required=True, help="a .pth, .pdparams, .pd or .safetensors")
    parser.add_argument("--output", required=True, help="a .pdparams, .safetensors or .pth")
    parser.add_argument(
        "--float16",
        action="store_true",
        help="half the space: float32 rounded to float16 (float32 again when loaded)",
    )
    parser.add_argument(
        "--key", help="write the weights under this key, e.g. model, as the reference reads them"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    runtime.import_paddle()
    from passl_mae.models import weights

    source, target = layouts(args.source, args.target)
    for path, layout in ((args.input, source), (args.output, target)):
        known = weights.layout_of(path)
        if known not in (None, layout):
            raise ValueError(f"{path} holds {known}'s layout: it does not go with {layout} here")
    weights.refuse_same_file(args.input, args.output)
    notes: list[str] = []
    state = weights.load_file(args.input, notes)
    if source != target:
        state, report = weights.convert(state, to=target)
    else:
        report = weights.ConvertReport(transposed=[], unchanged=list(state))
    if args.float16:
        state = weights.to_float16(state)
    weights.save_file(state, args.output, key=args.key)
    print(report)
    for note in notes:
        print(f"note: {note}")
    print(f"wrote {args.output}")


def layouts(source: str | None, target: str | None) -> tuple[str, str]:
    if source is None and target is None:
        raise ValueError("say --from torch (PyTorch to Paddle) or --to torch (Paddle to PyTorch)")
    other = {"torch": "paddle", "paddle": "torch"}
    return source or other[target], target or other[source]


if __name__ == "__main__":
    run(main, parser())
