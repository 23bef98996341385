"""A real browser, the page and VisualDL as commands of their own, and how to wait for them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120  # seconds: the machine may be loaded
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--window-size=1400,1300",
    "--lang=en",
)


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

    def __init__(self, command: list, log: Path, port: int, **env: str) -> None:
        self.log, self.url = log, f"http://127.0.0.1:{port}"
        inherited = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                list(map(str, command)), cwd=ROOT, stdout=stream, stderr=stream,
                env={**inherited, **env}, start_new_session=True,
            )  # fmt: skip

        def listens() -> bool:
            assert self.process.poll() is None, self.text()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        try:
            wait_for(listens, f"{command} to listen")
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


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Chromium, headless; downloads go to `browser.folder`."""
    need(importlib.util.find_spec("selenium"), "selenium is not installed (pip install selenium)")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    need(
        chromium and driver,
        "Chromium is not installed (Debian: apt-get install chromium chromium-driver)",
    )
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    options.page_load_strategy = "eager"
    found = webdriver.Chrome(options=options, service=Service(driver))
    found.set_page_load_timeout(PATIENCE)
    found.set_script_timeout(PATIENCE)
    yield found
    found.quit()


@pytest.fixture(scope="session")
def page_server(tmp_path_factory):
    """`tools/demo_web.py` with the weights that ship."""
    need(importlib.util.find_spec("gradio"), "Gradio is not installed (the extra `web`)")
    port = free_port()
    log = tmp_path_factory.mktemp("page") / "log.txt"
    command = [sys.executable, ROOT / "tools/demo_web.py", "--port", port, "--max-upload", 1]
    server = Server([*command, "--max-pixels", 1_000_000], log, port)
    yield server
    server.stop()
