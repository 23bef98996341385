"""RAdam in a run: one that died ends bit-identical, as with the other optimizers."""

import paddle
import pytest
from test_trainer import assert_same_arrays, metrics_of, train_until
from tiny_runs import TINY_FINETUNE

from passl_mae.config import load_config
from passl_mae.engine.build import build_trainer
from passl_mae.models.weights import load_file


@pytest.mark.skipif(not hasattr(paddle.optimizer, "RAdam"), reason="PaddlePaddle has no RAdam")
def test_a_run_with_radam_that_died_ends_bit_identical(write_config, tmp_path):
    overrides = ["Optimizer.name=RAdam", "Optimizer.beta2=0.8", "Global.save_steps=2"]
    overrides += ["LRScheduler.hold_epochs=0.5", "Optimizer.ema_decay=0.9"]
    build_trainer(load_config(write_config(TINY_FINETUNE, "whole"), overrides)).train()

    cut, latest = write_config(TINY_FINETUNE, "cut"), [*overrides, "Global.checkpoints=latest"]
    for steps in (3, 7):
        train_until(load_config(cut, latest), steps)
    last = build_trainer(load_config(cut, latest))
    assert last.step == 6
    last.train()
    for file in ("model.pdparams", "optimizer.pdopt", "ema.pdparams"):
        whole, cut = (tmp_path / run / "checkpoints/epoch_0002" / file for run in ("whole", "cut"))
        assert_same_arrays(load_file(whole), load_file(cut))
    assert any(key.endswith("rho_0") for key in load_file(whole.with_name("optimizer.pdopt")))
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "cut")
