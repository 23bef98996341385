"""EfficientNet weights of torchvision and timm, under this library's keys and in Paddle's layout.

A state dict does not say how its network pads and normalises. Its logits are reproduced with:

| weights                             | arguments of `efficientnet_bN`          |
|-------------------------------------|-----------------------------------------|
| torchvision `efficientnet_b0..b7`   | none: its values are the defaults       |
| timm `efficientnet_b0..b4`          | none                                    |
| timm `efficientnet_b5..b7`          | `bn_epsilon=1e-5`                       |
| timm `tf_efficientnet_b0..b7*`      | `bn_epsilon=1e-3, padding="same"`       |

Not taken: EfficientNetV2, EdgeTPU and Lite variants (other blocks), Keras's and TensorFlow's own
files (HDF5, checkpoints).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from passl_mae.models.efficientnet import EfficientNet

_NORM = {
    "weight": "weight", "bias": "bias", "running_mean": "_mean", "running_var": "_variance",
}  # fmt: skip
_COUNTER = "num_batches_tracked"  # PyTorch's count of batches, which Paddle does not keep
_OWN = re.compile(r"features\.\d+\.(conv|norm|\d+\.(expand|depthwise|se|project))\.|head\.")

# Per layout: layers outside the blocks; the pattern of a block's key; layers of a block that does
# not expand (stage 1), and of one that does. Stages count from 1.
_TORCHVISION = (
    {
        "features.0.0": "features.0.conv", "features.0.1": "features.0.norm",
        "features.8.0": "features.8.conv", "features.8.1": "features.8.norm",
        "classifier.1": "head",
    },
    re.compile(r"features\.(\d+)\.(\d+)\.block\.(.+)"),
    0,
    {
        "0.0": "depthwise.conv", "0.1": "depthwise.norm",
        "1.fc1": "se.reduce", "1.fc2": "se.expand",
        "2.0": "project.conv", "2.1": "project.norm",
    },
    {
        "0.0": "expand.conv", "0.1": "expand.norm",
        "1.0": "depthwise.conv", "1.1": "depthwise.norm",
        "2.fc1": "se.reduce", "2.fc2": "se.expand",
        "3.0": "project.conv", "3.1": "project.norm",
    },
)  # fmt: skip
_TIMM = (
    {
        "conv_stem": "features.0.conv", "bn1": "features.0.norm",
        "conv_head": "features.8.conv", "bn2": "features.8.norm",
        "classifier": "head",
    },
    re.compile(r"blocks\.(\d+)\.(\d+)\.(.+)"),
    1,
    {
        "conv_dw": "depthwise.conv", "bn1": "depthwise.norm",
        "se.conv_reduce": "se.reduce", "se.conv_expand": "se.expand",
        "conv_pw": "project.conv", "bn2": "project.norm",
    },
    {
        "conv_pw": "expand.conv", "bn1": "expand.norm",
        "conv_dw": "depthwise.conv", "bn2": "depthwise.norm",
        "se.conv_reduce": "se.reduce", "se.conv_expand": "se.expand",
        "conv_pwl": "project.conv", "bn3": "project.norm",
    },
)  # fmt: skip
_LAYOUTS = {"torchvision": _TORCHVISION, "timm": _TIMM}


def layout_of_efficientnet(keys: Any) -> str | None:
    """Whose keys these are: "torchvision", "timm", "own"; None: no EfficientNet's."""
    keys = set(keys)
    if "features.0.0.weight" in keys and "features.1.0.block.0.0.weight" in keys:
        return "torchvision"
    if "conv_stem.weight" in keys and "blocks.0.0.conv_dw.weight" in keys:
        return "timm"
    if "features.0.conv.weight" in keys and any(_OWN.match(key) for key in keys):
        return "own"
    return None


def efficientnet_weights(
    state: Mapping[str, Any], *, linear: str = "torch"
) -> tuple[dict[str, Any], str]:
    """({this library's key: array}, the layout that was found), to be given to `load_into`.

    Args:
        state: of torchvision's, timm's or this library's EfficientNet.
        linear: "torch": the head's weight is [out, in], as in PyTorch's memory, and is transposed;
            "paddle": it has been already, as `load_weights` does with a `.pth`.

    Raises:
        ValueError: the keys are of no EfficientNet, or one of them is of none of its layers.
    """
    if linear not in ("torch", "paddle"):
        raise ValueError(f"linear must be 'torch' or 'paddle', got {linear!r}")
    layout = layout_of_efficientnet(state)
    if layout is None:
        shown = ", ".join(list(state)[:4]) or "nothing"
        raise ValueError(
            f"no EfficientNet in these weights, neither torchvision's, timm's nor our own: {shown}"
        )
    if layout == "own":
        return dict(state), layout
    mapped = {}
    for key, value in state.items():
        layer, _, kind = key.rpartition(".")
        if kind == _COUNTER:
            continue
        own = _own_layer(layer, layout)
        kind = _NORM.get(kind) if own and own.endswith("norm") else kind
        if own is None or kind is None:
            raise ValueError(f"{key} is of no layer of {layout}'s EfficientNet B0 to B7")
        turned = own == "head" and kind == "weight" and linear == "torch"
        mapped[f"{own}.{kind}"] = value.T if turned else value
    return mapped, layout


def _own_layer(layer: str, layout: str) -> str | None:
    outside, pattern, shift, plain, expanding = _LAYOUTS[layout]
    if layer in outside:
        return outside[layer]
    match = pattern.fullmatch(layer)
    if match is None:
        return None
    stage = int(match[1]) + shift
    own = (plain if stage == 1 else expanding).get(match[3])
    return own and f"features.{stage}.{match[2]}.{own}"


def weights_for(
    model: EfficientNet, state: Mapping[str, Any], new_head: bool, converted: bool = False
) -> tuple[dict[str, Any], str]:
    """(what `load_into` takes, a note on what was done) of a file's weights.

    Args:
        new_head: a head that does not fit the model's, of other classes say, is left out.
        converted: the head is in Paddle's layout for sure, as `load_weights` gives a `.pth`'s; else
            its bias tells, so it does not matter which library wrote a `.safetensors`.

    Raises:
        ValueError: no EfficientNet's weights, or those of another variant.
    """
    layout = layout_of_efficientnet(state)
    head = {"torchvision": "classifier.1", "timm": "classifier"}.get(layout, "head")
    weight, bias = (state.get(f"{head}.{kind}") for kind in ("weight", "bias"))
    told = weight is not None and bias is not None and weight.shape[0] == bias.shape[0]
    linear = "torch" if told and not converted else "paddle"
    state, layout = efficientnet_weights(state, linear=linear)
    own = model.state_dict()
    found, wanted = _variant(state), _variant(own)
    if found != wanted:
        raise ValueError(
            f"an EfficientNet of {found[0]} blocks and {found[1]} features, and the model has "
            f"{wanted[0]} and {wanted[1]}: set Model.name to the weights' variant"
        )
    notes = [] if layout == "own" else [f"{layout}'s names mapped"]
    in_file = {key: value for key, value in state.items() if key.startswith("head.")}
    fits = all(
        key in own and list(own[key].shape) == list(value.shape) for key, value in in_file.items()
    )
    if new_head and not fits:
        classes = len(in_file["head.bias"]) if "head.bias" in in_file else "another kind"
        notes.append(f"its head of {classes} left out (the model has {model.num_classes} classes)")
        state = {key: value for key, value in state.items() if key not in in_file}
    return state, ", ".join(notes)


def _variant(state: Mapping[str, Any]) -> tuple[int, int]:
    """(blocks, features): no two of B0 to B7 have both in common."""
    blocks = sum(key.endswith("depthwise.conv.weight") for key in state)
    top = state.get("features.8.conv.weight")
    return blocks, 0 if top is None else int(top.shape[0])
