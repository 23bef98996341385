"""What ranks hold after training together, seen from inside them."""

import os
import subprocess
import sys

from real_processes import ROOT
from tiny_runs import TINY_PRETRAIN

INSIDE = """
import sys
import numpy as np
sys.path.insert(0, {root!r})
from passl_mae import distributed, runtime
from passl_mae.config import load_config
runtime.import_paddle()
from passl_mae.engine.build import build_trainer

trainer = build_trainer(load_config({config!r}, ["Optimizer.accum_iter=2"]))
batch = next(iter(trainer.train_loader.epoch(1)))
places = distributed.gather_over_ranks(batch.indices.astype(np.float64))
noise = distributed.gather_over_ranks(trainer.task.prepare(batch)["noise"].ravel())
trainer.train()
own = np.concatenate([p.numpy().ravel() for p in trainer.model.parameters()])
weights = distributed.gather_over_ranks(own)
if distributed.is_main():
    print("other images", not set(places[0]) & set(places[1]))
    print("other masks", not (noise[0] == noise[1]).any())
    print("same weights", (weights[0] == weights[1]).all() and np.isfinite(weights).all())
"""


def test_ranks_see_other_images_and_masks_and_hold_the_same_weights(write_config, tmp_path):
    script = tmp_path / "inside.py"
    config = write_config(TINY_PRETRAIN)
    script.write_text(INSIDE.format(root=str(ROOT), config=str(config)), encoding="utf-8")
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2"]
    command += ["--log_dir", str(tmp_path / "ranks"), str(script)]
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    for line in ("other images True", "other masks True", "same weights True"):
        assert line in run.stdout
