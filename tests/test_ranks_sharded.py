"""The optimizer's state spread over two real ranks: the same weights, the same checkpoints."""

import os
import subprocess
import sys

import numpy as np
import pytest
from real_processes import ROOT
from tiny_runs import TINY_PRETRAIN

from passl_mae.engine.checkpoint import load_checkpoint
from passl_mae.models.weights import load_file
from passl_mae.optim.sharded import share_out

INSIDE = """
import sys
sys.path.insert(0, {root!r})
from passl_mae import distributed, runtime
from passl_mae.config import load_config
runtime.import_paddle()
from passl_mae.engine.build import build_trainer

common = ["Optimizer.accum_iter=2", "Optimizer.clip_grad=0.05", "Optimizer.ema_decay=0.9"]
half = "Global.checkpoints={folder}/sharded/checkpoints/epoch_0001"
for name, sharding, *more in (
    ("whole", False), ("sharded", True), ("resumed", True, half), ("left", False, half)
):
    wishes = [f"Global.output_dir={folder}/{{name}}", f"Optimizer.sharding={{sharding}}", *more]
    trainer = build_trainer(load_config({config!r}, common + wishes))
    trainer.train()
    if name == "sharded":
        own = trainer.optimizer.inner.state_dict()
        sizes = sum(int(value.size) for key, value in own.items() if key != "LR_Scheduler")
        counts = distributed.gather_over_ranks(__import__("numpy").array([sizes]))
        if distributed.is_main():
            print("moments", counts.astype(int).ravel().tolist())
        travels, gather = [], distributed.gather_tensors
        distributed.gather_tensors = lambda own: travels.extend(own) or gather(own)
        trainer.state_dict()
        distributed.gather_tensors = gather
        assert len(travels) == len(set(travels)) > 0, "the state travels more than once"
"""


def assert_same(arrays, expected):
    assert arrays.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(arrays[key], array, err_msg=key)


def test_two_ranks_with_a_half_of_the_state_each_train_as_with_all_of_it(write_config, tmp_path):
    script = tmp_path / "inside.py"
    config = write_config(TINY_PRETRAIN)
    text = INSIDE.format(root=str(ROOT), config=str(config), folder=tmp_path)
    script.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2"]
    command += ["--log_dir", str(tmp_path / "ranks"), str(script)]
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]

    states = {
        name: load_checkpoint(tmp_path / name / "checkpoints/epoch_0002")
        for name in ("whole", "sharded", "resumed", "left")
    }
    weights = {name: load_file(tmp_path / name / "mae_pretrain.pdparams") for name in states}
    for name in ("sharded", "resumed", "left"):
        for part in ("model", "optimizer", "ema"):
            assert states[name][part].keys() == states["whole"][part].keys()
            for key, array in states["whole"][part].items():
                np.testing.assert_array_equal(
                    states[name][part][key], array, err_msg=f"{name} {key}"
                )
        for key, array in weights["whole"].items():
            np.testing.assert_array_equal(weights[name][key], array, err_msg=f"{name} {key}")
    optimizer = states["whole"]["optimizer"]
    assert any("moment1" in key for key in optimizer)

    counts = next(line for line in run.stdout.splitlines() if line.startswith("moments"))
    each = [int(number) for number in counts.split("[")[1].rstrip("]").split(",")]
    assert sum(each) == sum(array.size for array in optimizer.values())
    assert max(each) < 0.6 * sum(each)


@pytest.mark.parametrize(
    "sizes, ranks, owner",
    [([5, 1, 1, 3], 2, [0, 1, 1, 1]), ([4, 4, 4], 2, [0, 1, 0]), ([7], 3, [0])],
)
def test_the_largest_goes_to_the_rank_that_has_least(sizes, ranks, owner):
    assert share_out(sizes, ranks) == owner
