"""Runs as processes of their own, to be watched, signalled and killed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from tiny_runs import TINY_PRETRAIN

from passl_mae.models.weights import load_file

ROOT = Path(__file__).resolve().parents[1]
# Two epochs of 20 steps, each with its line: something to be hit in the middle of.
SETTINGS = {
    **TINY_PRETRAIN,
    "Global": {**TINY_PRETRAIN["Global"], "print_batch_step": 1},
    "Data": {**TINY_PRETRAIN["Data"], "train": {"num_images": 400}},
}
# tools/train_pretrain.py with steps that sleep: before step number `at` and those behind it.
SLEEPING = """
import sys, time
sys.path.insert(0, {root!r})
from passl_mae import cli
from passl_mae.config import load_config
from passl_mae.engine.build import build_trainer
from passl_mae.engine.trainer import Trainer

step = Trainer.train_step

def sleeping(self, inputs, batch):
    if {at} <= self.step:
        print("in the step", self.step, flush=True)
        time.sleep({seconds})
    return step(self, inputs, batch)

Trainer.train_step = sleeping
cli.run(lambda a: build_trainer(load_config(a.config, a.override)).train(),
        cli.make_parser("", config=True))
"""


def sleeping_tool(folder: Path, at: int, seconds: float) -> Path:
    """The pretraining tool, with sleep in its steps from number `at` on."""
    tool = folder / "sleeping.py"
    tool.write_text(SLEEPING.format(root=str(ROOT), at=at, seconds=seconds))
    return tool


def start(config: Path, *overrides: str, ranks: int = 1, tool: Path | None = None, preexec=None):
    """A run that goes on from its latest checkpoint; what it says is appended to `<config>.out`."""
    launcher = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(ranks)]
    launcher += ["--log_dir", str(config.with_suffix(".ranks"))]
    command = [sys.executable, *(launcher if ranks > 1 else [])]
    command += [str(tool or ROOT / "tools/train_pretrain.py"), "-c", str(config)]
    command += ["-o", "Global.checkpoints=latest", *overrides]
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with config.with_suffix(".out").open("a") as out:
        return subprocess.Popen(
            command, stdout=out, stderr=out, env=env, cwd=ROOT, preexec_fn=preexec
        )


def wait_for(process: subprocess.Popen, file: Path, pattern: str, seconds: float = 120.0) -> None:
    """Waits until a file holds a pattern; fails when the process ends before."""
    end = time.monotonic() + seconds
    while not (file.exists() and re.search(pattern, file.read_text(errors="replace"))):
        assert process.poll() is None, f"the run ended with {process.returncode} before {pattern}"
        assert time.monotonic() < end, f"no {pattern} in {seconds} s"
        time.sleep(0.005)


def finish(process: subprocess.Popen, seconds: float = 180.0) -> int:
    """The exit code of a process that has to end within some seconds."""
    try:
        return process.wait(seconds)
    finally:
        process.kill()


def ranks_below(launcher: subprocess.Popen) -> dict[int, int]:
    """{rank: process id} of the ranks that a launcher started."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                environ = b"" if parent != launcher.pid else (entry / "environ").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended while we looked
            rank = re.search(rb"PADDLE_TRAINER_ID=(\d+)", environ)
            if rank:
                found[int(rank[1])] = int(entry.name)
    return found


def assert_same_weights(first: Path, second: Path) -> None:
    """Two runs' finished weights are equal to the last bit."""
    first, second = (load_file(run / "mae_pretrain.pdparams") for run in (first, second))
    assert first.keys() == second.keys() and first
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
