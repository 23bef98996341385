"""A command that starts commands: what a signal to it does to them."""

import signal
import subprocess
import sys
import time

from real_processes import ROOT

CHILD = """
import signal, sys, time
def save(number, frame):
    time.sleep(0.5)
    open("saved", "w").write(str(number))
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print("[x] passl_mae INFO: [Train] begun", flush=True)
time.sleep(120)
"""
PARENT = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from passl_mae.commands import run_command
run_command(["child.py"], Path({folder!r}), trains=True)
"""


def test_a_sigterm_reaches_the_command_and_is_waited_for(tmp_path):
    (tmp_path / "child.py").write_text(CHILD)
    text = PARENT.format(root=str(ROOT), folder=str(tmp_path))
    parent = subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    line = ""
    end = time.monotonic() + 60
    while "begun" not in line and time.monotonic() < end:
        line = parent.stdout.readline()
    assert "begun" in line
    parent.send_signal(signal.SIGTERM)
    shown, _ = parent.communicate(timeout=60)
    assert parent.returncode == 128 + signal.SIGTERM, shown
    assert (tmp_path / "saved").read_text() == str(int(signal.SIGTERM))
    assert "Traceback" not in shown
