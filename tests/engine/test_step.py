"""Losses that are read late, inputs that are copied ahead, a model as a static graph."""

import json
import math

import numpy as np
import paddle
import pytest
from tiny_runs import TINY_FINETUNE, TINY_PRETRAIN

from passl_mae.config import load_config
from passl_mae.engine.build import build_trainer, when_to_check_loss
from passl_mae.engine.checkpoint import load_checkpoint
from passl_mae.engine.step import inputs_on_device
from passl_mae.models.weights import load_file

ROW_TIMES = ("seconds", "ips")


def rows_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k not in ROW_TIMES} for x in lines]


def weights_of(folder, name):
    return load_file(folder / f"{name}.pdparams")


@pytest.mark.parametrize("settings", [TINY_PRETRAIN, TINY_FINETUNE], ids=["pretrain", "finetune"])
def test_reading_losses_late_changes_no_number(write_config, tmp_path, settings):
    results = {}
    for when in ("step", "line"):
        path = write_config(settings, when)
        wishes = [f"Global.check_loss={when}", "Optimizer.accum_iter=2", "Global.save_steps=3"]
        trainer = build_trainer(load_config(path, [*wishes, "Global.print_batch_step=2"]))
        trainer.train()
        state = load_checkpoint(tmp_path / when / "checkpoints/epoch_0001")
        results[when] = rows_of(tmp_path / when), state
        results[when] += (weights_of(tmp_path / when, trainer.task.weights_name),)
    (rows, state, weights), (late_rows, late_state, late_weights) = results.values()
    assert rows == late_rows and len(rows) == 2
    assert state["trainer"] == late_state["trainer"]
    for name, array in weights.items():
        np.testing.assert_array_equal(late_weights[name], array, err_msg=name)


def test_a_broken_loss_that_is_read_late_leaves_the_last_checkpoint(write_config, tmp_path):
    wishes = ["Global.check_loss=line", "Global.print_batch_step=3", "Global.save_steps=1"]
    trainer = build_trainer(load_config(write_config(TINY_PRETRAIN), wishes[:2]))
    gradients = trainer.pass_of.gradients

    def broken(pieces, step):
        values = gradients(pieces, step)
        return [{"loss": values[0]["loss"] * math.nan}] if step == 5 else values

    trainer.pass_of.gradients = broken
    with pytest.raises(ValueError, match=r"nan in one of the steps 5 to 7, .*check_loss=st"):
        trainer.train()
    checkpoints = tmp_path / "run/checkpoints"
    assert (checkpoints / "latest").read_text() == "epoch_0001\n"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["epoch_0001", "latest"]

    # a checkpoint is not written with a loss unread
    trainer = build_trainer(load_config(write_config(TINY_PRETRAIN, "often"), wishes))
    trainer.pass_of.gradients = lambda pieces, step: [{"loss": paddle.full([], math.nan)}]
    with pytest.raises(ValueError, match="one of the steps 1 to 1"):
        trainer.train()
    assert not list((tmp_path / "often/checkpoints").glob("*_step_*"))


def test_skipping_needs_every_loss(write_config):
    wishes = ["Global.check_loss=line", "Global.max_skipped_steps=1"]
    with pytest.raises(ValueError, match="max_skipped_steps needs every loss"):
        load_config(write_config(TINY_PRETRAIN), wishes)
    assert when_to_check_loss("auto", 0) == "step"  # on the CPU, where nothing waits
    assert when_to_check_loss("line", 0) == "line"


@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("pieces", [1, 2])
def test_inputs_come_in_order_however_many_are_begun_before(write_config, ahead, pieces):
    trainer = build_trainer(load_config(write_config(TINY_PRETRAIN)))
    plain = list(trainer.train_loader.epoch(1))
    prepared = []

    def prepare(batch):
        prepared.append(batch.indices)
        return trainer.task.prepare(batch)

    stream = inputs_on_device(trainer.train_loader.epoch(1), prepare, pieces, ahead)
    for number, (batch, parts) in enumerate(stream):
        assert len(prepared) == min(number + 1 + ahead, len(plain))
        np.testing.assert_array_equal(batch.indices, plain[number].indices)
        assert len(parts) == pieces
        images = np.concatenate([part["images"].numpy() for part in parts])
        np.testing.assert_array_equal(images, plain[number].images)
        noise = np.concatenate([part["noise"].numpy() for part in parts])
        np.testing.assert_array_equal(noise, trainer.task.prepare(plain[number])["noise"])
    assert number == len(plain) - 1
    trainer.run.unlock()


@pytest.mark.parametrize("settings", [TINY_PRETRAIN, TINY_FINETUNE], ids=["pretrain", "finetune"])
def test_a_static_graph_trains_alike(write_config, tmp_path, settings):
    results = []
    for static in (False, True):
        path = write_config(settings, f"static_{static}")
        trainer = build_trainer(load_config(path, [f"Global.to_static={static}"]))
        trainer.train()
        folder = tmp_path / f"static_{static}"
        results.append((rows_of(folder), weights_of(folder, trainer.task.weights_name)))
    (rows, weights), (static_rows, static_weights) = results
    for row, other in zip(rows, static_rows):
        assert other == pytest.approx(row, rel=1e-5)
    assert weights.keys() == static_weights.keys()
    for name, array in weights.items():
        np.testing.assert_allclose(static_weights[name], array, atol=2e-5, err_msg=name)
