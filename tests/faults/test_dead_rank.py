"""kill -9 of one of two ranks: the job ends soon, and the same command goes on."""

import os
import signal
import time

import pytest
from real_processes import SETTINGS, assert_same_weights, finish, ranks_below, start, wait_for

# The launcher looks every 1 to 2 s, sends SIGTERM, waits 3 s, and kills: 6 s on an idle machine.
SECONDS_TO_END = 30.0


@pytest.mark.slow
@pytest.mark.parametrize("doomed", [0, 1])
def test_the_launcher_ends_the_job_and_the_same_command_goes_on(write_config, tmp_path, doomed):
    whole, cut = write_config(SETTINGS, "whole"), write_config(SETTINGS, "cut")
    log = tmp_path / "cut/train.log"
    process = start(cut, "Global.save_steps=3", ranks=2)
    wait_for(process, log, r"Epoch 1/2\]\[Iter 8/20\]")
    ranks = ranks_below(process)
    assert sorted(ranks) == [0, 1]
    os.kill(ranks[doomed], signal.SIGKILL)
    killed = time.monotonic()
    code = finish(process)
    seconds = time.monotonic() - killed
    print(f"rank {doomed} killed; the launcher ended with {code} after {seconds:.1f} s")
    assert code not in (0, None) and seconds < SECONDS_TO_END
    assert not any(os.path.exists(f"/proc/{pid}") for pid in ranks.values())

    assert finish(start(cut, "Global.save_steps=3", ranks=2)) == 0
    assert "resumed from" in log.read_text()
    assert finish(start(whole, ranks=2)) == 0
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")
