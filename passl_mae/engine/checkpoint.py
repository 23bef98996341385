"""The run's folder and the checkpoints in it: written beside, fsynced, renamed whole, verified."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from passl_mae.data import preprocess
from passl_mae.files import fsync, hash_file, naming, replacing, write_json
from passl_mae.logger import get_logger
from passl_mae.models.weights import load_file, save_file

# Part of the state -> file; `ema` is there only where weights are averaged.
ARRAY_FILES = {"model": "model.pdparams", "optimizer": "optimizer.pdopt", "ema": "ema.pdparams"}
TRAINER_FILE = "trainer.pdstates"
MANIFEST = "manifest.json"
# epoch_0012: after 12 epochs; epoch_0012_step_00150: 150 steps later, in the middle of the 13th.
_NAME = re.compile(r"epoch_(\d{4,})(?:_step_(\d{5,}))?")


class RunFolder:
    """`Global.output_dir` and the names of what a run leaves in it."""

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.config = self.root / "config.yaml"
        self.preprocess = self.root / preprocess.FILE
        self.log = self.root / "train.log"
        self.metrics = self.root / "metrics.jsonl"
        self.vdl = self.root / "vdl"
        self.checkpoints = self.root / "checkpoints"
        self.reconstructions = self.root / "reconstructions"
        self.curves = self.root / "curves.png"
        self.result = self.root / "result.json"
        self._lock: FileLock | None = None
        self._lock_owner = self.root / ".lock.owner"

    def owns(self, checkpoint: Path | None) -> bool:
        """Whether a checkpoint folder lies inside this run's."""
        return checkpoint is not None and self.root.resolve() in checkpoint.resolve().parents

    def refuse_another_run(self) -> None:
        """ValueError where a run is there already: nothing is overwritten."""
        if self.config.exists() or self.checkpoints.exists():
            raise ValueError(
                f"{self.root} holds a run already: choose another Global.output_dir, or go on with "
                "that run by Global.checkpoints=latest"
            )

    def lock(self) -> None:
        """Makes the folder and keeps other processes from writing to it, until this one ends.

        The operating system drops the lock of a process that died, however it died.

        Raises:
            ValueError: another process trains in this folder now.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.root / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            self._lock = None
            owner = self._lock_owner
            who = owner.read_text(encoding="utf-8").strip() if owner.exists() else "another process"
            raise ValueError(
                f"{self.root} is being written to by {who}: wait for it, stop it, or choose "
                "another Global.output_dir"
            ) from None
        who = f"process {os.getpid()} on {socket.gethostname()}\n"
        with naming(self._lock_owner):
            self._lock_owner.write_text(who, encoding="utf-8")

    def write_result(self, facts: Mapping, tested: Mapping[str, float], images: int) -> None:
        """`result.json`: which weights are the finished ones, and their metrics on the test images.

        It is the last thing a run writes: where it is, the run is over.
        """
        metrics = {f"test_{name}": value for name, value in tested.items()}
        write_json(self.result, {**facts, "test_images": images, **metrics})

    def unlock(self) -> None:
        """Lets others write; does nothing where this process holds no lock."""
        if self._lock is not None:
            self._lock_owner.unlink(missing_ok=True)
            self._lock.release()
            self._lock = None


class Place(NamedTuple):
    """Where in a run a checkpoint stands; later places compare greater."""

    epoch: int  # epochs done
    step: int = 0  # steps done of the next one

    @property
    def name(self) -> str:
        return f"epoch_{self.epoch:04d}" + (f"_step_{self.step:05d}" if self.step else "")

    @classmethod
    def of(cls, folder: Path) -> Place | None:
        """The place that a folder's name says, or None for another kind of name."""
        match = _NAME.fullmatch(folder.name)
        return cls(int(match[1]), int(match[2] or 0)) if match else None


class Checkpoints:
    """Checkpoints of one run, and the pointer files `latest` and `best` (a help for people).

    Kept are: the last `keep_last` ends of epochs, every `keep_every`-th epoch, the best, and of
    those in the middle of an epoch the newest, until the epoch's end is there.
    """

    def __init__(self, folder: Path, keep_last: int, keep_every: int | None = None):
        self.folder = folder
        self.keep_last = keep_last
        self.keep_every = keep_every

    def save(self, place: Place, state: dict[str, dict], best: bool) -> Path:
        """Writes one checkpoint; it appears under its name only when all of it is on the disk.

        Args:
            state: arrays under "model", "optimizer" and perhaps "ema"; numbers under "trainer".

        Raises:
            OSError: it could not be written; what was there before is untouched.
        """
        final = self.write(place.name, state)
        self._point("latest", final.name)
        if best:
            self._point("best", final.name)
        self._remove_old()
        return final

    def write(self, name: str, state: dict[str, dict], notes: Mapping | None = None) -> Path:
        """One checkpoint under any name, whole or not at all; `notes` are further JSON files."""
        final = self.folder / name
        beside = self.folder / f".{final.name}.tmp"
        shutil.rmtree(beside, ignore_errors=True)  # of a process that died while it wrote
        beside.mkdir(parents=True)
        try:
            for part in state.keys() - {"trainer"}:
                save_file(state[part], beside / ARRAY_FILES[part])
            for file, content in {TRAINER_FILE: state["trainer"], **(notes or {})}.items():
                _write_json(beside / file, content)
            manifest = {path.name: _fingerprint(path) for path in sorted(beside.iterdir())}
            _write_json(beside / MANIFEST, manifest)
            for path in (*beside.iterdir(), beside):
                fsync(path)
            if final.exists():
                shutil.rmtree(final)
            os.replace(beside, final)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        fsync(self.folder)
        return final

    def latest(self) -> Path | None:
        """The newest whole checkpoint, found by looking; damaged ones are named and passed over.

        Raises:
            ValueError: there are checkpoints, and all of them are damaged.
        """
        damage = ""
        for path in reversed(self._all()):
            damage = damage_of(path)
            if not damage:
                return path
            get_logger().warning(f"passing over a damaged checkpoint: {damage}")
        if damage:
            raise ValueError(f"every checkpoint in {self.folder} is damaged; the oldest: {damage}")
        return None

    def refuse_to_go_back(self, checkpoint: Path) -> None:
        """ValueError where later checkpoints are there: two branches would be mixed."""
        place = Place.of(checkpoint)
        later = [path.name for path in self._all() if place and Place.of(path) > place]
        if later:
            raise ValueError(
                f"{self.folder} holds checkpoints after {checkpoint.name} (up to {later[-1]}): "
                "choose another Global.output_dir to branch off there, or move the later ones away"
            )

    def best(self) -> Path | None:
        pointer = self.folder / "best"
        if not pointer.exists():
            return None
        return self.folder / pointer.read_text(encoding="utf-8").strip()

    def best_is(self, place: Place | None) -> None:
        """Sets the pointer `best`, which a crash can have left behind the checkpoint it is of."""
        if place and (self.folder / place.name).exists():
            self._point("best", place.name)

    def weights_at(self, place: Place) -> dict[str, np.ndarray]:
        """The weights of a checkpoint, averaged ones where it has them.

        Raises:
            ValueError: it is missing or damaged.
        """
        state = load_checkpoint(self.folder / place.name)
        return state.get("ema", state["model"])

    def _all(self) -> list[Path]:
        """Checkpoint folders, oldest place first."""
        if not self.folder.exists():
            return []
        found = [(Place.of(path), path) for path in self.folder.iterdir() if path.is_dir()]
        return [path for place, path in sorted(item for item in found if item[0] is not None)]

    def _point(self, pointer: str, name: str) -> None:
        with replacing(self.folder / pointer) as beside:
            beside.write_text(name + "\n", encoding="utf-8")

    def _remove_old(self) -> None:
        paths = self._all()
        ends = [path for path in paths if Place.of(path).step == 0]
        every = self.keep_every
        keep = {*ends[-self.keep_last :], paths[-1], self.best()}
        keep |= {path for path in ends if every and Place.of(path).epoch % every == 0}
        for path in paths:
            if path not in keep:
                shutil.rmtree(path)


def damage_of(folder: Path) -> str:
    """What is wrong with a checkpoint folder, in a line; "" where every file is as written."""
    required = {ARRAY_FILES["model"], ARRAY_FILES["optimizer"], TRAINER_FILE}
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name in sorted(required | set(manifest)):
            if Path(name).name != name or (folder / name).exists() > (folder / name).is_file():
                return f"{folder / MANIFEST} names {name!r}, which is no file of a checkpoint"
            if _fingerprint(folder / name) != manifest[name]:
                return f"{folder / name} is not as it was written (size or SHA-256 differ)"
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        return f"{folder / MANIFEST} cannot be read: {error!r}"
    return ""


def load_checkpoint(folder: Path) -> dict[str, dict]:
    """What `Checkpoints.save` was given as `state`.

    Raises:
        ValueError: the folder or a file in it is missing or damaged.
    """
    damage = damage_of(folder)
    if damage:
        raise ValueError(f"the checkpoint cannot be used: {damage}")
    state = {
        part: load_file(folder / name)
        for part, name in ARRAY_FILES.items()
        if (folder / name).exists()
    }
    return {**state, "trainer": json.loads((folder / TRAINER_FILE).read_text(encoding="utf-8"))}


def _write_json(path: Path, content: Any) -> None:
    with naming(path):
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": hash_file(path, hashlib.sha256())}
