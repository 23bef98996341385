"""Masked autoencoding in plain float64 NumPy, one sample after the other (paper, sec. 3)."""

import numpy as np
import numpy_vit as vit


def to_patches(image, patch):
    """[C, H, W] -> [L, p*q*C]; inside a patch: row, column, channel."""
    return np.array([piece.transpose(1, 2, 0).reshape(-1) for piece in vit.patches(image, patch)])


def split(noise, mask_ratio):
    """noise [L] -> (order of the patches by noise, how many of them are kept)."""
    order = sorted(range(len(noise)), key=lambda i: noise[i])
    return order, int(len(noise) * (1 - mask_ratio))


def encode(state, image, patch, num_heads, order, num_kept, epsilon):
    tokens = vit.embed(image, state, patch) + state["pos_embed"][0, 1:]
    kept = tokens[order[:num_kept]]
    cls = state["cls_token"][0] + state["pos_embed"][0, :1]
    x = vit.blocks(np.concatenate([cls, kept]), state, "blocks", num_heads, epsilon)
    return vit.layer_norm(x, state, "norm", epsilon)


def decode(state, latent, num_heads, order, epsilon):
    x = vit.linear(latent, state, "decoder_embed")
    tokens = np.repeat(state["mask_token"][0], len(order), axis=0)  # masked unless filled in
    for row, place in enumerate(order[: len(latent) - 1]):
        tokens[place] = x[1 + row]
    x = np.concatenate([x[:1], tokens]) + state["decoder_pos_embed"][0]
    x = vit.blocks(x, state, "decoder_blocks", num_heads, epsilon)
    return vit.linear(vit.layer_norm(x, state, "decoder_norm", epsilon), state, "decoder_pred")[1:]


def forward(
    state, images, noise, mask_ratio, patch, num_heads, decoder_num_heads, norm_pix_loss=False,
    epsilon=1e-6,
):  # fmt: skip
    """-> dict of loss, pred [B, L, P], mask [B, L], ids_restore [B, L], latent [B, 1 + K, D]."""
    out = {"pred": [], "mask": [], "ids_restore": [], "latent": []}
    error, removed = 0.0, 0
    for image, numbers in zip(np.asarray(images, np.float64), noise):
        order, num_kept = split(numbers, mask_ratio)
        latent = encode(state, image, patch, num_heads, order, num_kept, epsilon)
        pred = decode(state, latent, decoder_num_heads, order, epsilon)
        mask = np.array([0.0 if i in order[:num_kept] else 1.0 for i in range(len(order))])
        target = to_patches(image, patch)
        if norm_pix_loss:
            size = target.shape[1]
            mean = target.sum(1, keepdims=True) / size
            var = ((target - mean) ** 2).sum(1, keepdims=True) / (size - 1)  # unbiased
            target = (target - mean) / np.sqrt(var + 1e-6)
        error += (((pred - target) ** 2).mean(1) * mask).sum()
        removed += mask.sum()
        out["pred"].append(pred)
        out["mask"].append(mask)
        out["ids_restore"].append([order.index(i) for i in range(len(order))])
        out["latent"].append(latent)
    return {"loss": error / removed, **{key: np.array(value) for key, value in out.items()}}


def gradient(loss, state, name, index, step=1e-5):
    """d loss(state) / d state[name][index], by central differences."""
    values = state[name]
    kept = values[index]
    values[index] = kept + step
    above = loss(state)
    values[index] = kept - step
    below = loss(state)
    values[index] = kept
    return (above - below) / (2 * step)
