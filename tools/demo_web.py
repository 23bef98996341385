"""A page in the browser: mask an image, by chance or by hand, and see what the MAE makes of it.

python tools/demo_web.py                              # the weights that ship, and their classifier
python tools/demo_web.py --run output/x/pretrain [--classifier output/x/finetune] [--language zh]
python tools/demo_web.py -c configs/pretrain/cifar10_cpu.yaml --weights mae_pretrain.pdparams

Needs Gradio (pip install -e ".[web]"). Others on the network see it with --host 0.0.0.0 only.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_mae import cli, runtime

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = (
    ROOT / "weights/cifar10_cpu_mae.safetensors",
    ROOT / "configs/pretrain/cifar10_cpu.yaml",
)
SHIPPED_CLASSIFIER = (
    ROOT / "weights/cifar10_cpu_classifier.safetensors",
    ROOT / "configs/finetune/cifar10_cpu.yaml",
)
EXAMPLES = ROOT / "docs/images/examples"


def main(args: argparse.Namespace) -> None:
    if bool(args.weights and not args.run) != bool(args.config):
        raise ValueError("--weights without a --run needs -c, the config that they were made with")
    if args.classifier_config and not args.classifier:
        raise ValueError("--classifier-config is for the file of a --classifier")
    if min(args.max_upload, args.max_pixels) < 1:
        raise ValueError("--max-upload and --max-pixels must be at least 1")
    os.environ.setdefault("GLOG_minloglevel", "2")  # of paddle's executor, which reports its start
    from passl_mae.web import server

    server.check_port(args.host, args.port)
    runtime.import_paddle()
    from passl_mae.data.preprocess import gather
    from passl_mae.web.studio import Studio
    from passl_mae.web.texts import LANGUAGES

    studio = Studio(autoencoder(args), classifier(args), args.max_pixels)
    examples = [Path(item) for item in gather(args.examples)]
    server.check_gradio()  # after what may be wrong with the options: importing it takes seconds
    with server.own_files():
        from passl_mae.web.page import build_page

        page = build_page(studio, examples, LANGUAGES[args.language])
        server.serve(page, args.host, args.port, f"{args.max_upload}mb")


def autoencoder(args: argparse.Namespace):
    from passl_mae import Predictor

    if args.run:
        return Predictor.from_run(args.run, args.weights, args.device)
    weights, config = (args.weights, args.config) if args.weights else SHIPPED
    return Predictor.from_weights(weights, config, args.device)


def classifier(args: argparse.Namespace):
    """A run's, an export's, a file's; with the shipped autoencoder the one that ships with it."""
    from passl_mae import Predictor
    from passl_mae.export import META

    if not args.classifier:
        own = args.run or args.weights
        return None if own else Predictor.from_weights(*SHIPPED_CLASSIFIER, args.device)
    given = Path(args.classifier)
    if (given / META).exists():
        return Predictor.from_export(given, args.device)
    if args.classifier_config:
        return Predictor.from_weights(given, args.classifier_config, args.device)
    if given.is_file():
        if given.resolve() == SHIPPED_CLASSIFIER[0]:
            return Predictor.from_weights(*SHIPPED_CLASSIFIER, args.device)
        raise ValueError(f"{given} is a file: give its config with --classifier-config")
    return Predictor.from_run(given, device=args.device)


if __name__ == "__main__":
    parser = cli.make_parser(__doc__)
    parser.add_argument("--run", metavar="FOLDER", help="Global.output_dir of a pretraining run")
    parser.add_argument("--weights", metavar="FILE", help="of a checkpoint, or with -c any")
    parser.add_argument("-c", "--config", metavar="YAML", help="what the weights were trained with")
    parser.add_argument(
        "--classifier", metavar="FOLDER_OR_FILE", help="a finetuning run, an export, weights"
    )
    parser.add_argument("--classifier-config", metavar="YAML", help="of a classifier's weights")
    parser.add_argument(
        "--examples", nargs="+", default=[str(EXAMPLES)], metavar="FILE_OR_FOLDER", help="images"
    )
    parser.add_argument("--language", choices=["en", "zh"], default="en")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=7860, help="(7860)")
    parser.add_argument("--max-upload", type=int, default=10, metavar="MB", help="of a file (10)")
    parser.add_argument("--max-pixels", type=int, default=40_000_000, help="of an image (40000000)")
    parser.add_argument("--device", default="auto", help="auto, cpu, gpu or gpu:N")
    cli.run(main, parser)
