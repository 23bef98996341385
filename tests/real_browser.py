"""For tests in a real browser: commands that listen on a port, and how to wait."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 120  # seconds: the machine may be loaded


def need(there: object, reason: str) -> None:
    """Skips, or fails where the browser's tests are required (as in .ci/run)."""
    if not there:
        if os.environ.get("PASSL_MAE_REQUIRE_BROWSER") == "1":
            pytest.fail(f"PASSL_MAE_REQUIRE_BROWSER=1, but {reason}")
        pytest.skip(reason)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition, what: str, seconds: float = PATIENCE):
    """The first true value of `condition()`; fails when there is none in time."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.1)


class Server:
    """A command that listens on a port; ended with the tests."""

    def __init__(self, command: list, log: Path, port: int, cwd: Path = ROOT) -> None:
        self.log, self.url = log, f"http://127.0.0.1:{port}"
        inherited = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                list(map(str, command)), cwd=cwd, stdout=stream, stderr=stream,
                env=inherited, start_new_session=True,
            )  # fmt: skip

        def listens() -> bool:
            assert self.process.poll() is None, self.text()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        try:
            wait_for(listens, f"{command} to listen", 2 * PATIENCE)
        except BaseException:
            self.stop()
            raise

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self) -> int:
        """Its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            finally:
                # VisualDL leaves a child behind; both are in the session that we began
                try:
                    os.killpg(self.process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    self.process.poll()
        return self.process.wait(PATIENCE)
