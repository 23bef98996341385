"""Where the time of a training step goes, operator by operator: as PaddlePaddle computes it, with
faster bias gradients (what there is without a compiler), and with the C++ operators.

    python benchmarks/profile_step.py [--batch-size 128] [--threads 2] [--steps 5] [--finetune]

ViT-T/4 at 32 px, mask ratio 0.75 (or the classifier, all 65 tokens), AdamW, by paddle.profiler.
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common

from passl_mae import cli, runtime

SHOWN = 12


def main(args: argparse.Namespace) -> None:
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    paddle = runtime.import_paddle()
    paddle.set_device("cpu")
    from passl_mae.fast import accelerate, build
    from passl_mae.fast.bias import use_product_biases
    from passl_mae.models.mae import mae_vit_t_p4_dec128d2b
    from passl_mae.models.vit import mae_vit_t_p4
    from passl_mae.optim.optimizers import make_optimizer

    build()
    print(f"{common.machine()}; {args.threads} threads, batch {args.batch_size}\n")
    images = paddle.randn([args.batch_size, 3, 32, 32])
    ways = {
        "PaddlePaddle's layers": lambda model: model,
        "Faster bias gradients": use_product_biases,
        "C++ operators": accelerate,
    }
    for name, change in ways.items():
        make = mae_vit_t_p4 if args.finetune else mae_vit_t_p4_dec128d2b
        model = change(make(img_size=32, **({"num_classes": 10} if args.finetune else {})))
        optimizer = make_optimizer("AdamW", model, 1e-4, weight_decay=0.05)

        def step(model=model, optimizer=optimizer) -> None:
            loss = (model(images) ** 2).mean() if args.finetune else model(images)[0]
            loss.backward()
            optimizer.step()
            optimizer.clear_grad(set_to_zero=False)

        step()
        begin = time.perf_counter()
        for _ in range(args.steps):
            step()
        whole = time.perf_counter() - begin  # without the profiler
        print(name)
        print(table_of(profile(paddle, step, args.steps), args.steps, whole), "\n")


def profile(paddle, step, steps: int) -> dict[str, tuple[int, float]]:
    """{operator: (calls, seconds)} over the steps."""
    profiler = paddle.profiler.Profiler(
        targets=[paddle.profiler.ProfilerTarget.CPU], on_trace_ready=lambda _: None
    )
    profiler.start()
    for _ in range(steps):
        step()
        profiler.step()
    profiler.stop()
    result = profiler.profiler_result
    statistics = paddle.profiler.profiler_statistic.StatisticData(
        result.get_data(), result.get_extra_info()
    )
    found: dict[str, tuple[int, float]] = {}
    for name, item in statistics.event_summary.items.items():
        calls, seconds = found.get(plain_name(name), (0, 0.0))
        found[plain_name(name)] = calls + item.call, seconds + item.cpu_time * 1e-9
    return found


def plain_name(name: str) -> str:
    """ "Global_GeluGradNode" is "gelu, backward"; "matmul dygraph" is "matmul"."""
    own = re.fullmatch(r".*CustomOpGradNode: passl_mae_(\w+)_grad", name)
    if own:
        return f"our {own[1]}, backward"
    if "GradNodePyLayer_AddBias" in name:
        return "bias, backward (a product)"
    backward = re.fullmatch(r"(?:Global_)?(\w+?)GradNode(?:Final)?", name)
    if backward:
        return f"{re.sub(r'(?<=[a-z0-9])(?=[A-Z])', '_', backward[1]).lower()}, backward"
    return name.removesuffix(" dygraph") if hasattr(name, "removesuffix") else name.split()[0]


def table_of(found: "dict[str, tuple[int, float]]", steps: int, whole: float) -> str:
    """The longest operators; shares are of the steps' time by the clock, without the profiler."""
    ordered = sorted(found.items(), key=lambda item: -item[1][1])
    seen = sum(seconds for _, seconds in found.values())
    rows = [["operator", "calls a step", "ms a step", "share"]]

    def row(name: str, calls: str, seconds: float) -> None:
        rows.append([name, calls, f"{1e3 * seconds / steps:.1f}", f"{seconds / whole:.0%}"])

    for name, (calls, seconds) in ordered[:SHOWN]:
        row(name, f"{calls / steps:.0f}", seconds)
    row("the others", "", sum(seconds for _, (_, seconds) in ordered[SHOWN:]))
    row("not seen: Python, our operators' forward passes", "", max(whole - seen, 0.0))
    row("all, by the clock", "", whole)
    return common.table(rows)


if __name__ == "__main__":
    parser = cli.make_parser(__doc__)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--finetune", action="store_true", help="the classifier's step")
    cli.run(main, parser)
