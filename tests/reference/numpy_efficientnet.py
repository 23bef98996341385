"""An EfficientNet in plain float64 NumPy, slowly, from the paper's table 1, on others' state dicts.

It walks the keys of torchvision or of timm by itself, in PyTorch's layout (Linear [out, in]), and
shares no code with the library: a model that agrees has its keys mapped right, too.
"""

import math

import numpy as np

# repeats, kernel, stride, expansion, channels; EfficientNet-B0
TABLE = [
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
]  # fmt: skip
SCALES = {"b0": (1.0, 1.0), "b3": (1.2, 1.4)}  # width, depth


def channels(count, width):
    """To the nearest multiple of 8, or the next one where that loses more than a tenth."""
    nearest = 8 * math.floor(count * width / 8 + 0.5)
    return nearest + 8 if nearest < 0.9 * count * width else nearest


def blocks(name):
    """(stage, place, kernel, stride, expansion, inputs, outputs) of every block, from the stem."""
    width, depth = SCALES[name]
    inputs = channels(32, width)
    for stage, (repeats, kernel, stride, expand, outputs) in enumerate(TABLE, start=1):
        for place in range(math.ceil(repeats * depth)):
            yield (stage, place, kernel, 1 if place else stride, expand, inputs,
                   channels(outputs, width))  # fmt: skip
            inputs = channels(outputs, width)


class Torchvision:
    """Key prefixes of torchvision's `efficientnet_bN().state_dict()`."""

    stem, top, head = (
        ("features.0.0", "features.0.1"),
        ("features.8.0", "features.8.1"),
        "classifier.1",
    )

    @staticmethod
    def block(stage, place, expand):
        start = f"features.{stage}.{place}.block"
        layers = ["expand"] * (expand > 1) + ["depthwise", "se", "project"]
        names = {}
        for number, layer in enumerate(layers):
            pair = ("fc1", "fc2") if layer == "se" else ("0", "1")
            names[layer] = tuple(f"{start}.{number}.{part}" for part in pair)
        return names


class Timm:
    """Key prefixes of timm's `efficientnet_bN` and `tf_efficientnet_bN`."""

    stem, top, head = ("conv_stem", "bn1"), ("conv_head", "bn2"), "classifier"

    @staticmethod
    def block(stage, place, expand):
        start = f"blocks.{stage - 1}.{place}."
        convs = [("expand", "conv_pw"), ("depthwise", "conv_dw"), ("project", "conv_pwl")]
        if expand == 1:
            convs = [("depthwise", "conv_dw"), ("project", "conv_pw")]
        names = {
            layer: (start + conv, f"{start}bn{number}")
            for number, (layer, conv) in enumerate(convs, start=1)
        }
        names["se"] = (start + "se.conv_reduce", start + "se.conv_expand")
        return names


def random_state(name, layout, num_classes=1000, in_chans=3, seed=0):
    """A state dict as that library's network has it, of random float32 arrays."""
    rng = np.random.default_rng(seed)
    width, state = SCALES[name][0], {}

    def conv(key, outputs, inputs, kernel=1, bias=False):
        shape = (outputs, inputs, kernel, kernel)
        std = math.sqrt(2.0 / (inputs * kernel * kernel))
        state[key + ".weight"] = rng.normal(0, std, shape).astype(np.float32)
        if bias:
            state[key + ".bias"] = rng.normal(0, 0.1, outputs).astype(np.float32)

    def norm(key, size):
        state[key + ".weight"] = rng.uniform(0.8, 1.2, size).astype(np.float32)
        state[key + ".bias"] = rng.normal(0, 0.1, size).astype(np.float32)
        state[key + ".running_mean"] = rng.normal(0, 0.1, size).astype(np.float32)
        state[key + ".running_var"] = rng.uniform(0.5, 1.5, size).astype(np.float32)
        state[key + ".num_batches_tracked"] = np.array(7, np.int64)

    def conv_norm(keys, outputs, inputs, kernel=1):
        conv(keys[0], outputs, inputs, kernel)
        norm(keys[1], outputs)

    conv_norm(layout.stem, channels(32, width), in_chans, 3)
    for stage, place, kernel, _, expand, inputs, outputs in blocks(name):
        keys, hidden = layout.block(stage, place, expand), inputs * expand
        if expand > 1:
            conv_norm(keys["expand"], hidden, inputs)
        conv_norm(keys["depthwise"], hidden, 1, kernel)
        conv(keys["se"][0], inputs // 4, hidden, bias=True)
        conv(keys["se"][1], hidden, inputs // 4, bias=True)
        conv_norm(keys["project"], outputs, hidden)
    features = channels(1280, width)
    conv_norm(layout.top, features, outputs)
    head = rng.normal(0, 1 / math.sqrt(features), (num_classes, features))
    state[layout.head + ".weight"] = head.astype(np.float32)
    state[layout.head + ".bias"] = rng.normal(0, 0.1, num_classes).astype(np.float32)
    return state


def convolve(x, weight, stride, padding):
    """x [C, H, W], weight [O, C, k, k] or, one filter a channel, [C, 1, k, k] -> [O, H', W']."""
    kernel = weight.shape[-1]
    sides = []
    for length in x.shape[1:]:
        before = after = (kernel - 1) // 2
        if padding == "same":  # as many outputs as ceil(length / stride), the odd pixel behind
            needed = max((math.ceil(length / stride) - 1) * stride + kernel - length, 0)
            before, after = needed // 2, needed - needed // 2
        sides.append((before, after))
    x = np.pad(x, ((0, 0), *sides))
    height, width = ((length - kernel) // stride + 1 for length in x.shape[1:])
    total = 0.0
    for row in range(kernel):
        for column in range(kernel):
            part = x[
                :, row : row + stride * height : stride, column : column + stride * width : stride
            ]
            part = part[:, :height, :width]
            if weight.shape[1] == 1 and len(x) > 1:
                total = total + part * weight[:, 0, row, column][:, None, None]
            else:
                total = total + np.tensordot(weight[:, :, row, column], part, axes=1)
    return total


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def classify(state, images, name, layout, padding="symmetric", epsilon=1e-5):
    """images [B, C, H, W] -> logits [B, num_classes]; `state` is torchvision's or timm's."""
    state = {key: np.asarray(value, np.float64) for key, value in state.items()}

    def conv_norm(x, keys, stride=1, swish=True):
        conv, norm = keys
        x = convolve(x, state[conv + ".weight"], stride, padding)
        mean, var, scale, shift = (
            state[f"{norm}.{kind}"][:, None, None]
            for kind in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean) / np.sqrt(var + epsilon) * scale + shift
        return x * sigmoid(x) if swish else x

    def excite(x, keys):
        z = x.mean((1, 2))
        for number, key in enumerate(keys):
            z = state[key + ".weight"][:, :, 0, 0] @ z + state[key + ".bias"]
            z = sigmoid(z) * (z if number == 0 else 1.0)
        return x * z[:, None, None]

    logits = []
    for image in np.asarray(images, np.float64):
        x = conv_norm(image, layout.stem, stride=2)
        for stage, place, _, stride, expand, inputs, outputs in blocks(name):
            keys = layout.block(stage, place, expand)
            y = conv_norm(x, keys["expand"]) if expand > 1 else x
            y = excite(conv_norm(y, keys["depthwise"], stride), keys["se"])
            y = conv_norm(y, keys["project"], swish=False)
            x = x + y if stride == 1 and inputs == outputs else y
        pooled = conv_norm(x, layout.top).mean((1, 2))
        logits.append(state[layout.head + ".weight"] @ pooled + state[layout.head + ".bias"])
    return np.array(logits)
