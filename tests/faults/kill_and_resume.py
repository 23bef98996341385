"""Kills a run with SIGKILL again and again, resumes it, and compares with one that was left alone.

    python tests/faults/kill_and_resume.py --kills 50

Half of the kills come at a random moment of training, half while a checkpoint is being written;
runs of one and of two ranks (gloo) take turns, and so do MAE, finetuning and MoCo. In the end the
finished weights, the optimizer's state, the averaged weights, the metrics and the scalars of
VisualDL have to be equal to the last bit to those of the undisturbed run. Everything that draws
random numbers or keeps a state is on: crop, flip, mixup, cutmix, erasing, RandAugment, drop path,
dropout, averaged weights, accumulation, clipping.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from passl_mae.models.weights import load_file  # noqa: E402

SETTINGS = {
    "Global": {"epochs": 4, "seed": 1, "save_steps": 4, "keep_last": 1, "print_batch_step": 3},
    "Model": {"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 3},
    "Data": {
        "name": "Shapes",
        "batch_size": 32,
        "val_fraction": 0.04,
        "train": {"num_images": 500, "crop": "pad", "crop_padding": 2, "hflip": 0.5},
        "eval": {"num_images": 40},
    },
    "Optimizer": {"blr": 1e-2, "clip_grad": 1.0, "accum_iter": 2, "ema_decay": 0.9},
    "LRScheduler": {"warmup_epochs": 1},
    # PaddlePaddle has no mixed precision on the CPU: its place in the loop and in the state.
    "AMP": {"level": "O1", "dtype": "bfloat16"},
}
JOBS = {
    "pretrain": (
        "train_pretrain.py",
        "mae_pretrain.pdparams",
        {"name": "mae_vit_t_p4_dec128d2b", "decoder_embed_dim": 32, "decoder_depth": 1},
        {},
        {},
    ),
    "finetune": (
        "train_finetune.py",
        "mae_finetune.pdparams",
        {"name": "mae_vit_t_p4", "drop_path": 0.2, "drop_rate": 0.1},
        {"mixup": 0.8, "cutmix": 1.0, "reprob": 0.25, "rand_augment": 5, "smoothing": 0.1},
        {},
    ),
    "moco": (  # the queue and its pointer are in the weights
        "train_pretrain.py",
        "moco_pretrain.pdparams",
        {"name": "MoCo", "base_encoder": "mae_vit_t_p4", "dim": 16, "queue_size": 96, "mlp": True},
        {"crop": "resized", "color_jitter": [0.4, 0.4, 0.4, 0.1], "grayscale": 0.2, "blur": 0.5},
        {"accum_iter": 1},
    ),
}


class Run:
    """One command, whose process group can be started, watched and killed."""

    def __init__(self, folder: Path, job: str, ranks: int):
        tool, self.weights, model, augment, optimizer = JOBS[job]
        self.folder = folder
        self.ranks = ranks
        config = folder.with_suffix(".yaml")
        settings = {**SETTINGS, "Model": {**SETTINGS["Model"], **model}}
        settings["Global"] = {**SETTINGS["Global"], "output_dir": str(folder)}
        settings["Data"] = {**SETTINGS["Data"], "train": {**SETTINGS["Data"]["train"], **augment}}
        settings["Optimizer"] = {**SETTINGS["Optimizer"], **optimizer}
        config.write_text(yaml.safe_dump(settings))
        launcher = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(ranks)]
        launcher += ["--log_dir", str(folder.with_suffix(".ranks"))]
        self.command = [sys.executable, *(launcher if ranks > 1 else [])]
        self.command += [str(ROOT / "tools" / tool), "-c", str(config)]
        self.command += ["-o", "Global.checkpoints=latest"]
        self.output = folder.with_suffix(".out")

    def start(self) -> subprocess.Popen:
        env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        with self.output.open("a") as out:
            return subprocess.Popen(
                self.command, stdout=out, stderr=out, env=env, start_new_session=True, cwd=ROOT
            )

    def steps(self) -> int:
        """Step lines in the log so far."""
        log = self.folder / "train.log"
        return log.read_text(errors="replace").count("[Iter ") if log.exists() else 0

    def writing(self) -> bool:
        """Whether a checkpoint is being written at this moment."""
        folder = self.folder / "checkpoints"
        return folder.exists() and any(name.endswith(".tmp") for name in os.listdir(folder))

    def result(self) -> dict:
        """All that has to be equal to the last bit."""
        arrays = dict(load_file(self.folder / self.weights))
        last = max((self.folder / "checkpoints").glob("epoch_*"))
        for part in ("optimizer.pdopt", "model.pdparams", "ema.pdparams"):
            arrays.update({f"{part}/{k}": v for k, v in load_file(last / part).items()})
        rows = [json.loads(r) for r in (self.folder / "metrics.jsonl").read_text().splitlines()]
        untimed = [{k: v for k, v in r.items() if k not in ("seconds", "ips")} for r in rows]
        tested = json.loads((self.folder / "result.json").read_text())
        scalars = scalars_of(self.folder / "vdl")
        return {"arrays": arrays, "metrics": [*untimed, tested], "scalars": scalars}


def kill_tree(process: subprocess.Popen) -> None:
    """SIGKILL to a process and all below it: the launcher starts its ranks in other groups."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended while we looked
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    doomed = [process.pid]
    for pid in doomed:
        doomed.extend(children.get(pid, []))
    for pid in doomed:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def scalars_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from visualdl import LogReader

    reader = LogReader(file_path=str(max(folder.iterdir())))
    names = [tag.rsplit("/", 1)[-1] for tag, kind in reader.tags().items() if kind == "scalar"]
    names = [name.replace("%", "/") for name in names]
    return {
        name: [(point.id, point.value) for point in reader.get_data("scalar", name)]
        for name in names
        if name != "Train/ips"
    }


def kill_once(run: Run, rng: random.Random, in_checkpoint: bool, patience: float = 120.0) -> str:
    """Starts the run, kills it, and says how; "finished" if it was done before the kill came."""
    before = run.steps()
    process = run.start()
    started = time.monotonic()
    lines_to_see = rng.randint(0, 6)
    delay = rng.random() * 0.3
    while process.poll() is None:
        if time.monotonic() - started > patience:
            kill_tree(process)
            raise SystemExit(f"the run hangs; see {run.output}")
        moment = run.writing() if in_checkpoint else run.steps() >= before + lines_to_see
        if moment:
            time.sleep(0 if in_checkpoint else delay)
            kill_tree(process)
            return "while writing a checkpoint" if in_checkpoint else "while training"
        time.sleep(0.0005 if in_checkpoint else 0.01)
    if process.returncode != 0:
        raise SystemExit(f"the run failed with code {process.returncode}; see {run.output}")
    return "finished"


def equal(first: dict, second: dict) -> bool:
    same = first["arrays"].keys() == second["arrays"].keys() and all(
        np.array_equal(first["arrays"][key], second["arrays"][key]) for key in first["arrays"]
    )
    return same and all(first[key] == second[key] for key in ("metrics", "scalars"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--kills-per-run", type=int, default=5, help="before it may finish")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--keep", type=Path, help="folder to work in (default: a temporary one)")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="kill_and_resume_") as temporary:
        root = args.keep or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        done = identical = resumed = runs = 0
        references: dict[tuple[str, int], dict] = {}
        kinds = [("pretrain", 1), ("finetune", 2), ("moco", 1)]
        kinds += [("finetune", 1), ("pretrain", 2), ("moco", 2)]
        while done < args.kills:
            job, ranks = kinds[runs % len(kinds)]
            if (job, ranks) not in references:
                whole = Run(root / f"{job}_{ranks}_undisturbed", job, ranks)
                if whole.start().wait() != 0:
                    raise SystemExit(f"the undisturbed run failed; see {whole.output}")
                references[job, ranks] = whole.result()
            run = Run(root / f"{job}_{ranks}_{runs}", job, ranks)
            kills = 0
            while kills < min(args.kills_per_run, args.kills - done):
                how = kill_once(run, rng, in_checkpoint=(done + kills) % 2 == 1)
                if how == "finished":
                    break
                kills += 1
                number = f"kill {done + kills}/{args.kills}"
                print(f"{number}: {job}, {ranks} rank(s), {how}", flush=True)
            if run.start().wait() != 0:
                raise SystemExit(f"the resumed run failed; see {run.output}")
            runs += 1
            done += kills
            same = equal(references[job, ranks], run.result())
            resumed += kills
            identical += kills if same else 0
            print(f"  resumed after {kills} kills: {'bit-identical' if same else 'DIFFERENT'}")
        print(f"{resumed} of {done} kills resumed, {identical} of {done} ended bit-identical")
        if identical != done:
            sys.exit(1)


if __name__ == "__main__":
    main()
