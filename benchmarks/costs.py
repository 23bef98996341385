"""What a training step costs: by mask ratio, image size and batch; evaluation, reconstruction.

    python benchmarks/costs.py [--repeats 5] [--vit-b]

One process, all cores, random images that are there already. --vit-b measures the encoder of ViT-B
at 224 px with and without masking, against the ratio of its floating-point operations.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common
import flops
import paddle

from passl_mae import mae_vit_b_p16_dec512d8b, mae_vit_t_p4, mae_vit_t_p4_dec128d2b
from passl_mae.fast import accelerate, library_path
from passl_mae.reconstruction import reconstruct


def build(make: Callable, **arguments) -> paddle.nn.Layer:
    model = make(**arguments)
    return accelerate(model) if library_path().exists() else model


def step_of(model: paddle.nn.Layer, batch: int, ratio: float) -> Callable[[], float]:
    """Seconds of one update."""
    size = model.patch_embed.img_size
    images = paddle.rand([batch, 3, *size])
    learning = [p for p in model.parameters() if not p.stop_gradient]
    optimizer = paddle.optimizer.AdamW(1e-4, parameters=learning)

    def measure() -> float:
        begin = time.perf_counter()
        loss, _, _ = model(images, ratio)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
        loss.item()
        return time.perf_counter() - begin

    measure()
    return measure


def encoder_of(model: paddle.nn.Layer, batch: int, ratio: float) -> Callable[[], float]:
    """Seconds of the encoder alone, forward and backward."""
    images = paddle.rand([batch, 3, *model.patch_embed.img_size])

    def measure() -> float:
        begin = time.perf_counter()
        latent, _, _ = model.forward_encoder(images, ratio)
        latent.mean().backward()
        for parameter in model.parameters():  # as the trainer does
            parameter.clear_gradient(set_to_zero=False)
        return time.perf_counter() - begin

    measure()
    return measure


def encoder_flops(tokens: int) -> float:
    patches, dim = 196, 768
    return 3 * (2 * patches * 768 * dim + flops.blocks(tokens, dim, 12))


def vit_b(repeats: int) -> None:
    model = build(mae_vit_b_p16_dec512d8b)
    variants = {f"mask ratio {r:g}": encoder_of(model, 8, r) for r in (0.75, 0.0)}
    results = common.interleaved(variants, repeats)
    clock = common.ratio(results["mask ratio 0"], results["mask ratio 0.75"])
    counted = encoder_flops(197) / encoder_flops(50)
    print("\nencoder of ViT-B at 224 px, mask ratio 0 against 0.75")
    print(f"by clock {clock[0]:.2f} ({clock[1]:.2f} to {clock[2]:.2f}), by FLOPs {counted:.2f}")


def inference(repeats: int) -> None:
    images = np.random.default_rng(0).standard_normal((256, 3, 32, 32), dtype=np.float32)
    noise = np.random.default_rng(1).random((256, 64), dtype=np.float32)
    classifier, model = build(mae_vit_t_p4, num_classes=10), build(mae_vit_t_p4_dec128d2b)
    classifier.eval()

    def evaluation() -> float:
        begin = time.perf_counter()
        with paddle.no_grad():
            classifier(paddle.to_tensor(images)).numpy()
        return len(images) / (time.perf_counter() - begin)

    def reconstruction() -> float:
        begin = time.perf_counter()
        reconstruct(model, images, 0.75, noise, (0.5,) * 3, (0.25,) * 3)
        return len(images) / (time.perf_counter() - begin)

    evaluation(), reconstruction()
    variants = {"evaluation": evaluation, "reconstruction": reconstruction}
    results = common.interleaved(variants, repeats)
    rows = [["ViT-T/4, 32 px", "images/s"]]
    print("\n" + common.table([*rows, *([n, common.spread(s, 0)] for n, s in results.items())]))


def training(repeats: int) -> None:
    variants, costs = {}, {}
    shape = {"embed_dim": 192, "depth": 12, "decoder_embed_dim": 128, "decoder_depth": 2}
    for size, batch, mask in [
        *((32, 128, r) for r in (0.75, 0.0, 0.25, 0.5, 0.9)),
        (48, 128, 0.75), (64, 64, 0.75), (32, 16, 0.75), (32, 256, 0.75),
    ]:  # fmt: skip
        name = f"{size} px, batch {batch}, mask ratio {mask:g}"
        model = build(mae_vit_t_p4_dec128d2b, img_size=size)
        variants[name] = step_of(model, batch, mask)
        costs[name] = (batch, flops.pretraining(size, 4, mask_ratio=mask, **shape))
    results = common.interleaved(variants, repeats)
    rows = [["pretraining of ViT-T/4", "ms a step", "images/s", "GFLOP an image", "GFLOP/s"]]
    for name, seconds in results.items():
        batch, cost = costs[name]
        speed = [batch / s for s in seconds]
        rows.append(
            [
                name,
                common.spread([1000 * s for s in seconds], 0),
                common.spread(speed, 0),
                f"{cost / 1e9:.2f}",
                common.spread([s * cost / 1e9 for s in speed], 0),
            ]
        )
    print("\n" + common.table(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vit-b", action="store_true", help="ViT-B at 224 px alone")
    args = parser.parse_args()
    built = "with" if library_path().exists() else "without"
    print(f"{common.machine()}; {built} the C++ operators")
    if args.vit_b:
        vit_b(args.repeats)
        return
    training(args.repeats)
    inference(args.repeats)


if __name__ == "__main__":
    main()
