"""What the whole suite shares: a tiny run, in this process or as a user types it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import passl_mae

passl_mae.runtime.import_paddle()  # once, with the project's settings, before any test does

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def write_config(tmp_path):
    """`write_config(settings, name)`: a YAML file whose run goes to `tmp_path / name`."""

    def write(settings: dict, name: str = "run") -> Path:
        path = tmp_path / f"{name}.yaml"
        own = {**settings, "Global": {**settings["Global"], "output_dir": str(tmp_path / name)}}
        path.write_text(yaml.safe_dump(own))
        return path

    return write


@pytest.fixture
def run_tool():
    """`run_tool("train_pretrain.py", ...)`: the command as a user types it, with `ranks` ranks."""

    def run(tool: str, *args, ranks: int = 1, env: dict | None = None, cwd: Path = ROOT):
        command = [sys.executable]
        if ranks > 1:
            command += ["-m", "paddle.distributed.launch", "--nproc_per_node", str(ranks)]
            command += [
                "--log_dir",
                str(Path(os.environ.get("TMPDIR", "/tmp")) / "passl_mae_ranks"),
            ]
        command += [str(ROOT / "tools" / tool), *map(str, args)]
        # The threads that this process was given are not the child's business.
        inherited = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        return subprocess.run(
            command,
            cwd=cwd,
            env={**inherited, **(env or {})},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run
