"""Optimizers by name, with decay exemptions and layer-wise rates set up as the reference does."""

from __future__ import annotations

from collections.abc import Collection

import paddle
from paddle import nn
from paddle.optimizer.lr import LRScheduler

from passl_mae.optim.lars import LARS
from passl_mae.optim.param_groups import layer_decay_scales, no_weight_decay

OPTIMIZERS = ("AdamW", "LARS", "RAdam", "SGD")


def make_optimizer(
    name: str,
    model: nn.Layer,
    learning_rate: float | LRScheduler,
    *,
    weight_decay: float = 0.0,
    exempt: Collection[str] = (),
    layer_decay: float = 1.0,
    clip_grad: float | None = None,
    beta1: float = 0.9,
    beta2: float = 0.999,
    momentum: float = 0.9,
) -> paddle.optimizer.Optimizer:
    """The optimizer of those of a model's parameters that learn.

    Args:
        name: "AdamW" (Loshchilov & Hutter 2017; beta1, beta2), "LARS" (You et al. 2017; momentum),
            "RAdam" (Liu et al. 2019; beta1, beta2; PaddlePaddle 3 has it) or "SGD" (with momentum).
        weight_decay: decoupled for AdamW, added to the gradient for the others; not on 1-D
            parameters, biases and those named in `exempt`.
        layer_decay: learning-rate factor per layer, from the head down.
        clip_grad: largest global norm of the gradients.

    Raises:
        ValueError: another name, or RAdam where PaddlePaddle has none.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}: choose one of {', '.join(OPTIMIZERS)}")
    if name == "RAdam" and not hasattr(paddle.optimizer, "RAdam"):
        raise ValueError(
            f"PaddlePaddle {paddle.__version__} has no RAdam: use AdamW with a warm-up "
            "(LRScheduler.warmup_epochs), or PaddlePaddle 3.0 or newer"
        )
    named = {n: param for n, param in model.named_parameters() if not param.stop_gradient}
    decayed = {n for n, param in named.items() if not no_weight_decay(n, param, exempt)}
    scales = layer_decay_scales(model, layer_decay) if layer_decay < 1.0 else None
    common = {
        "learning_rate": learning_rate,
        "parameters": list(named.values()),
        "grad_clip": None if clip_grad is None else nn.ClipGradByGlobalNorm(clip_grad),
    }
    for n, param in named.items():
        # Paddle's own attributes: groups of parameters would each be clipped by their own norm.
        coupled = name != "AdamW" and n in decayed
        param.regularizer = paddle.regularizer.L2Decay(weight_decay) if coupled else None
        # AdamW's own lr_ratio is for GPUs only; this factor works everywhere, on the decay too.
        param.optimize_attr["learning_rate"] = scales[n] if scales else 1.0
    if name == "AdamW":
        name_of = {param.name: n for n, param in named.items()}
        return paddle.optimizer.AdamW(
            beta1=beta1,
            beta2=beta2,
            weight_decay=weight_decay,
            apply_decay_param_fun=lambda param_name: name_of[param_name] in decayed,
            **common,
        )
    if name == "RAdam":
        return paddle.optimizer.RAdam(beta1=beta1, beta2=beta2, **common)
    if name == "LARS":
        return LARS(momentum=momentum, weight_decay=0.0, **common)
    return paddle.optimizer.Momentum(momentum=momentum, **common)
