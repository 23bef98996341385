"""A long tiny run that saves, evaluates and draws all the time: does anything grow?

    python tests/faults/soak.py --steps 2000

After every epoch of 20 steps the process's memory, open files and threads and the bytes on the disk
are noted. The first fifth is left out (caches fill); after it, files, threads and the checkpoints
folder have to stay as they are, and memory may grow by no more than a few bytes a step.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import yaml

sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (2, 1)]

import passl_mae  # noqa: E402

passl_mae.runtime.import_paddle()

from tiny_runs import TINY_PRETRAIN  # noqa: E402

from passl_mae.config import load_config  # noqa: E402
from passl_mae.engine.build import build_trainer  # noqa: E402

STEPS_PER_EPOCH = 20
# A leaked figure, optimizer state or batch is far more than this; malloc's noise is less.
KIB_PER_STEP = 4.0


def memory_kib() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise OSError("/proc/self/status has no VmRSS")


def bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def soak(folder: Path, steps: int) -> list[dict[str, int]]:
    """Trains and notes, once an epoch, what the process holds."""
    run = folder / "run"
    settings = {
        **TINY_PRETRAIN,
        "Global": {
            **TINY_PRETRAIN["Global"],
            "output_dir": str(run),
            "epochs": steps // STEPS_PER_EPOCH,
            "save_steps": 5,
            "keep_last": 2,
            "use_visualdl": True,
        },
        "Data": {**TINY_PRETRAIN["Data"], "train": {"num_images": 20 * STEPS_PER_EPOCH}},
        "Optimizer": {**TINY_PRETRAIN["Optimizer"], "ema_decay": 0.9},
    }
    config = folder / "soak.yaml"
    config.write_text(yaml.safe_dump(settings))
    trainer = build_trainer(load_config(config))
    finish_epoch, notes = trainer.finish_epoch, []

    def noting(row):
        finish_epoch(row)
        notes.append(
            {
                "step": trainer.step,
                "memory_kib": memory_kib(),
                "open_files": len(os.listdir("/proc/self/fd")),
                "threads": len(os.listdir("/proc/self/task")),
                "python_threads": threading.active_count(),
                "checkpoints_bytes": bytes_below(run / "checkpoints"),
                "other_bytes": bytes_below(run) - bytes_below(run / "checkpoints"),
            }
        )

    trainer.finish_epoch = noting
    trainer.train()
    return notes


def growth(notes: list[dict[str, int]], what: str) -> float:
    """Per step, a straight line through all notes but those of the first fifth."""
    late = notes[len(notes) // 5 :]
    steps, values = ([note[key] for note in late] for key in ("step", what))
    return float(np.polyfit(steps, values, 1)[0])


def complaints(notes: list[dict[str, int]], kib_per_step: float = KIB_PER_STEP) -> list[str]:
    """What grew; nothing where all is well."""
    late = notes[len(notes) // 5 :]
    found = []
    for what in ("open_files", "threads", "python_threads"):
        if late[-1][what] > late[0][what]:
            found.append(f"{what} grew from {late[0][what]} to {late[-1][what]}")
    sizes = [note["checkpoints_bytes"] for note in late]
    if max(sizes) > 1.02 * min(sizes):  # numbers of more digits are a few bytes longer
        found.append(f"checkpoints grew from {min(sizes)} to {max(sizes)} bytes")
    if growth(notes, "memory_kib") > kib_per_step:
        found.append(f"memory grows by {growth(notes, 'memory_kib'):.1f} KiB a step")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak_") as folder:
        notes = soak(Path(folder), args.steps)
    print("| " + " | ".join(notes[0]) + " |\n|" + "---|" * len(notes[0]))
    for note in notes[:: max(1, len(notes) // 10)] + notes[-1:]:
        print("| " + " | ".join(f"{value:,}" for value in note.values()) + " |")
    print(f"memory: {growth(notes, 'memory_kib'):.2f} KiB a step")
    found = complaints(notes)
    print("; ".join(found) if found else "nothing grows")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
