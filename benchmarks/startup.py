"""How long a user waits: `--help`, the error of a config, the first step of a training.

python benchmarks/startup.py [--repeats 5]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

TOOL = [sys.executable, "tools/train_pretrain.py"]
DEMO = ["-c", "configs/pretrain/demo_shapes.yaml", "-o"]


def seconds_of(command: list[str], until: str = "") -> float:
    """Until the command ends, or until it prints a text."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=common.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for line in process.stdout:
        if until and until in line:
            seconds = time.perf_counter() - begin
            process.kill()
            process.communicate()
            return seconds
    process.wait()
    if until:
        sys.exit(f"{command} never printed {until!r}")
    return time.perf_counter() - begin


def first_step(folder: Path) -> float:
    run = folder / str(time.time_ns())
    settings = [f"Global.output_dir={run}", "Global.print_batch_step=1", "Global.use_visualdl=true"]
    return seconds_of([*TOOL, *DEMO, *settings], until="[Iter 1/")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(common.machine())
    with tempfile.TemporaryDirectory(prefix="startup_") as temporary:
        variants = {
            "--help": lambda: seconds_of([*TOOL, "--help"]),
            "the error of a config": lambda: seconds_of([*TOOL, *DEMO, "Global.sede=1"]),
            "import paddle": lambda: seconds_of([sys.executable, "-c", "import paddle"]),
            "the first step of the demo": lambda: first_step(Path(temporary)),
        }
        results = common.interleaved(variants, args.repeats)
    rows = [["", "seconds"], *([name, common.spread(s, 2)] for name, s in results.items())]
    print("\n" + common.table(rows))


if __name__ == "__main__":
    main()
