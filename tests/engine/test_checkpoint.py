"""Checkpoints appear whole or not at all, the latest is found by looking, damage is named."""

import numpy as np
import pytest

from passl_mae.engine.checkpoint import Checkpoints, RunFolder, load_checkpoint

MODEL = {"w": np.arange(3, dtype=np.float32)}
OPTIMIZER = {"w/moment1_0": np.ones(3, np.float32)}


def save(checkpoints, epoch, best=False):
    return checkpoints.save(epoch, MODEL, OPTIMIZER, {"epoch": epoch}, best=best)


def test_what_is_saved_is_loaded(tmp_path):
    path = save(Checkpoints(tmp_path, keep_last=3), 12)
    assert path.name == "epoch_0012"
    model, optimizer, trainer = load_checkpoint(path)
    np.testing.assert_array_equal(model["w"], MODEL["w"])
    np.testing.assert_array_equal(optimizer["w/moment1_0"], OPTIMIZER["w/moment1_0"])
    assert trainer == {"epoch": 12}


def test_latest_is_the_highest_epoch_by_number_not_by_name_or_pointer(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=9)
    assert checkpoints.latest() is None
    for epoch in (2, 10000, 9):
        save(checkpoints, epoch)
    (tmp_path / "latest").write_text("epoch_0002\n")
    assert checkpoints.latest().name == "epoch_10000"


def test_a_half_written_checkpoint_is_not_seen_and_is_cleared_by_the_next(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep_last=9)
    save(checkpoints, 1)
    monkeypatch.setattr("passl_mae.engine.checkpoint.fsync", _no_space)
    with pytest.raises(OSError, match="No space left"):
        save(checkpoints, 2)
    monkeypatch.undo()
    assert checkpoints.latest().name == "epoch_0001"
    assert (tmp_path / "latest").read_text() == "epoch_0001\n"
    save(checkpoints, 2)
    assert checkpoints.latest().name == "epoch_0002"
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def _no_space(path):
    raise OSError(28, "No space left on device")


def test_old_ones_go_and_the_best_stays(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    for epoch in range(1, 6):
        save(checkpoints, epoch, best=epoch == 2)
    kept = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert kept == ["epoch_0002", "epoch_0004", "epoch_0005"]


def test_saving_an_epoch_again_replaces_it(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    save(checkpoints, 1)
    other = {"w": np.zeros(3, np.float32)}
    path = checkpoints.save(1, other, OPTIMIZER, {"epoch": 1}, best=False)
    np.testing.assert_array_equal(load_checkpoint(path)[0]["w"], other["w"])


def test_damage_is_named(tmp_path):
    path = save(Checkpoints(tmp_path, keep_last=2), 1)
    (path / "trainer.pdstates").write_text('{"epoch": ')
    with pytest.raises(ValueError, match=r"trainer.pdstates is damaged"):
        load_checkpoint(path)
    (path / "optimizer.pdopt").unlink()
    with pytest.raises(
        ValueError, match=r"epoch_0001 is not a checkpoint: optimizer.pdopt missing"
    ):
        load_checkpoint(path)
    cut = save(Checkpoints(tmp_path, keep_last=9), 2)
    whole = (cut / "model.pdparams").read_bytes()
    (cut / "model.pdparams").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model.pdparams"):
        load_checkpoint(cut)


def test_a_folder_with_a_run_is_refused(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.refuse_another_run()  # nothing there yet
    save(Checkpoints(run.checkpoints, keep_last=2), 1)
    with pytest.raises(ValueError, match="holds a run already: choose another"):
        run.refuse_another_run()
    assert run.owns(run.checkpoints / "epoch_0001")
    assert not run.owns(tmp_path / "other/checkpoints/epoch_0001") and not run.owns(None)
