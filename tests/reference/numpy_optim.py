"""The warm-up cosine schedule and LARS, in plain Python and float64 NumPy."""

import math

import numpy as np


def warmup_cosine(step, peak, start, end, warmup, total):
    if step < warmup:
        return start * (1 - step / warmup) + peak * step / warmup
    if step >= total:
        return end
    angle = math.pi * (step - warmup) / (total - warmup)
    return end + (peak - end) * math.cos(angle / 2) ** 2  # (1 + cos a) / 2 = cos^2(a / 2)


def lars_step(weights, grads, velocities, rate, momentum, decay, trust):
    """One step on lists of float64 arrays, in place."""
    for weight, grad, velocity in zip(weights, grads, velocities):
        update = grad
        if weight.ndim > 1:
            update = grad + decay * weight
            weight_norm = math.sqrt(float((weight**2).sum()))
            update_norm = math.sqrt(float((update**2).sum()))
            if weight_norm > 0 and update_norm > 0:
                update = update * (trust * weight_norm / update_norm)
        velocity[...] = momentum * velocity + update
        weight[...] = weight - rate * velocity
    assert all(np.isfinite(weight).all() for weight in weights)
