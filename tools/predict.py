"""Use a trained network: classes, features or reconstructions of image files.

python tools/predict.py --run output/x/finetune photo.jpg folder/ [--top-k 5] [--json out.json]
python tools/predict.py --run output/x/finetune folder/ --features out.npy
python tools/predict.py --run output/x/pretrain a.png b.png --reconstruct out.png --mask-ratio 0.75
python tools/predict.py --model EXPORTED photo.jpg      # a folder of tools/export_model.py

A folder stands for all image files in it. Rows of out.npy are in the order of the files.
"""

import argparse
import os
import sys
import unicodedata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_mae import cli, runtime

DRAWN = 100  # rows of a figure that can still be looked at


def main(args: argparse.Namespace) -> None:
    for option, ending in (("features", ".npy"), ("reconstruct", ".png"), ("json", ".json")):
        name = getattr(args, option)
        if name and not name.lower().endswith(ending):
            raise ValueError(f"--{option} writes a {ending[1:].upper()}: name it so, not {name}")
    if not args.reconstruct and (args.mask_ratio is not None or args.seed is not None):
        raise ValueError("--mask-ratio and --seed are for --reconstruct, which draws the masks")
    os.environ.setdefault("GLOG_minloglevel", "2")  # of paddle's executor, which reports its start
    runtime.import_paddle()
    from passl_mae import Predictor
    from passl_mae.data.preprocess import gather

    files = gather(args.images)
    if args.reconstruct and len(files) > DRAWN:
        raise ValueError(f"--reconstruct draws at most {DRAWN} images, got {len(files)}")
    settings = dict(batch_size=args.batch_size, num_workers=args.num_workers, progress=True)
    if args.model:
        if args.weights:
            raise ValueError("--weights is for a run's folder (--run)")
        predictor = Predictor.from_export(args.model, args.device, **settings)
    else:
        predictor = Predictor.from_run(args.run, args.weights, args.device, **settings)

    skipped = {}
    images = [{"file": file} for file in files]

    def leave_out(found: list) -> None:
        skipped.update({image.place: image for image in found})

    if predictor.class_names or not (args.features or args.reconstruct):
        found = [] if args.skip_errors else None
        predictions = predictor.classify(files, args.top_k, found)
        leave_out(found or [])
        readable = [image for place, image in enumerate(images) if place not in skipped]
        for image, prediction in zip(readable, predictions):
            image["classes"] = [score._asdict() for score in prediction.classes]
        print(table(predictions))
    if args.features:
        found = [] if args.skip_errors else None
        write_features(args.features, predictor.features(files, found))
        leave_out(found or [])
    if args.reconstruct:
        from passl_mae.visualize import save_figure

        found = [] if args.skip_errors else None
        save_figure(
            predictor.draw(files, args.mask_ratio or [None], args.seed or 0, found),
            args.reconstruct,
        )
        leave_out(found or [])
        print(f"wrote {args.reconstruct}")
    if args.json:
        from passl_mae.files import write_json

        read = [image for place, image in enumerate(images) if place not in skipped]
        left_out = [{"file": i.source, "reason": i.reason} for i in skipped.values()]
        write_json(args.json, {"model": predictor.name, "images": read, "skipped": left_out})
        print(f"wrote {args.json}")
    for image in skipped.values():
        print(f"left out: {image.reason}", file=sys.stderr)


def write_features(file: str, features) -> None:
    import numpy as np

    from passl_mae.files import replacing

    with replacing(file) as beside, beside.open("wb") as stream:
        np.save(stream, features)
    print(f"wrote {file}: {features.shape[0]} images, {features.shape[1]} features each")


def table(predictions: list) -> str:
    """A line an image: the file, then each class and its probability."""
    rows = [
        [p.source, *(f"{s.name} {100 * s.probability:5.1f} %" for s in p.classes)]
        for p in predictions
    ]
    widths = [max(map(width, column)) for column in zip(*rows)]
    lines = ("  ".join(t + " " * (w - width(t)) for t, w in zip(row, widths)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def width(text: str) -> int:
    """Columns of a terminal; Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


if __name__ == "__main__":
    parser = cli.make_parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", metavar="FOLDER", help="Global.output_dir of a finished run")
    source.add_argument("--model", metavar="FOLDER", help="what tools/export_model.py wrote")
    parser.add_argument("images", nargs="+", metavar="FILE_OR_FOLDER")
    parser.add_argument("--weights", metavar="FILE", help="of a checkpoint, not the finished ones")
    parser.add_argument("--top-k", type=int, default=5, help="classes an image (5)")
    parser.add_argument("--json", metavar="JSON", help="write files, classes, probabilities")
    parser.add_argument("--features", metavar="NPY", help="write features, float32 [N, D]")
    parser.add_argument("--reconstruct", metavar="PNG", help="draw an autoencoder's output")
    parser.add_argument("--mask-ratio", type=float, nargs="+", help="one or more (the training's)")
    parser.add_argument("--seed", type=int, help="of the masks (0)")
    parser.add_argument("--skip-errors", action="store_true", help="leave out unreadable files")
    parser.add_argument("--batch-size", type=int, default=64, help="images at once (64)")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that read files (0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, gpu or gpu:N")
    cli.run(main, parser)
