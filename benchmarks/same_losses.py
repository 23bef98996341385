"""200 steps of pretraining with and without the C++ operators: do the losses stay together?

    python benchmarks/same_losses.py [--steps 200] [-o Data.path=...]

The recipe of configs/pretrain/cifar10_cpu.yaml, three runs: plain, plain with one more thread (what
another order of the same sums does), with the operators. Printed are relative differences.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common

from passl_mae import cli

CONFIG = "configs/pretrain/cifar10_cpu.yaml"
BATCH = 128
RUNS = {"plain": ("off", 1), "plain, two threads": ("off", 2), "operators": ("on", 1)}


def main(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        losses = {name: losses_of(args, Path(folder) / name, *RUNS[name]) for name in RUNS}
    print(f"{common.machine()}; {args.steps} steps of {BATCH}, {CONFIG}\n")
    plain = losses.pop("plain")
    rows = [["relative difference from plain", "step 1", "steps 1-10", "last 10", "largest"]]
    for name, other in losses.items():
        off = [abs(b / a - 1) for a, b in zip(plain, other)]
        parts = [off[0], max(off[:10]), max(off[-10:]), max(off)]
        rows.append([name, *(f"{part:.1e}" for part in parts)])
    print(common.table(rows))
    print(f"\nplain losses: {plain[0]:.6f} at step 1, {plain[-1]:.6f} at step {len(plain)}")


def losses_of(args: argparse.Namespace, run: Path, cpu_ops: str, threads: int) -> list[float]:
    """The loss of every step of a run."""
    wishes = [
        f"Global.output_dir={run}",
        f"Global.cpu_ops={cpu_ops}",
        "Global.epochs=1",
        "Global.print_batch_step=1",
        "Global.test=false",
        "Global.use_visualdl=false",
        f"Data.train.num_images={BATCH * args.steps}",
        "LRScheduler.warmup_epochs=0.2",
    ]
    command = [sys.executable, "-c", RECORDER, str(run) + ".json", "-c", CONFIG]
    for wish in [*wishes, *args.override]:
        command += ["-o", wish]
    subprocess.run(
        command,
        check=True,
        cwd=common.ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.DEVNULL,
    )
    return json.loads(Path(f"{run}.json").read_text())


# The pretraining command, keeping every step's loss with all its digits (the log rounds them).
RECORDER = """
import json, sys
sys.path.insert(0, ".")
from passl_mae import cli
from passl_mae.config import load_config
file = sys.argv.pop(1)
args = cli.make_parser("", config=True).parse_args()
config = load_config(args.config, args.override)
from passl_mae import runtime
runtime.import_paddle()
from passl_mae.engine.build import build_trainer
trainer = build_trainer(config)
gradients, losses = trainer.pass_of.gradients, []
def noting(pieces, step):
    values = gradients(pieces, step)
    losses.append(float(values[0]["loss"]))
    return values
trainer.pass_of.gradients = noting
trainer.train()
json.dump(losses, open(file, "w"))
"""


if __name__ == "__main__":
    parser = cli.make_parser(__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("-o", "--override", action="append", default=[], metavar="KEY=VALUE")
    cli.run(main, parser)
