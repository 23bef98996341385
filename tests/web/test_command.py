"""tools/demo_web.py as it is typed: one clear line for each mistake, exit code 2."""

import socket
import sys
from pathlib import Path

import pytest
import yaml
from real_browser import free_port
from tiny_runs import TINY_PRETRAIN

from passl_mae.web import server

ROOT = Path(__file__).resolve().parents[2]


def test_a_port_in_use_is_said_before_anything_is_loaded(run_tool):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = run_tool("demo_web.py", "--port", port)
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.startswith(f"error: cannot listen on 127.0.0.1, port {port} (")
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "70000"], "--port must be from 1 to 65535, got 70000"),
        (["--weights", "x.safetensors"], "needs -c"),
        (["-c", "x.yaml"], "needs -c"),
        (["--classifier-config", "x.yaml"], "is for the file of a --classifier"),
        (["--max-upload", "0"], "must be at least 1"),
    ],
)
def test_options_that_do_not_fit(run_tool, options, message):
    run = run_tool("demo_web.py", *options)
    assert run.returncode == 2 and run.stderr.startswith("error: ") and message in run.stderr


def test_a_run_without_weights(run_tool, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(TINY_PRETRAIN))
    done = run_tool("demo_web.py", "--run", run, "--port", free_port())
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {run} has no finished weights (mae_pretrain.pdparams)")


def test_without_gradio_the_way_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)  # importing it fails
    for name in server.QUIET:
        monkeypatch.setenv(name, "")  # restored afterwards
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'passl_mae\[web\]'"):
        server.check_gradio()


def test_an_address_that_is_not_this_machines():
    with pytest.raises(ValueError, match=r"cannot listen on 203\.0\.113\.1, port 8080"):
        server.check_port("203.0.113.1", 8080)
