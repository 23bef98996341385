"""Time the C++ operators against PaddlePaddle's own, per layer and per training step.

    python benchmarks/ops.py [--model vit_t|small|efficientnet_b0] [--batch-size 64] [--threads 1]

Plain and fast runs alternate, so that what else the machine does meets both; shown are medians and
the quartiles' distance. A step is forward, backward and AdamW on one batch in memory.
"""

import argparse
import copy
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_mae import cli, runtime

SIZES = {  # (width, depth, heads), decoder (width, heads); patch 4, 32 pixels
    "vit_t": ((192, 12, 3), (128, 4)),
    "small": ((128, 6, 4), (96, 4)),
}
# Of EfficientNet-B0 at 32 px: channels, size, kernel, stride.
DEPTHWISE = ((96, 16, 3, 2), (240, 4, 5, 1), (1152, 1, 5, 1))
KEPT, ALL = 17, 65  # tokens of the encoder (mask ratio 0.75) and of the decoder or a classifier


def main(args: argparse.Namespace) -> None:
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    paddle = runtime.import_paddle()
    paddle.set_device("cpu")
    import numpy as np
    from paddle import nn

    from passl_mae.fast import accelerate, build
    from passl_mae.models.efficientnet import efficientnet_b0
    from passl_mae.models.layers import Attention, Mlp
    from passl_mae.models.mae import mae_vit_t_p4_dec128d2b
    from passl_mae.models.vit import mae_vit_t_p4
    from passl_mae.optim.optimizers import make_optimizer

    build()
    batch = args.batch_size
    print(
        f"{_processor()}, {runtime.available_cores()} cores, {args.threads} threads used; "
        f"PaddlePaddle {paddle.__version__}, Python {platform.python_version()}"
    )

    def tensor(*shape: int) -> paddle.Tensor:
        return paddle.to_tensor(np.random.default_rng(0).standard_normal(shape).astype("float32"))

    def forward_backward(layer: nn.Layer, *shape: int) -> Callable[[], None]:
        x, grad = tensor(batch, *shape), None
        x.stop_gradient = False

        def run() -> None:
            nonlocal grad
            y = layer(x)
            grad = tensor(*y.shape) if grad is None else grad
            paddle.autograd.backward([y], [grad])
            layer.clear_gradients()
            x.clear_gradient()

        return run

    def training_step(model: nn.Layer, classify: bool) -> Callable[[], None]:
        images, optimizer = tensor(batch, 3, 32, 32), make_optimizer("AdamW", model, 1e-4)

        def run() -> None:
            loss = (model(images) ** 2).mean() if classify else model(images)[0]
            loss.backward()
            optimizer.step()
            optimizer.clear_grad(set_to_zero=False)

        return run

    def compare(name: str, make: Callable[[nn.Layer], Callable[[], None]], plain: nn.Layer):
        runs = [make(plain), make(accelerate(copy.deepcopy(plain)))]
        times: list[list[float]] = [[], []]
        for repeat in range(args.repeats + 2):
            for run, taken in zip(runs, times):
                start = time.perf_counter()
                run()
                if repeat >= 2:  # the first are slower
                    taken.append(1e3 * (time.perf_counter() - start))
        (a, da), (b, db) = (_median_and_spread(taken) for taken in times)
        print(f"{name:44} {a:8.2f} +-{da:6.2f} {b:8.2f} +-{db:6.2f} {a / b:6.2f}")
        return a, b

    left, right = tensor(1024, 1024), tensor(1024, 1024)
    peak = 0.0
    for _ in range(10):
        start = time.perf_counter()
        float((left @ right)[0, 0])
        peak = max(peak, 2e-9 * 1024**3 / (time.perf_counter() - start))
    print(f"paddle @ paddle, 1024 x 1024: {peak:.0f} GFLOP/s (best of 10)\n")
    print(
        f"{'milliseconds, batch ' + str(batch):44} {'plain':>8}          {'fast':>8}          ratio"
    )
    if args.model == "efficientnet_b0":
        for channels, size, kernel, stride in () if args.steps_only else DEPTHWISE:
            name = f"Depthwise {kernel} x {kernel}, stride {stride} [{channels}, {size}, {size}]"
            layer = nn.Conv2D(
                channels, channels, kernel, stride, padding=kernel // 2, groups=channels,
                bias_attr=False,
            )  # fmt: skip
            compare(name, lambda m, c=channels, s=size: forward_backward(m, c, s, s), layer)
        network = efficientnet_b0(num_classes=10, img_size=32)
        network.train()
        taken = compare("B0 at 32 px, a step", lambda m: training_step(m, True), network)
        print("    images/s " + " ".join(f"{1e3 * batch / t:.0f}" for t in taken))
        return
    (width, depth, heads), (decoder_width, decoder_heads) = SIZES[args.model]
    if not args.steps_only:
        for tokens, dim, number in ((KEPT, width, heads), (ALL, decoder_width, decoder_heads)):
            layers = {
                "LayerNorm": nn.LayerNorm(dim),
                f"Linear to {3 * dim}": nn.Linear(dim, 3 * dim),
                f"Attention, {number} heads": Attention(dim, number, qkv_bias=True),
                "Mlp": Mlp(dim, 4 * dim),
            }
            for name, layer in layers.items():
                compare(
                    f"{name} [{tokens}, {dim}] forward+backward",
                    lambda m, t=tokens, d=dim: forward_backward(m, t, d),
                    layer,
                )
    encoder = dict(embed_dim=width, depth=depth, num_heads=heads)
    decoder = dict(decoder_embed_dim=decoder_width, decoder_num_heads=decoder_heads)
    pretraining = mae_vit_t_p4_dec128d2b(**encoder, **decoder)
    steps = {"pretraining step, mask 0.75": (pretraining, False)}
    if not args.pretraining_only:
        steps["finetuning step"] = (mae_vit_t_p4(num_classes=10, **encoder), True)
    for name, (model, classify) in steps.items():
        taken = compare(name, lambda m, c=classify: training_step(m, c), model)
        print("    images/s " + " ".join(f"{1e3 * batch / t:.0f}" for t in taken), end="")
        gflop = batch * _gflop_per_image(width, depth, None if classify else decoder_width)
        shares = ", ".join(f"{gflop / t * 1e3 / peak:.0%}" for t in taken)
        print(f"; {gflop:.1f} GFLOP of products: {shares} of the peak above")


def _gflop_per_image(width: int, depth: int, decoder_width: "int | None") -> float:
    """Of the products in forward and backward; the patch projection is left out (1 %)."""

    def blocks(number: int, tokens: int, dim: int) -> float:
        return number * (24 * tokens * dim**2 + 4 * tokens**2 * dim)

    forward = blocks(depth, ALL if decoder_width is None else KEPT, width)
    if decoder_width is not None:
        forward += blocks(2, ALL, decoder_width) + 2 * KEPT * width * decoder_width
        forward += 2 * ALL * decoder_width * 48
    return 3e-9 * forward


def _median_and_spread(times: "list[float]") -> "tuple[float, float]":
    ordered = sorted(times)
    count = len(ordered)
    return ordered[count // 2], ordered[3 * count // 4] - ordered[count // 4]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


if __name__ == "__main__":
    parser = cli.make_parser(__doc__)
    parser.add_argument("--model", choices=[*SIZES, "efficientnet_b0"], default="vit_t")
    parser.add_argument("--batch-size", type=int, default=64, help="images; a rank's share")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps-only", action="store_true", help="no single layers")
    parser.add_argument("--pretraining-only", action="store_true", help="no finetuning step")
    cli.run(main, parser)
