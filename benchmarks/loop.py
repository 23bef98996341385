"""What the training loop adds to its steps: waiting for data, averages, checks, logs, VisualDL.

    python benchmarks/loop.py [--model vit_t|small] [--threads 2] [--steps 60]

A run with everything on (averaged weights, VisualDL, a log line every 10 steps), crop and flip,
batch 128. Counted is what passes outside of forward, backward and the optimizer.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common
import yaml

from passl_mae import cli, runtime
from passl_mae.config import load_config

BATCH = 128
MODELS = {
    "vit_t": {},
    "small": {"embed_dim": 128, "depth": 6, "num_heads": 4, "decoder_embed_dim": 96},
}


def main(args: argparse.Namespace) -> None:
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    runtime.import_paddle()
    from passl_mae.engine.build import build_trainer

    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(yaml.safe_dump(settings(args, folder)), encoding="utf-8")
        trainer = build_trainer(load_config(config))
        seconds = dict.fromkeys(("forward and backward", "optimizer", "averaged weights"), 0.0)
        clock(trainer.pass_of, "gradients", seconds, "forward and backward")
        clock(trainer.pass_of, "update", seconds, "optimizer")
        clock(trainer.ema, "update", seconds, "averaged weights")
        batches = trainer.pass_of.inputs
        waiting = {"waiting for data": 0.0}

        def timed(given):
            stream, end = iter(batches(given)), object()
            while True:
                begin = time.perf_counter()
                item = next(stream, end)
                waiting["waiting for data"] += time.perf_counter() - begin
                if item is end:
                    return
                yield item

        trainer.pass_of.inputs = timed
        trainer.train_epoch()  # the first steps are slower
        trainer.epoch = 1
        for parts in (seconds, waiting):
            parts.update(dict.fromkeys(parts, 0.0))
        begin = time.perf_counter()
        trainer.train_epoch()
        whole = time.perf_counter() - begin
    parts = {**seconds, **waiting}
    parts["all else: checks, metrics, log, VisualDL"] = whole - sum(parts.values())
    print(f"\n{common.machine()}; {args.model}, batch {BATCH}, {args.threads} threads\n")
    rows = [["of a step", "ms", "share"]]
    for name, total in [*parts.items(), ("all", whole)]:
        rows.append([name, f"{1e3 * total / args.steps:.2f}", f"{total / whole:.2%}"])
    print(common.table(rows))


def clock(owner: object, method: str, seconds: "dict[str, float]", name: str) -> None:
    """Adds the time of every call of a method to `seconds[name]`."""
    inner = getattr(owner, method)

    def timed(*args):
        begin = time.perf_counter()
        result = inner(*args)
        seconds[name] += time.perf_counter() - begin
        return result

    setattr(owner, method, timed)


def settings(args: argparse.Namespace, folder: str) -> dict:
    return {
        "Global": {"output_dir": f"{folder}/run", "epochs": 3, "test": False},
        "Model": {"name": "mae_vit_t_p4_dec128d2b", **MODELS[args.model]},
        "Data": {
            "name": "Shapes",
            "batch_size": BATCH,
            "train": {"num_images": BATCH * args.steps, "crop": "pad", "hflip": 0.5},
            "eval": {"num_images": 16},
        },
        "Optimizer": {"blr": 1e-3, "ema_decay": 0.999},
    }


if __name__ == "__main__":
    parser = cli.make_parser(__doc__)
    parser.add_argument("--model", choices=sorted(MODELS), default="vit_t")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    cli.run(main, parser)
