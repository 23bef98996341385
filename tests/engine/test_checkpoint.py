"""Checkpoints appear whole or not at all, the latest is found by looking, damage is named."""

import contextlib
import logging
import subprocess
import sys

import numpy as np
import pytest

from passl_mae.engine.checkpoint import Checkpoints, Place, RunFolder, load_checkpoint

MODEL = {"w": np.arange(3, dtype=np.float32)}
OPTIMIZER = {"w/moment1_0": np.ones(3, np.float32)}


def save(checkpoints, epoch, step=0, best=False):
    return checkpoints.save(Place(epoch, step), state_of(epoch), best)


def state_of(epoch):
    return {"model": MODEL, "optimizer": OPTIMIZER, "trainer": {"epoch": epoch}}


def names_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_what_is_saved_is_loaded(tmp_path):
    path = save(Checkpoints(tmp_path, keep_last=3), 12)
    assert path.name == "epoch_0012"
    state = load_checkpoint(path)
    np.testing.assert_array_equal(state["model"]["w"], MODEL["w"])
    np.testing.assert_array_equal(state["optimizer"]["w/moment1_0"], OPTIMIZER["w/moment1_0"])
    assert state["trainer"] == {"epoch": 12} and "ema" not in state


def test_averaged_weights_are_part_of_it_and_guarded_too(tmp_path):
    averaged = {"w": np.full(3, 0.5, np.float32)}
    checkpoints = Checkpoints(tmp_path, keep_last=3)
    path = checkpoints.save(Place(1), {**state_of(1), "ema": averaged}, False)
    np.testing.assert_array_equal(load_checkpoint(path)["ema"]["w"], averaged["w"])
    flip_a_byte(path / "ema.pdparams")
    with pytest.raises(ValueError, match=r"ema\.pdparams is not as it was written"):
        load_checkpoint(path)
    (path / "ema.pdparams").unlink()
    with pytest.raises(ValueError, match=r"ema\.pdparams is missing"):
        load_checkpoint(path)


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
    assert names_in(tmp_path) == ["epoch_0002", "epoch_0004", "epoch_0005"]


def test_every_nth_epoch_stays_when_asked(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=1, keep_every=3)
    for epoch in range(1, 8):
        save(checkpoints, epoch)
    assert names_in(tmp_path) == ["epoch_0003", "epoch_0006", "epoch_0007"]


def test_in_the_middle_of_an_epoch_only_the_newest_stays_until_the_end_is_there(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    save(checkpoints, 1)
    save(checkpoints, 1, step=50)
    save(checkpoints, 1, step=100)
    assert names_in(tmp_path) == ["epoch_0001", "epoch_0001_step_00100"]
    assert checkpoints.latest().name == "epoch_0001_step_00100"
    save(checkpoints, 2)
    assert names_in(tmp_path) == ["epoch_0001", "epoch_0002"]
    assert checkpoints.latest().name == "epoch_0002"


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_latest_is_named_and_the_one_before_is_used(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=9)
    for epoch in (1, 2, 3, 4):
        save(checkpoints, epoch)
    flip_a_byte(tmp_path / "epoch_0002/optimizer.pdopt")
    flip_a_byte(tmp_path / "epoch_0003/model.pdparams")
    (tmp_path / "epoch_0004/manifest.json").unlink()
    with warnings_of_the_log() as lines:
        assert checkpoints.latest().name == "epoch_0001"
    assert len(lines) == 3
    assert "epoch_0004/manifest.json is missing" in lines[0]
    assert "epoch_0003/model.pdparams is not as it was written" in lines[1]
    with pytest.raises(ValueError, match=r"epoch_0003/model\.pdparams is not as it was written"):
        load_checkpoint(tmp_path / "epoch_0003")
    flip_a_byte(tmp_path / "epoch_0001/trainer.pdstates")
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged"):
        checkpoints.latest()


@contextlib.contextmanager
def warnings_of_the_log():
    lines = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("passl_mae").addHandler(handler)
    yield lines
    logging.getLogger("passl_mae").removeHandler(handler)


def test_saving_an_epoch_again_replaces_it(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    save(checkpoints, 1)
    other = {"w": np.zeros(3, np.float32)}
    path = checkpoints.save(Place(1), {**state_of(1), "model": other}, False)
    np.testing.assert_array_equal(load_checkpoint(path)["model"]["w"], other["w"])


def test_damage_is_named(tmp_path):
    path = save(Checkpoints(tmp_path, keep_last=9), 1)
    (path / "trainer.pdstates").write_text('{"epoch": ')
    with pytest.raises(ValueError, match=r"trainer\.pdstates is not as it was written"):
        load_checkpoint(path)
    (path / "optimizer.pdopt").unlink()
    with pytest.raises(ValueError, match=r"optimizer\.pdopt is missing"):
        load_checkpoint(path)
    cut = save(Checkpoints(tmp_path, keep_last=9), 2)
    whole = (cut / "model.pdparams").read_bytes()
    (cut / "model.pdparams").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model\.pdparams is not as it was written"):
        load_checkpoint(cut)
    (cut / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match=r"manifest\.json cannot be read"):
        load_checkpoint(cut)


def test_one_process_at_a_time_writes_to_a_folder(tmp_path):
    """Another process is refused while this one holds the lock, and let in when it is gone."""
    run = RunFolder(tmp_path / "run")
    code = (
        "import sys; from passl_mae.engine.checkpoint import RunFolder\n"
        "run = RunFolder(sys.argv[1])\n"
        "run.lock()\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(run.root)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match=f"is being written to by process {other.pid} on "):
            run.lock()
        other.kill()
        other.wait()
        run.lock()  # the lock of the dead is nobody's
        run.unlock()


def test_a_folder_with_a_run_is_refused(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.refuse_another_run()  # nothing there yet
    save(Checkpoints(run.checkpoints, keep_last=2), 1)
    with pytest.raises(ValueError, match="holds a run already: choose another"):
        run.refuse_another_run()
    assert run.owns(run.checkpoints / "epoch_0001")
    assert not run.owns(tmp_path / "other/checkpoints/epoch_0001") and not run.owns(None)
