"""A rank that comes late to a barrier, as rank 0 does while it writes, is waited for."""

import os
import subprocess
import sys

import pytest
from real_processes import ROOT

LATE = """
import sys, time
sys.path.insert(0, {root!r})
from passl_mae import distributed, runtime
runtime.select_device("cpu")
distributed.init()
distributed.barrier()
if distributed.is_main():
    time.sleep({seconds})
distributed.barrier()
print("together", distributed.sum_over_ranks([1.0])[0], flush=True)
"""


@pytest.mark.slow
def test_a_barrier_waits_longer_than_the_30_seconds_of_gloo(tmp_path):
    script = tmp_path / "late.py"
    script.write_text(LATE.format(root=str(ROOT), seconds=35))
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2"]
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    subprocess.run(
        [*command, "--log_dir", str(tmp_path / "ranks"), str(script)],
        env=env,
        timeout=200,
        check=True,
        capture_output=True,
    )
    for rank in (0, 1):
        assert "together 2.0" in (tmp_path / f"ranks/workerlog.{rank}").read_text()
