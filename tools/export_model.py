"""Export a trained network: PaddlePaddle's inference model, and ONNX if asked for.

python tools/export_model.py --run output/x/finetune --output exported --what classifier [--onnx]
python tools/export_model.py --run output/x/pretrain --output exported --what reconstruction

classifier: logits; encoder: features, of either run; reconstruction: pixels, with the masking noise
as an input. export.json holds the class names, mean, std and size. What is written has been read
back and compared with the network; docs/predict-export.md.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_mae import cli, runtime

KINDS = ["classifier", "encoder", "reconstruction"]


def main(args: argparse.Namespace) -> None:
    if args.mask_ratio is not None and args.what != "reconstruction":
        raise ValueError("--mask-ratio is for --what reconstruction")
    os.environ.setdefault("GLOG_minloglevel", "2")  # of paddle's executor, which reports its start
    runtime.import_paddle()
    from passl_mae.engine.build_predictor import load_run
    from passl_mae.export import export

    # The plain layers: what is exported runs where the C++ operators are not.
    run = load_run(args.run, args.weights, "cpu", cpu_ops="off")
    part = run.part(args.what, args.mask_ratio)
    report = export(part, run.prepare_for(args.what), args.output, run.name, args.onnx)
    print(f"wrote {report.folder}: {args.what} of {run.name}")
    for how, difference in report.differences.items():
        print(f"  {how}: differs by {difference:.1e} from the trained network")
    if args.onnx and "onnxruntime" not in report.differences:
        print("  model.onnx was not tried: pip install onnxruntime")


if __name__ == "__main__":
    parser = cli.make_parser(__doc__)
    parser.add_argument("--run", required=True, metavar="FOLDER", help="Global.output_dir of a run")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="a new folder")
    parser.add_argument("--what", required=True, choices=KINDS)
    parser.add_argument("--onnx", action="store_true", help="pip install 'passl_mae[onnx]'")
    parser.add_argument("--mask-ratio", type=float, help="of a reconstruction; the training's")
    parser.add_argument("--weights", metavar="FILE", help="of a checkpoint, not the finished ones")
    cli.run(main, parser)
