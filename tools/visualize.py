"""Draw what a pretrained autoencoder makes of images: original, masked, reconstruction.

python tools/visualize.py -c CONFIG --checkpoint mae_pretrain.pdparams --output out.png
    [--mask-ratios 0.25 0.5 0.75] [--images a.png b.jpg ...]
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_mae import cli, runtime
from passl_mae.config import load_config


def main(args: argparse.Namespace) -> None:
    config = load_config(args.config, args.override)
    if config.task != "pretrain":
        raise ValueError(f"{config.Model.name} does not reconstruct: give a pretraining config")
    if args.num_images < 1:
        raise ValueError(f"--num-images must be at least 1, got {args.num_images}")
    if not args.output.lower().endswith(".png"):
        raise ValueError(f"--output writes a PNG: name it so, not {args.output}")
    runtime.import_paddle()
    from passl_mae.engine.build import draw_checkpoint
    from passl_mae.visualize import save_figure

    figure = draw_checkpoint(
        config, args.checkpoint, args.mask_ratios, args.images, args.num_images, args.seed
    )
    save_figure(figure, args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    parser = cli.make_parser(__doc__, config=True)
    parser.add_argument("--checkpoint", required=True, help="weights of a pretraining run")
    parser.add_argument("--output", required=True, help="PNG file to write")
    parser.add_argument("--mask-ratios", type=float, nargs="+", default=[0.25, 0.5, 0.75])
    parser.add_argument("--images", nargs="+", help="image files; default: evaluation images")
    parser.add_argument("--num-images", type=int, default=6, help="evaluation images to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the masks")
    cli.run(main, parser)
