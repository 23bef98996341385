"""A real browser, and the page as a command of its own."""

from __future__ import annotations

import importlib.util
import shutil
import sys

import pytest
from real_browser import PATIENCE, ROOT, Server, free_port, need

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
    code = server.stop()
    assert code == 0 and "Traceback" not in server.text(), server.text()
