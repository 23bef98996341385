"""A loss that is not finite: stop with all one needs to look into it, or skip a few updates."""

import json
import logging
import math

import numpy as np
import paddle
import pytest
from real_processes import ROOT, finish, start
from tiny_runs import TINY_PRETRAIN

from passl_mae.config import load_config
from passl_mae.data.random import keyed_generator
from passl_mae.engine.build import build_trainer
from passl_mae.engine.checkpoint import damage_of, load_checkpoint
from passl_mae.engine.precision import Precision
from passl_mae.models.weights import load_file


def trainer_of(config, *overrides, broken=(), value=math.nan):
    """A trainer whose loss is `value` in the given steps (counted from 0)."""
    trainer = build_trainer(load_config(config, ["Global.checkpoints=latest", *overrides]))
    training_step = trainer.task.training_step

    def breaking(model, inputs):
        values = training_step(model, inputs)
        at_it = model.training and trainer.step in broken
        return {**values, "loss": values["loss"] * value} if at_it else values

    trainer.task.training_step = breaking
    return trainer


def weights_of(trainer):
    return {name: param.numpy().copy() for name, param in trainer.model.named_parameters()}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_it_stops_with_the_state_and_the_images_of_the_batch(write_config, tmp_path, value):
    trainer = trainer_of(write_config(TINY_PRETRAIN), broken={5}, value=value)
    step, before = trainer.train_step, {}

    def watched(inputs, batch):
        before.update(weights_of(trainer))
        return step(inputs, batch)

    trainer.train_step = watched
    with pytest.raises(ValueError, match=rf"the loss is {value} at step 6 \(epoch 2, learning rat"):
        trainer.train()
    checkpoints = tmp_path / "run/checkpoints"
    assert (checkpoints / "latest").read_text() == "epoch_0001\n"
    aside = checkpoints / "nonfinite_step_000006"
    assert damage_of(aside) == ""
    state = load_checkpoint(aside)
    assert state["trainer"]["step"] == 5
    for name, array in before.items():
        np.testing.assert_array_equal(state["model"][name], array, err_msg=name)
    batch = json.loads((aside / "batch.json").read_text())
    order = keyed_generator((3, 2, 0, 0))  # of epoch 2 with seed 3
    assert batch["indices"] == order.permutation(64)[16:32].tolist()  # second batch of the epoch
    assert batch["step"] == 6 and batch["loss"] == str(value)

    again = build_trainer(load_config(write_config(TINY_PRETRAIN), ["Global.checkpoints=latest"]))
    assert again.step == 4  # the state aside is not the latest
    again.run.unlock()
    path = [f"Global.checkpoints={aside}"]
    beside = build_trainer(load_config(write_config(TINY_PRETRAIN), path))
    assert beside.step == 5
    beside.run.unlock()


def test_updates_are_skipped_up_to_the_limit_counted_and_said(write_config, tmp_path, capsys):
    config = write_config(TINY_PRETRAIN)
    trainer = trainer_of(config, "Global.max_skipped_steps=2", broken={2, 5, 6})
    seen = []
    step = trainer.train_step

    def watched(inputs, batch):
        before = weights_of(trainer)
        try:
            step(inputs, batch)
        finally:
            after = weights_of(trainer)
            seen.append(any((before[name] != after[name]).any() for name in before))

    trainer.train_step = watched
    with pytest.raises(ValueError, match=r"the loss is nan at step 7 .*Global\.max_skipped_steps"):
        trainer.train()
    # step 0 has a rate of 0
    assert seen == [False, True, False, True, True, False, False]
    said = capsys.readouterr().out
    assert (
        "the loss is nan at step 3 (epoch 1" in said and "no update; 1 more may be skipped" in said
    )
    assert "no update; 0 more may be skipped" in said
    state = load_checkpoint(tmp_path / "run/checkpoints/nonfinite_step_000007")
    assert state["trainer"]["skipped_steps"] == 2
    row = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    assert math.isfinite(row["train_loss"]) and row["step"] == 4
    assert trainer.schedule.last_epoch == 6  # a skipped step is a step of the schedule


def test_weights_that_a_gradient_broke_are_named_and_not_set_aside(write_config, tmp_path):
    """The loss before was finite: to skip steps, or to keep that state, would help nobody."""
    trainer = trainer_of(write_config(TINY_PRETRAIN), "Global.max_skipped_steps=5")
    update = trainer.pass_of.update

    def breaking():
        update()
        if trainer.step == 4:
            weight = trainer.model.norm.weight
            weight.set_value(weight * math.nan)

    trainer.pass_of.update = breaking
    with pytest.raises(ValueError, match=r"norm\.weight is not finite after step 5: .*untouched"):
        trainer.train()
    assert trainer.skipped_steps == 0
    assert not list((tmp_path / "run/checkpoints").glob("nonfinite*"))


def test_the_count_of_skipped_steps_survives_a_resumption_which_stays_exact(write_config, tmp_path):
    overrides = ["Global.max_skipped_steps=2", "Global.save_steps=1", "Optimizer.ema_decay=0.5"]
    broken = {1, 5}
    trainer_of(write_config(TINY_PRETRAIN, "whole"), *overrides, broken=broken).train()
    cut = write_config(TINY_PRETRAIN, "cut")
    first = trainer_of(cut, *overrides, broken=broken)
    step = first.train_step

    def dying(inputs, batch):
        if first.step == 3:
            raise KeyboardInterrupt
        return step(inputs, batch)

    first.train_step = dying
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = trainer_of(cut, *overrides, broken=broken)
    assert second.skipped_steps == 1 and second.step == 3
    second.train()
    assert second.skipped_steps == 2
    whole, cut = (load_file(tmp_path / run / "mae_pretrain.pdparams") for run in ("whole", "cut"))
    for name in whole:
        np.testing.assert_array_equal(whole[name], cut[name], err_msg=name)
    third = trainer_of(
        write_config(TINY_PRETRAIN, "cut"), *overrides, "Global.epochs=3", broken={9}
    )
    with pytest.raises(ValueError, match="the loss is nan at step 10"):
        third.train()  # both were used up before


def test_weights_that_are_not_finite_are_never_saved(write_config, tmp_path):
    """A gradient can overflow under a finite loss; the next loss would tell, a step too late."""
    trainer = trainer_of(write_config(TINY_PRETRAIN))
    step = trainer.train_step

    def overflowing(inputs, batch):
        values = step(inputs, batch)
        if trainer.step == 8:
            trainer.model.cls_token.set_value(paddle.full_like(trainer.model.cls_token, math.inf))
        return values

    trainer.train_step = overflowing
    trainer.evaluate = lambda loader, split: {"loss": 1.0}
    with pytest.raises(ValueError, match="cls_token is not finite after step 8"):
        trainer.train()
    assert (tmp_path / "run/checkpoints/latest").read_text() == "epoch_0001\n"
    assert not (tmp_path / "run/mae_pretrain.pdparams").exists()


def test_a_loss_scale_at_its_floor_is_refused(monkeypatch):
    precision = Precision("off", "float16", 65536.0)
    monkeypatch.setattr(precision.scaler, "is_enable", lambda: True)
    for scale in (65536.0, 2.0):
        monkeypatch.setattr(precision, "state_dict", lambda scale=scale: {"scale": scale})
        precision.refuse_floor()
    monkeypatch.setattr(precision, "state_dict", lambda: {"scale": 1.0})
    with pytest.raises(ValueError, match="fell from 65536 to 1: nothing is learned any more"):
        precision.refuse_floor()
    precision.init_loss_scaling = 1.0  # that is where the user let it begin
    precision.refuse_floor()


ONE_RANK_BREAKS = """
import sys
sys.path.insert(0, {root!r})
from passl_mae import cli, distributed
from passl_mae.config import load_config
from passl_mae.engine.build import build_trainer

def main(args):
    trainer = build_trainer(load_config(args.config, args.override))
    training_step = trainer.task.training_step

    def breaking(model, inputs):
        values = training_step(model, inputs)
        at_it = model.training and trainer.step in (2, 5) and distributed.rank() == 1
        return {{"loss": values["loss"] * float("nan")}} if at_it else values

    trainer.task.training_step = breaking
    trainer.train()

cli.run(main, cli.make_parser("", config=True))
"""


@pytest.mark.slow
def test_two_ranks_decide_alike(write_config, tmp_path):
    config = write_config(TINY_PRETRAIN)
    tool = tmp_path / "one_rank_breaks.py"
    tool.write_text(ONE_RANK_BREAKS.format(root=str(ROOT)))
    assert finish(start(config, "Global.max_skipped_steps=1", ranks=2, tool=tool)) == 2
    log = (tmp_path / "run/train.log").read_text()
    assert "the loss is nan at step 3 (epoch 1" in log and "0 more may be skipped" in log
    aside = tmp_path / "run/checkpoints/nonfinite_step_000006"
    assert load_checkpoint(aside)["trainer"]["skipped_steps"] == 1
    order = keyed_generator((3, 2, 0, 0))  # of epoch 2 with seed 3
    batch = json.loads((aside / "batch.json").read_text())
    assert batch["indices"] == order.permutation(64)[16:32].tolist()  # of both ranks
    for rank in (0, 1):
        said = (config.with_suffix(".ranks") / f"workerlog.{rank}").read_text()
        assert "error: the loss is nan at step 6" in said and "Traceback" not in said
    assert finish(start(config, "Global.max_skipped_steps=1", ranks=2)) == 0


@pytest.fixture(autouse=True)
def close_logs():
    yield
    logger = logging.getLogger("passl_mae")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
