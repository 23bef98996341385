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

TINY_VIT = {"embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 8}
TINY_PRETRAIN = {
    "Global": {"epochs": 2, "print_batch_step": 2, "seed": 3, "use_visualdl": False},
    "Model": {
        "name": "mae_vit_t_p4_dec128d2b",
        **TINY_VIT,
        "decoder_embed_dim": 16,
        "decoder_depth": 1,
        "decoder_num_heads": 2,
    },
    "Data": {
        "name": "Shapes",
        "batch_size": 16,
        "eval_batch_size": 16,
        "train": {"num_images": 64},
        "eval": {"num_images": 24},
    },
    "Optimizer": {"blr": 1e-2, "clip_grad": 1.0},
    "LRScheduler": {"warmup_epochs": 0.5},
}
TINY_FINETUNE = {
    **TINY_PRETRAIN,
    "Model": {"name": "mae_vit_t_p4", **TINY_VIT, "drop_path": 0.2, "drop_rate": 0.1},
}


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
