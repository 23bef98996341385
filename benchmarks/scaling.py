"""A model of data-parallel training on many GPUs: compute, gradient exchange, what overlaps.

    python benchmarks/scaling.py

Nothing is measured here. The rate of a GPU is what published wall-clock times come to; assumptions
and sources are in docs/scaling.md.
"""

from __future__ import annotations

from typing import NamedTuple

import common
import flops

IMAGENET = 1_281_167
GLOBAL_BATCH = 4096
NODE = 8  # GPUs of one machine
NVLINK, NETWORK = 150e9, 25e9  # bytes/s: of a GPU inside a machine, of a machine (200 Gbit/s)
BACKWARD = 2 / 3  # the share of a step behind which gradients can be sent


class Model(NamedTuple):
    parameters: float
    flops: float  # of one image, a training step


def model(parameters: float, patch: int, dim: int, depth: int) -> Model:
    cost = flops.pretraining(224, patch, dim, depth, 512, 8)
    return Model(parameters, cost)


MODELS = {
    "B": model(111.9e6, 16, 768, 12),
    "L": model(329.5e6, 16, 1024, 24),
    "H": model(657.1e6, 14, 1280, 32),
}


def exchange_seconds(parameters: float, gpus: int, bytes_each: int = 4) -> float:
    """Ring all-reduce inside each machine, and between the machines: 2 (n - 1) / n of the bytes."""
    size = parameters * bytes_each
    inside, machines = min(gpus, NODE), max(1, gpus // NODE)
    within = 2 * (inside - 1) / inside * size / NVLINK
    return within + 2 * (machines - 1) / machines * size / NETWORK


def step_seconds(of: Model, gpus: int, rate: float) -> tuple[float, float]:
    """(compute, exchange that does not hide behind the backward pass) of a step of 4096 images."""
    compute = GLOBAL_BATCH / gpus * of.flops / rate
    return compute, max(0.0, exchange_seconds(of.parameters, gpus) - BACKWARD * compute)


def rate_of(of: Model, gpus: int, epochs: int, hours: float) -> float:
    """FLOP/s of one GPU in a published run."""
    return epochs * IMAGENET / (hours * 3600) / gpus * of.flops


def main() -> None:
    published = {
        "facebookresearch/mae, L, 64 V100, 800 epochs in 42 h": (MODELS["L"], 64, 800, 42),
        "PASSL, B, 32 A100, 1600 epochs in 56 h": (MODELS["B"], 32, 1600, 56),
    }
    rows = [["published run", "images/s a GPU", "TFLOP/s a GPU", "exchange / backward"]]
    for name, (of, gpus, epochs, hours) in published.items():
        rate = rate_of(of, gpus, epochs, hours)
        compute, _ = step_seconds(of, gpus, rate)
        hidden = exchange_seconds(of.parameters, gpus) / (BACKWARD * compute)
        speed = f"{rate / of.flops:.0f}"
        rows.append([name, speed, f"{rate / 1e12:.1f}", f"{100 * hidden:.0f} %"])
    print(common.table(rows))
    for rate, label in ((18.6e12, "as published"), (93e12, "five times as fast a GPU")):
        rows = [["GPUs", *(f"{name}: images/s, efficiency" for name in MODELS)]]
        for gpus in (8, 16, 32, 64, 128, 256, 512):
            cells = [str(gpus)]
            for of in MODELS.values():
                compute, exposed = step_seconds(of, gpus, rate)
                speed = GLOBAL_BATCH / (compute + exposed)
                cells.append(f"{speed:,.0f}, {100 * compute / (compute + exposed):.0f} %")
            rows.append(cells)
        print(f"\n{rate / 1e12:.1f} TFLOP/s a GPU ({label})\n")
        print(common.table(rows))


if __name__ == "__main__":
    main()
