"""A Vision Transformer in plain float64 NumPy, written from the papers, slowly.

Takes a dict of arrays with the library's keys (Linear weights [in, out]); shares no code with it.
"""

import math

import numpy as np

_erf = np.vectorize(math.erf)


def linear(x, state, name):
    y = x @ state[name + ".weight"]
    return y + state[name + ".bias"] if name + ".bias" in state else y


def layer_norm(x, state, name, epsilon):
    mean = x.mean(-1, keepdims=True)
    var = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + epsilon) * state[name + ".weight"] + state[name + ".bias"]


def gelu(x):
    return x * 0.5 * (1.0 + _erf(x / math.sqrt(2.0)))


def attention(x, state, name, num_heads):
    """x [N, D] of one sample: one head after the other."""
    dim = x.shape[-1]
    width = dim // num_heads
    qkv = linear(x, state, name + ".qkv")  # [N, 3D]: all of q, then all of k, then all of v
    heads = []
    for head in range(num_heads):
        cut = slice(head * width, (head + 1) * width)
        q, k, v = qkv[:, :dim][:, cut], qkv[:, dim : 2 * dim][:, cut], qkv[:, 2 * dim :][:, cut]
        scores = q @ k.T / math.sqrt(width)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(weights / weights.sum(-1, keepdims=True) @ v)
    return linear(np.concatenate(heads, -1), state, name + ".proj")


def block(x, state, name, num_heads, epsilon):
    h = layer_norm(x, state, name + ".norm1", epsilon)
    x = x + attention(h, state, name + ".attn", num_heads)
    h = layer_norm(x, state, name + ".norm2", epsilon)
    return x + linear(gelu(linear(h, state, name + ".mlp.fc1")), state, name + ".mlp.fc2")


def blocks(x, state, prefix, num_heads, epsilon):
    depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith(prefix + "."))
    for i in range(depth):
        x = block(x, state, f"{prefix}.{i}", num_heads, epsilon)
    return x


def patches(image, patch):
    """[C, H, W] -> a list of [C, p, q], row by row."""
    _, height, width = image.shape
    p, q = patch
    return [
        image[:, top : top + p, left : left + q]
        for top in range(0, height, p)
        for left in range(0, width, q)
    ]


def embed(image, state, patch):
    """[C, H, W] -> [L, D]: each patch's product with each filter."""
    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    return np.array(
        [[(piece * kernel).sum() for kernel in weight] + bias for piece in patches(image, patch)]
    )


def classify(state, images, patch, num_heads, epsilon=1e-6, pool="mean"):
    """images [B, C, H, W] -> logits [B, num_classes]."""
    logits = []
    for image in np.asarray(images, np.float64):
        tokens = np.concatenate([state["cls_token"][0], embed(image, state, patch)])
        tokens = blocks(tokens + state["pos_embed"][0], state, "blocks", num_heads, epsilon)
        if pool == "mean":
            feature = layer_norm(tokens[1:].mean(0), state, "fc_norm", epsilon)
        else:
            feature = layer_norm(tokens[0], state, "norm", epsilon)
        logits.append(linear(feature, state, "head"))
    return np.array(logits)
