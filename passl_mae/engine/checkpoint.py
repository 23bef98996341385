"""The run's folder and the checkpoints in it: written beside, fsynced, renamed whole."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from passl_mae.files import fsync, replacing
from passl_mae.models.weights import load_file, save_file

CHECKPOINT_NAME = re.compile(r"epoch_(\d{4,})")
MODEL_FILE, OPTIMIZER_FILE, TRAINER_FILE = "model.pdparams", "optimizer.pdopt", "trainer.pdstates"


class RunFolder:
    """`Global.output_dir` and the names of what a run leaves in it."""

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.config = self.root / "config.yaml"
        self.log = self.root / "train.log"
        self.metrics = self.root / "metrics.jsonl"
        self.vdl = self.root / "vdl"
        self.checkpoints = self.root / "checkpoints"
        self.reconstructions = self.root / "reconstructions"
        self.curves = self.root / "curves.png"

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


class Checkpoints:
    """Checkpoints of one run: `epoch_0012/` and the pointer files `latest` and `best`."""

    def __init__(self, folder: Path, keep_last: int):
        self.folder = folder
        self.keep_last = keep_last

    def save(
        self, epoch: int, model: dict, optimizer: dict, trainer: dict[str, Any], best: bool
    ) -> Path:
        """Writes one checkpoint; it appears under its name only when all of it is on the disk."""
        final = self.folder / f"epoch_{epoch:04d}"
        beside = self.folder / f".{final.name}.tmp"
        if beside.exists():
            shutil.rmtree(beside)
        beside.mkdir(parents=True)
        save_file(model, beside / MODEL_FILE)
        save_file(optimizer, beside / OPTIMIZER_FILE)
        (beside / TRAINER_FILE).write_text(json.dumps(trainer, indent=1), encoding="utf-8")
        for path in (*beside.iterdir(), beside):
            fsync(path)
        if final.exists():
            shutil.rmtree(final)
        os.replace(beside, final)
        fsync(self.folder)
        self._point("latest", final.name)
        if best:
            self._point("best", final.name)
        self._remove_old()
        return final

    def latest(self) -> Path | None:
        """The complete checkpoint of the highest epoch, found by looking."""
        complete = self._all()
        return complete[-1] if complete else None

    def best(self) -> Path | None:
        pointer = self.folder / "best"
        return self.folder / pointer.read_text().strip() if pointer.exists() else None

    def _all(self) -> list[Path]:
        """Complete checkpoints by epoch."""
        if not self.folder.exists():
            return []
        found = [path for path in self.folder.iterdir() if CHECKPOINT_NAME.fullmatch(path.name)]
        found = [path for path in found if (path / TRAINER_FILE).exists()]
        return sorted(found, key=lambda path: int(CHECKPOINT_NAME.fullmatch(path.name)[1]))

    def _point(self, pointer: str, name: str) -> None:
        with replacing(self.folder / pointer) as beside:
            beside.write_text(name + "\n")

    def _remove_old(self) -> None:
        for path in self._all()[: -self.keep_last]:
            if path != self.best():
                shutil.rmtree(path)


def load_checkpoint(folder: Path) -> tuple[dict, dict, dict[str, Any]]:
    """The (model, optimizer, trainer) states of a checkpoint folder.

    Raises:
        ValueError: the folder or a file in it is missing or damaged.
    """
    missing = [
        name for name in (MODEL_FILE, OPTIMIZER_FILE, TRAINER_FILE) if not (folder / name).is_file()
    ]
    if missing:
        raise ValueError(f"{folder} is not a checkpoint: {', '.join(missing)} missing")
    try:
        trainer = json.loads((folder / TRAINER_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / TRAINER_FILE} is damaged: {error}") from None
    return load_file(folder / MODEL_FILE), load_file(folder / OPTIMIZER_FILE), trainer
