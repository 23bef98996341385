"""The operators, compiled once a session into a folder of their own.

Unless an earlier test in this process has loaded what the user has built: paddle takes no second.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from passl_mae.fast import build, library, load

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def operators(tmp_path_factory):
    """The loaded library; skips where nothing can compile it."""
    if library._loaded:
        yield library._loaded[0][0]
        return
    if not shutil.which(os.environ.get("CXX", "g++")):
        pytest.skip("no C++ compiler here: the operators cannot be built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        path = build()
        load()
        yield path


@pytest.fixture
def cache(operators, monkeypatch):
    """XDG_CACHE_HOME of the built library."""
    folder = operators.parents[2]
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def run_python(cache):
    """`run_python(code, threads)`: what a process with so many threads prints."""

    def run(code: str, threads: int) -> str:
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
