"""Draw the features of the evaluation images in two dimensions, coloured by class.

    python tools/embed.py -c configs/finetune/cifar10_cpu.yaml
        -o Global.pretrained_model=encoder.pdparams --method tsne --output out.png

t-SNE needs scikit-learn (pip install 'passl_mae[plots]'). --vdl FOLDER also writes the features
for the page "High Dimensional" of `visualdl --logdir FOLDER`; not a run's own `vdl`: VisualDL
shows one file of a folder. output/x/finetune/features is seen with `visualdl --logdir output`.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_mae import cli, runtime
from passl_mae.config import load_config


def main(args: argparse.Namespace) -> None:
    config = load_config(args.config, args.override)
    runtime.import_paddle()
    from passl_mae.engine.build_probes import encode
    from passl_mae.features import Features, pca, tsne
    from passl_mae.visualize import embedding_figure, save_figure

    if args.num_images < 2:
        raise ValueError(f"--num-images {args.num_images}: at least 2 are needed")
    encoded = encode(config, args.random, args.cache)
    shown = Features(*(array[: args.num_images] for array in encoded.test))
    title = f"{len(shown.labels)} test images of {config.Data.name}; encoder: "
    title += "random" if args.random else Path(encoded.encoder).name
    if args.method == "pca":
        points, shares = pca(shown.features)
        names = [
            f"principal component {number} ({100 * share:.0f} % of the variance)"
            for number, share in enumerate(shares, 1)
        ]
    else:
        points = tsne(shown.features, args.perplexity, config.Global.seed)
        names = ["t-SNE 1", "t-SNE 2"]
    figure = embedding_figure(points, shown.labels, encoded.class_names, title, names)
    save_figure(figure, args.output)
    print(f"{encoded.data}; drew {len(shown.labels)} of the test split; wrote {args.output}")
    if args.vdl:
        from visualdl import LogWriter

        with LogWriter(logdir=args.vdl) as writer:
            writer.add_embeddings(
                tag="features",
                mat=shown.features.astype(float).tolist(),
                # columns to label and colour by; of one column with a name the page shows nothing
                metadata=[
                    [encoded.class_names[label] for label in shown.labels],
                    [str(place) for place in range(len(shown.labels))],
                ],
                metadata_header=["class", "image"],
            )
        print(f"wrote embeddings: visualdl --logdir {args.vdl}")


if __name__ == "__main__":
    parser = cli.make_parser(__doc__, config=True)
    parser.add_argument("--method", choices=["pca", "tsne"], default="pca")
    parser.add_argument("--output", required=True, help="PNG file to write")
    parser.add_argument("--num-images", type=int, default=3000, help="evaluation images to draw")
    parser.add_argument("--perplexity", type=float, default=30.0, help="of t-SNE")
    parser.add_argument("--vdl", metavar="FOLDER", help="also write VisualDL embeddings there")
    parser.add_argument("--random", action="store_true", help="an encoder as it was initialised")
    parser.add_argument("--cache", help="folder that keeps features")
    cli.run(main, parser)
