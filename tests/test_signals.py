"""SIGTERM and SIGINT to a real process: the step is finished, all is saved, the code says so."""

import re
import signal
import sys
import time

import pytest
from real_processes import (
    SETTINGS,
    assert_same_weights,
    finish,
    sleeping_tool,
    start,
    wait_for,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


def stopped_step(out):
    """The step that the run says it stopped after; the last time it did."""
    return int(re.findall(r"stopped after step (\d+) as asked", out.read_text())[-1])


def test_a_signal_saves_in_the_middle_of_an_epoch_and_the_same_command_goes_on(
    write_config, tmp_path
):
    whole, cut = write_config(SETTINGS, "whole"), write_config(SETTINGS, "cut")
    log, out = tmp_path / "cut/train.log", cut.with_suffix(".out")
    tool = sleeping_tool(tmp_path, at=4, seconds=0.3)
    process = start(cut, tool=tool)
    wait_for(process, log, r"Epoch 1/2\]\[Iter 4/20\]")
    process.send_signal(signal.SIGTERM)
    assert finish(process) == 143
    assert "SIGTERM: finishing the step and saving; once more exits at once" in out.read_text()
    first = stopped_step(out)
    assert 4 < first < 20
    assert (tmp_path / "cut/checkpoints/latest").read_text() == f"epoch_0000_step_{first:05d}\n"

    process = start(cut, tool=sleeping_tool(tmp_path, at=24, seconds=0.3))
    wait_for(process, log, r"Epoch 2/2\]\[Iter 4/20\]")
    process.send_signal(signal.SIGINT)
    assert finish(process) == 130
    assert f"step {first}\n" in re.search("resumed from .*\n", out.read_text())[0]
    assert 24 < stopped_step(out) < 40

    assert finish(start(cut)) == 0
    assert finish(start(whole)) == 0
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")
    for step in range(1, 21):  # each line once: nothing was done twice
        assert log.read_text().count(f"[Epoch 1/2][Iter {step}/20]") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_second_signal_exits_at_once(write_config, tmp_path, number):
    config = write_config(SETTINGS)
    out = config.with_suffix(".out")
    process = start(config, tool=sleeping_tool(tmp_path, at=3, seconds=100))
    wait_for(process, out, "in the step 3")
    process.send_signal(number)
    wait_for(process, out, f"{number.name}: finishing the step")
    assert process.poll() is None
    asked = time.monotonic()
    process.send_signal(number)
    assert finish(process, 50) == -number  # killed by it, as if it had never been caught
    assert time.monotonic() - asked < 20  # far less than the step would take


@pytest.mark.slow
def test_the_launcher_passes_a_sigterm_on_and_two_ranks_stop_together(write_config, tmp_path):
    """The launcher sends SIGTERM three times to each rank, and exits with 15: the bare number.

    The steps are longer than the 0.2 s between its signals, which would end the ranks otherwise.
    """
    whole, cut = write_config(SETTINGS, "whole"), write_config(SETTINGS, "cut")
    log = tmp_path / "cut/train.log"
    process = start(cut, ranks=2, tool=sleeping_tool(tmp_path, at=4, seconds=1.5))
    wait_for(process, log, r"Epoch 1/2\]\[Iter 5/20\]")
    process.send_signal(signal.SIGTERM)
    assert finish(process) == 15
    step = stopped_step(log)
    assert 5 < step < 20
    assert (tmp_path / "cut/checkpoints/latest").read_text() == f"epoch_0000_step_{step:05d}\n"
    assert finish(start(cut, ranks=2)) == 0
    assert finish(start(whole, ranks=2)) == 0
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")
