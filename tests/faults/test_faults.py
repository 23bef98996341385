"""A full disk, a folder that cannot be written, no more file handles, a clock that jumps."""

import contextlib
import logging
import os
import resource
import shutil
import subprocess
import sys
import time

import pytest
from real_processes import ROOT, SETTINGS, assert_same_weights, finish, start
from tiny_runs import TINY_PRETRAIN

from passl_mae.config import load_config
from passl_mae.engine import checkpoint
from passl_mae.engine.build import build_trainer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts and limits of Linux")


@contextlib.contextmanager
def small_disk(folder, size):
    """A file system of its own in memory, of so many bytes; skips where one may not mount."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root with the right to mount")
    try:
        yield folder
    finally:
        close_logs()
        subprocess.run(["umount", str(folder)], check=True)


def remount(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def train(config, *overrides):
    build_trainer(load_config(config, ["Global.checkpoints=latest", *overrides])).train()


def test_a_full_disk_stops_the_run_with_the_files_name_and_it_goes_on(write_config, tmp_path):
    train(write_config(TINY_PRETRAIN, "whole"), "Global.epochs=4")
    with small_disk(tmp_path / "disk", "8m") as disk:
        config = write_config(TINY_PRETRAIN, "disk/run")
        trainer = build_trainer(
            load_config(config, ["Global.checkpoints=latest", "Global.epochs=4"])
        )
        save = trainer.save
        ballast = disk / "ballast"

        def fill_before_the_second_epochs_checkpoint(place, best=False):
            if place.epoch == 2:
                free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize
                ballast.write_bytes(bytes(free - 16384))  # room for half of the checkpoint
            save(place, best)

        trainer.save = fill_before_the_second_epochs_checkpoint
        with pytest.raises(OSError, match=r"No space left on device: '.*epoch_0002\.tmp/"):
            trainer.train()
        checkpoints = disk / "run/checkpoints"
        assert sorted(os.listdir(checkpoints)) == ["epoch_0001", "latest"]
        assert checkpoint.damage_of(checkpoints / "epoch_0001") == ""
        ballast.unlink()
        train(config, "Global.epochs=4")
        assert_same_weights(tmp_path / "whole", disk / "run")


def test_a_disk_too_small_from_the_start_ends_in_one_line(write_config, tmp_path):
    with small_disk(tmp_path / "disk", "100k") as disk:
        config = write_config({**TINY_PRETRAIN, "Global": {"epochs": 1}}, "disk/run")
        out = tmp_path / "said"
        with out.open("w") as file:
            assert finish(start_saying(config, file)) == 2
        assert "No space left on device: '" in last_error(out) and str(disk) in last_error(out)


def test_a_file_larger_than_the_limit_ends_in_one_line_with_its_name(write_config, tmp_path):
    """As with a quota: needs no root."""
    config = write_config(SETTINGS)
    process = start(config, preexec=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20000,) * 2))
    assert finish(process) == 2
    assert "File too large: '" in last_error(config.with_suffix(".out"))


def test_a_read_only_folder_is_named(write_config, tmp_path):
    with small_disk(tmp_path / "disk", "8m") as disk:
        config = write_config(TINY_PRETRAIN, "disk/run")
        train(config, "Global.epochs=1")
        files = {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()}
        close_logs()
        remount(disk, "ro")
        with pytest.raises(OSError, match=r"Read-only file system: '.*disk/run/\.lock"):
            train(config)
        with pytest.raises(OSError, match=r"Read-only file system: '.*disk/other'"):
            train(config, f"Global.output_dir={disk / 'other'}")
        assert files == {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()}
        remount(disk, "rw")
        train(config)


NO_HANDLES = """
import sys
sys.path.insert(0, {root!r})
from passl_mae import cli
from passl_mae.config import load_config
from passl_mae.engine.build import build_trainer
from passl_mae.engine.trainer import Trainer

save, taken = Trainer.save, []

def starving(self, place, best=False):
    if place.epoch == 2:
        while True:
            try:
                taken.append(open("/dev/null"))
            except OSError:
                break
    save(self, place, best)

Trainer.save = starving
cli.run(lambda a: build_trainer(load_config(a.config, a.override)).train(),
        cli.make_parser("", config=True))
"""


def test_no_more_file_handles_ends_in_one_line_and_the_run_goes_on(write_config, tmp_path):
    config, whole = write_config(TINY_PRETRAIN, "run"), write_config(TINY_PRETRAIN, "whole")
    tool = tmp_path / "starving.py"
    tool.write_text(NO_HANDLES.format(root=str(ROOT)))
    process = start(
        config,
        "Global.epochs=3",
        tool=tool,
        preexec=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)),
    )
    assert finish(process) == 2
    assert "Too many open files: '" in last_error(config.with_suffix(".out"))
    assert (tmp_path / "run/checkpoints/latest").read_text() == "epoch_0001\n"
    train(config, "Global.epochs=3")
    train(whole, "Global.epochs=3")
    assert_same_weights(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("moment", ["before it is checked", "before it is read"])
def test_a_checkpoint_removed_while_it_is_resumed_is_named(
    write_config, tmp_path, monkeypatch, moment
):
    config = write_config(TINY_PRETRAIN)
    train(config, "Global.epochs=1")
    folder = tmp_path / "run/checkpoints/epoch_0001"
    check = checkpoint.damage_of
    checks = []

    def removing(path):
        checks.append(path)
        if moment == "before it is checked" and len(checks) == 2:  # the first one is of `latest`
            shutil.rmtree(path)
        damage = check(path)
        if moment == "before it is read" and len(checks) == 2:
            shutil.rmtree(path)
        return damage

    monkeypatch.setattr(checkpoint, "damage_of", removing)
    with pytest.raises((ValueError, FileNotFoundError), match=str(folder)):
        train(config)
    monkeypatch.undo()
    train(config)  # from the beginning, as nothing else is left


def test_a_clock_that_jumps_changes_nothing(write_config, tmp_path, monkeypatch):
    """Forward and back by years between readings, and back between the sessions."""
    overrides = ["Global.use_visualdl=true", "Global.save_steps=3"]
    train(write_config(TINY_PRETRAIN, "whole"), *overrides)
    config = write_config(TINY_PRETRAIN, "cut")
    real, jumps = time.time, iter(range(10**9))
    years = 365 * 86400

    def jumping():
        return real() + (next(jumps) * 7 % 5 - 2) * years

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(time, "time_ns", lambda: int((real() + 2 * years) * 1e9))
    train(config, *overrides, "Global.epochs=1")
    monkeypatch.setattr(time, "time_ns", lambda: int((real() - 2 * years) * 1e9))
    train(config, *overrides, "Global.epochs=2", "LRScheduler.warmup_epochs=0.5")
    monkeypatch.undo()
    rows = [(tmp_path / run / "metrics.jsonl").read_text().count("\n") for run in ("whole", "cut")]
    assert rows == [2, 2]
    scalars = [steps_of("Train/loss", tmp_path / run / "vdl") for run in ("whole", "cut")]
    assert scalars[0] == scalars[1]


def steps_of(tag, folder):
    from visualdl import LogReader

    (file,) = folder.iterdir()
    return [point.id for point in LogReader(file_path=str(file)).get_data("scalar", tag)]


def last_error(out):
    """What a run said in the end: one line, and no traceback before it."""
    text = out.read_text()
    assert "Traceback" not in text, text[-2000:]
    last = text.rstrip().splitlines()[-1]
    assert last.startswith("error: "), text[-2000:]
    return last


def start_saying(config, file):
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    tool = str(ROOT / "tools/train_pretrain.py")
    return subprocess.Popen(
        [sys.executable, tool, "-c", str(config)], stdout=file, stderr=file, env=env
    )


def close_logs():
    logger = logging.getLogger("passl_mae")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


@pytest.fixture(autouse=True)
def _close_logs():
    yield
    close_logs()
