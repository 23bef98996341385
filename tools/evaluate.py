"""Evaluate weights on the test images: accuracy of a classifier, loss of an autoencoder.

python tools/evaluate.py -c CONFIG -o Global.pretrained_model=mae_finetune.pdparams
    [--split val] [--confusion confusion.png]

To choose between weights or settings, use --split val: the images that Data.val_fraction holds out
of the training images.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_mae import cli, runtime
from passl_mae.config import load_config

SPLITS = {"test": "test", "val": "held-out", "train": "training"}


def main(args: argparse.Namespace) -> None:
    config = load_config(args.config, args.override)
    runtime.import_paddle()
    from passl_mae.engine.build import evaluate
    from passl_mae.engine.build_probes import predict

    if args.confusion:
        predictions = predict(config, args.split)
        count, result = len(predictions.labels), predictions.metrics
    else:
        count, result = evaluate(config, args.split)
    print(
        f"{config.Data.name}, {count} {SPLITS[args.split]} images, {config.Global.pretrained_model}"
    )
    for name, value in result.items():
        print(f"  {name}: {value:.4f}")
    if args.confusion:
        show_confusion(predictions, args.confusion)


def show_confusion(predictions: tuple, output: str) -> None:
    """Prints each class's accuracy and draws the confusion matrix."""
    from passl_mae.evaluation import confusion_matrix, per_class_accuracy
    from passl_mae.visualize import confusion_figure, save_figure

    predicted, labels, names, _ = predictions
    matrix = confusion_matrix(predicted, labels, len(names))
    for name, share in zip(names, per_class_accuracy(matrix)):
        print(f"  {name:>12}: {100 * share:6.2f} %")
    title = f"{len(labels)} images, {100 * (predicted == labels).mean():.2f} % right"
    save_figure(confusion_figure(matrix, names, title), output)
    print(f"wrote {output}")


if __name__ == "__main__":
    parser = cli.make_parser(__doc__, config=True)
    parser.add_argument("--split", choices=list(SPLITS), default="test", help="which images")
    parser.add_argument("--confusion", metavar="PNG", help="draw a classifier's confusion matrix")
    cli.run(main, parser)
