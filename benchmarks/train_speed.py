"""Training images/s: this library as a user runs it, PyTorch, the tutorial's way, the peak.

    python benchmarks/train_speed.py [--task pretrain|finetune] [--repeats 3]
        [--torch-python /path/to/an/environment/with/torch/bin/python]

ViT-T/4 at 32 px, batch 128, float32, mask ratio 0.75. Ours is the command itself, input pipeline,
schedule, logging and checks included; PyTorch (benchmarks/torch_mae.py) gets its images for
nothing. The variants take turns; the first steps of each are not counted.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common
import flops
import numpy as np
import yaml

ENCODER = {"img_size": 32, "patch_size": 4, "embed_dim": 192, "depth": 12, "num_heads": 3}
DECODER = {"decoder_embed_dim": 128, "decoder_depth": 2, "decoder_num_heads": 4}
BATCH = 128
STEPS, WARM_UP = 24, 8
LAUNCH = ["-m", "paddle.distributed.launch", "--nproc_per_node", "2"]


class Ours:
    """The training command on the built-in images; images/s from its own log.

    Without `built`, as for a user who did not build the operators: the cache has no library.
    """

    def __init__(self, task: str, folder: Path, ranks: int, threads: int, built: bool):
        self.task, self.folder, self.ranks = task, folder, ranks
        self.threads, self.built = threads, built
        self.runs = 0
        self.peaks: list[int] = []

    def __call__(self) -> float:
        self.runs += 1
        run = self.folder / f"{self.task}_{self.ranks}_{self.threads}_{self.built}_{self.runs}"
        config = run.with_suffix(".yaml")
        config.write_text(yaml.safe_dump(settings(self.task, run, "on" if self.built else "auto")))
        launch = [*LAUNCH, "--log_dir", f"{run}.ranks"] if self.ranks > 1 else []
        command = [sys.executable, *launch, f"tools/train_{self.task}.py", "-c", str(config)]
        cache = {} if self.built else {"XDG_CACHE_HOME": str(self.folder / "empty")}
        done = common.Finished(command, common.environment(self.threads, **cache))
        self.peaks.append(done.peak_bytes)
        costs = re.findall(r"batch_cost: ([\d.]+)s", (run / "train.log").read_text())
        return BATCH / statistics.median(map(float, costs[WARM_UP // 4 :]))


def settings(task: str, run: Path, cpu_ops: str) -> dict:
    common_keys = {"epochs": 1, "print_batch_step": 4, "output_dir": str(run), "cpu_ops": cpu_ops}
    model = {"name": "mae_vit_t_p4", **ENCODER, "num_classes": 10}
    if task == "pretrain":
        model = {"name": "mae_vit_t_p4_dec128d2b", **ENCODER, **DECODER}
    return {
        "Global": {**common_keys, "test": False},
        "Model": model,
        "Data": {
            "name": "Shapes",
            "batch_size": BATCH,
            "train": {"num_images": BATCH * STEPS, "crop": "pad", "hflip": 0.5},
            "eval": {"num_images": 16},
        },
        "Optimizer": {"blr": 1e-3},
    }


class Torch:
    """benchmarks/torch_mae.py; images/s from the median step."""

    def __init__(self, python: str, task: str, ranks: int, threads: int):
        model = {**ENCODER, **(DECODER if task == "pretrain" else {"num_classes": 10})}
        self.command = [python]
        if ranks > 1:
            self.command += ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks)]
        self.command += [str(common.ROOT / "benchmarks/torch_mae.py"), "--model", json.dumps(model)]
        self.command += ["--batch", str(BATCH), "--steps", str(STEPS), "--threads", str(threads)]
        self.threads = threads
        self.peaks: list[int] = []

    def __call__(self) -> float:
        done = common.Finished(self.command, common.environment(self.threads))
        self.peaks.append(done.peak_bytes)
        seconds = json.loads(done.output.splitlines()[-1])["seconds"]
        return BATCH / statistics.median(seconds[WARM_UP:])


def gemm_peak() -> float:
    """GFLOP/s of two processes with a thread each at a 2048 x 2048 product, together."""
    import subprocess

    code = (
        "import time, passl_mae; passl_mae.runtime.import_paddle(); import paddle\n"
        "a, b = paddle.rand([2048, 2048]), paddle.rand([2048, 2048])\n"
        "def once():\n"
        "    begin = time.perf_counter(); (a @ b)[0, 0].item()\n"
        "    return time.perf_counter() - begin\n"
        "times = sorted(once() for _ in range(40))\n"
        "print(2 * 2048**3 / times[len(times) // 2] / 1e9)"
    )
    env = common.environment(1, PYTHONPATH=str(common.ROOT))
    both = [
        subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    return sum(float(process.communicate()[0].split()[-1]) for process in both)


def tutorial(task: str, folder: Path) -> Callable[[], float]:
    """benchmarks/tutorial_way.py: one process, paddle as installed, images one by one."""
    script = str(common.ROOT / "benchmarks/tutorial_way.py")

    def measure() -> float:
        command = [sys.executable, script, "--task", task, "--batch", str(BATCH), "--steps", "6"]
        env = {**common.environment(1), "PASSL_MAE_TUNE": "0"}
        del env["OMP_NUM_THREADS"]  # as a user's shell has it: not set
        seconds = json.loads(common.Finished(command, env).output.splitlines()[-1])
        return BATCH / statistics.median(seconds[2:])

    return measure


def equal_losses(python: str, folder: Path) -> tuple[float, float]:
    """(ours, PyTorch's) loss on the same weights, images and masks."""
    from passl_mae import runtime

    runtime.import_paddle()
    import paddle

    from passl_mae import mae_vit_t_p4_dec128d2b
    from passl_mae.models.weights import convert

    model = mae_vit_t_p4_dec128d2b(**ENCODER, **DECODER)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((BATCH, 3, 32, 32), dtype=np.float32)
    noise = rng.random((BATCH, 64), dtype=np.float32)
    with paddle.no_grad():
        loss, _, _ = model(paddle.to_tensor(images), 0.75, paddle.to_tensor(noise))
    state, _ = convert({k: v.numpy() for k, v in model.state_dict().items()}, to="torch")
    np.savez(folder / "given.npz", images=images, noise=noise, **state)
    command = [*Torch(python, "pretrain", 1, 2).command, "--given", str(folder / "given.npz")]
    theirs = json.loads(common.Finished(command, common.environment(2)).output)["loss"]
    return loss.item(), theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=["pretrain", "finetune"], default="pretrain")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--torch-python", help="an interpreter with torch; without, it is left out")
    parser.add_argument("--no-tutorial", action="store_true", help="leave the slowest one out")
    args = parser.parse_args()
    print(common.machine())
    with tempfile.TemporaryDirectory(prefix="train_speed_") as temporary:
        folder = Path(temporary)
        variants: dict[str, Callable[[], float]] = {
            "2 ranks, C++ operators": Ours(args.task, folder, 2, 1, built=True),
            "2 ranks": Ours(args.task, folder, 2, 1, built=False),
            "1 rank x 1 thread, C++ operators": Ours(args.task, folder, 1, 1, built=True),
            "1 rank x 2 threads, C++ operators": Ours(args.task, folder, 1, 2, built=True),
            "1 rank x 2 threads": Ours(args.task, folder, 1, 2, built=False),
        }
        if args.torch_python:
            ours, theirs = equal_losses(args.torch_python, folder)
            print(f"loss on the same weights, images and masks: {ours:.7f}, PyTorch's {theirs:.7f}")
            variants["PyTorch, 1 process x 2 threads"] = Torch(args.torch_python, args.task, 1, 2)
            variants["PyTorch, 2 DDP processes"] = Torch(args.torch_python, args.task, 2, 1)
        if not args.no_tutorial:
            variants["the tutorial's way"] = tutorial(args.task, folder)
        variants["peak"] = gemm_peak
        report(args.task, variants, common.interleaved(variants, args.repeats))


def report(task: str, variants: dict[str, Callable], results: dict[str, list[float]]) -> None:
    peak = results.pop("peak")
    count = {"pretrain": flops.pretraining, "finetune": flops.finetuning}[task]
    cost = count(**ENCODER, **(DECODER if task == "pretrain" else {}))
    fastest = results["2 ranks, C++ operators"]
    rows = [["", "images/s", "ours is faster by", "share of the peak", "peak memory"]]
    for name, speeds in results.items():
        median, least, most = common.ratio(fastest, speeds)
        share = [100 * speed * cost / (1e9 * top) for speed, top in zip(speeds, peak)]
        peaks = getattr(variants[name], "peaks", [])
        memory = f"{statistics.median(peaks) / 2**20:.0f} MiB" if peaks else ""
        times = f"{median:.2f} ({least:.2f} to {most:.2f})"
        rows.append(
            [name, common.spread(speeds), times, f"{statistics.median(share):.0f} %", memory]
        )
    print(f"\n{task}: {cost / 1e9:.3f} GFLOP an image; peak {common.spread(peak, 0)} GFLOP/s\n")
    print(common.table(rows))


if __name__ == "__main__":
    main()
