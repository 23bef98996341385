"""The short form of `python tests/faults/kill_and_resume.py --kills 50`."""

import subprocess
import sys
from pathlib import Path


def test_killed_runs_of_one_and_two_ranks_end_bit_identical(tmp_path):
    script = Path(__file__).with_name("kill_and_resume.py")
    command = [sys.executable, str(script), "--kills", "2", "--kills-per-run", "1"]
    run = subprocess.run(
        [*command, "--keep", str(tmp_path)], capture_output=True, text=True, timeout=500
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "2 of 2 kills resumed, 2 of 2 ended bit-identical" in run.stdout
    assert "pretrain, 1 rank(s)" in run.stdout and "finetune, 2 rank(s)" in run.stdout
    assert "while writing a checkpoint" in run.stdout
