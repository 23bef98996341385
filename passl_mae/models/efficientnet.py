"""EfficientNet B0 to B7 (Tan & Le 2019, arXiv 1905.11946).

Shapes: B images, C channels, D features.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import paddle
import paddle.nn.functional as F
from paddle import nn

from passl_mae.models.layers import DropPath, Identity, Size, to_pair
from passl_mae.models.vit import linear_probe_head

PADDINGS = ("symmetric", "same")


class Stage(NamedTuple):
    """A row of the paper's table 1: `repeats` blocks, of which the first has the stride."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    inputs: int
    outputs: int


STEM, TOP, SQUEEZE = 32, 1280, 0.25  # channels of the first and last convolution; share of SE
STAGES = (
    Stage(1, 3, 1, 1, 32, 16),
    Stage(2, 3, 2, 6, 16, 24),
    Stage(2, 5, 2, 6, 24, 40),
    Stage(3, 3, 2, 6, 40, 80),
    Stage(3, 5, 1, 6, 80, 112),
    Stage(4, 5, 2, 6, 112, 192),
    Stage(1, 3, 1, 6, 192, 320),
)


def round_filters(filters: int, width: float, divisor: int = 8) -> int:
    """`filters * width` to the next multiple of `divisor`, but never more than 10 % below it.

    Raises:
        ValueError: a width that is not positive.
    """
    if width <= 0:
        raise ValueError(f"width_coefficient must be positive, got {width}")
    scaled = filters * width
    rounded = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * scaled else rounded


def round_repeats(repeats: int, depth: float) -> int:
    """`repeats * depth`, rounded up.

    Raises:
        ValueError: a depth that is not positive.
    """
    if depth <= 0:
        raise ValueError(f"depth_coefficient must be positive, got {depth}")
    return math.ceil(repeats * depth)


class BatchNormOptions(NamedTuple):
    """epsilon; momentum in Paddle's sense, the share of the old statistics that is kept."""

    epsilon: float
    momentum: float


class ConvNorm(nn.Layer):
    """Convolution without bias, BatchNorm, and swish unless told otherwise.

    [B, inputs, H, W] -> [B, outputs, ceil(H / stride), ceil(W / stride)], for either padding:
    "symmetric" pads (kernel - 1) // 2 on each side, as PyTorch's models do; "same" as TensorFlow's,
    which with a stride of 2 may pad a pixel more at the bottom and on the right.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        norm: BatchNormOptions,
        padding: str,
        stride: int = 1,
        groups: int = 1,
        swish: bool = True,
    ):
        super().__init__()
        self.conv = nn.Conv2D(
            inputs, outputs, kernel, stride, groups=groups, bias_attr=False,
            padding="SAME" if padding == "same" else (kernel - 1) // 2,
        )  # fmt: skip
        self.norm = nn.BatchNorm2D(outputs, momentum=norm.momentum, epsilon=norm.epsilon)
        # Not Silu: PaddlePaddle (2.6, 3.3) gives NaN for its gradient where the input is below -88.
        self.act = nn.Swish() if swish else Identity()

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.act(self.norm(self.conv(x)))


class SqueezeExcite(nn.Layer):
    """Channels weighed by a gate that sees the mean of each (Hu et al. 2017): [B, C, H, W] same."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.reduce = nn.Conv2D(channels, squeezed, 1)
        self.expand = nn.Conv2D(squeezed, channels, 1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        # One axis: the gradient of a mean over two takes paddle's CPU build thirty times as long.
        gate = x.flatten(2).mean(axis=2).unsqueeze([2, 3])  # [B, C, 1, 1]
        return x * F.sigmoid(self.expand(F.swish(self.reduce(gate))))


class MBConv(nn.Layer):
    """Inverted bottleneck (MobileNetV2) with squeeze-and-excitation.

    [B, inputs, H, W] -> [B, outputs, ceil(H / stride), ceil(W / stride)]; where nothing changes its
    shape the input is added, with drop-connect: whole samples lose the branch (`DropPath`).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        expand: int,
        norm: BatchNormOptions,
        padding: str,
        drop_path: float,
    ):
        super().__init__()
        hidden = inputs * expand
        self.expand = ConvNorm(inputs, hidden, 1, norm, padding) if expand > 1 else Identity()
        self.depthwise = ConvNorm(hidden, hidden, kernel, norm, padding, stride, groups=hidden)
        self.se = SqueezeExcite(hidden, max(1, int(inputs * SQUEEZE)))
        self.project = ConvNorm(hidden, outputs, 1, norm, padding, swish=False)
        self.adds = stride == 1 and inputs == outputs
        self.drop_path = DropPath(drop_path)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        y = self.depthwise(self.expand(x))  # [B, inputs * expand, H', W']
        y = self.project(self.se(y))  # [B, outputs, H', W']
        return x + self.drop_path(y) if self.adds else y


class EfficientNet(nn.Layer):
    """EfficientNet classifier: `features`, the mean over the places, dropout, `head`.

    State-dict keys: `features.0.*` (stem), `features.S.I.{expand,depthwise,project}.*` and
    `features.S.I.se.{reduce,expand}.*` (block I of stage S = 1..7), `features.8.*` (top), each of
    `conv.weight, norm.weight, norm.bias, norm._mean, norm._variance`; `head.weight, head.bias`.
    `efficientnet_weights` takes torchvision's and timm's.

    Args:
        width_coefficient, depth_coefficient: compound scaling of channels and of blocks a stage.
        img_size: of the images that a run makes for it; the network takes any.
        num_classes: outputs of the head; 0 makes it an identity (features).
        drop_rate: dropout before the head.
        drop_path_rate: drop-connect; that of block i of n is `drop_path_rate * i / n`.
        bn_epsilon, bn_momentum: of BatchNorm; the paper's code has 1e-3 and 0.99.
        padding: "symmetric" or "same", see `ConvNorm`; the paper's code has "same".
        head_bn: the head is that of a linear probe, see `linear_probe_head`.

    Raises:
        ValueError: a coefficient, rate or padding that cannot be.
    """

    def __init__(
        self,
        width_coefficient: float = 1.0,
        depth_coefficient: float = 1.0,
        img_size: Size = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        drop_rate: float = 0.2,
        drop_path_rate: float = 0.2,
        bn_epsilon: float = 1e-5,
        bn_momentum: float = 0.9,
        padding: str = "symmetric",
        head_bn: bool = False,
    ):
        super().__init__()
        if padding not in PADDINGS:
            raise ValueError(f"unknown padding {padding!r}: choose one of {', '.join(PADDINGS)}")
        if in_chans < 1 or num_classes < 0:
            raise ValueError(
                f"in_chans must be at least 1 and num_classes at least 0, got {in_chans} and "
                f"{num_classes}"
            )
        if not 0.0 <= drop_rate < 1.0 or not 0.0 <= drop_path_rate < 1.0:
            raise ValueError(
                f"drop_rate and drop_path_rate must be in [0, 1), got {drop_rate} and "
                f"{drop_path_rate}"
            )
        self.img_size, self.in_chans = to_pair(img_size, "img_size"), in_chans
        self.num_classes = num_classes
        norm = BatchNormOptions(bn_epsilon, bn_momentum)
        repeats = [round_repeats(stage.repeats, depth_coefficient) for stage in STAGES]
        inputs = round_filters(STEM, width_coefficient)
        layers = [ConvNorm(in_chans, inputs, 3, norm, padding, stride=2)]
        number = 0
        for stage, count in zip(STAGES, repeats):
            outputs = round_filters(stage.outputs, width_coefficient)
            blocks = []
            for i in range(count):
                shape = (inputs, outputs, stage.kernel, stage.stride if i == 0 else 1, stage.expand)
                rate = drop_path_rate * number / sum(repeats)
                blocks.append(MBConv(*shape, norm, padding, rate))
                inputs, number = outputs, number + 1
            layers.append(nn.Sequential(*blocks))
        self.num_features = round_filters(TOP, width_coefficient)
        layers.append(ConvNorm(inputs, self.num_features, 1, norm, padding))
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(drop_rate)
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else Identity()
        self.initialize_weights()
        if head_bn and num_classes:
            self.head = linear_probe_head(self.num_features, num_classes)

    @property
    def classifier(self) -> nn.Layer:
        """What stands behind `features`: the `head`."""
        return self.head

    def initialize_weights(self) -> None:
        """The official code's: N(0, sqrt(2 / fan_out)) for convolutions, U(+-1/sqrt(classes)) for
        the head; that of 1000 classes where there are fewer: with ten, the loss would begin at 5.
        """
        for layer in self.features.sublayers():
            if isinstance(layer, nn.Conv2D):
                outputs, _, height, width = layer.weight.shape
                # A depthwise filter has one output in TensorFlow's count.
                fan_out = height * width * outputs // layer._groups
                nn.initializer.Normal(std=math.sqrt(2.0 / fan_out))(layer.weight)
                if layer.bias is not None:
                    nn.initializer.Constant(0.0)(layer.bias)
        if self.num_classes:
            bound = 1.0 / math.sqrt(max(self.num_classes, 1000))
            nn.initializer.Uniform(-bound, bound)(self.head.weight)
            nn.initializer.Constant(0.0)(self.head.bias)

    def forward_features(self, x: paddle.Tensor) -> paddle.Tensor:
        """[B, C, H, W] -> [B, D]: the mean over the places of the last feature map."""
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise ValueError(
                f"the model takes images [B, {self.in_chans}, H, W], got {list(x.shape)}"
            )
        x = self.features(x)  # [B, D, ceil(H / 32), ceil(W / 32)]
        return x.flatten(2).mean(axis=2)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """[B, C, H, W] -> logits [B, num_classes]."""
        return self.head(self.dropout(self.forward_features(x)))


def _preset(kwargs: dict, width: float, depth: float, size: int, drop: float) -> EfficientNet:
    large = width > 1.5  # B5 to B7: torchvision's were trained with other BatchNorms
    preset = dict(
        width_coefficient=width, depth_coefficient=depth, img_size=size, drop_rate=drop,
        bn_epsilon=1e-3 if large else 1e-5, bn_momentum=0.99 if large else 0.9,
    )  # fmt: skip
    return EfficientNet(**{**preset, **kwargs})


def efficientnet_b0(**kwargs) -> EfficientNet:
    """5.3 million parameters with 1000 classes, 224 pixels."""
    return _preset(kwargs, 1.0, 1.0, 224, 0.2)


def efficientnet_b1(**kwargs) -> EfficientNet:
    """7.8 million parameters with 1000 classes, 240 pixels."""
    return _preset(kwargs, 1.0, 1.1, 240, 0.2)


def efficientnet_b2(**kwargs) -> EfficientNet:
    """9.1 million parameters with 1000 classes, 260 pixels."""
    return _preset(kwargs, 1.1, 1.2, 260, 0.3)


def efficientnet_b3(**kwargs) -> EfficientNet:
    """12.2 million parameters with 1000 classes, 300 pixels."""
    return _preset(kwargs, 1.2, 1.4, 300, 0.3)


def efficientnet_b4(**kwargs) -> EfficientNet:
    """19.3 million parameters with 1000 classes, 380 pixels."""
    return _preset(kwargs, 1.4, 1.8, 380, 0.4)


def efficientnet_b5(**kwargs) -> EfficientNet:
    """30.4 million parameters with 1000 classes, 456 pixels."""
    return _preset(kwargs, 1.6, 2.2, 456, 0.4)


def efficientnet_b6(**kwargs) -> EfficientNet:
    """43.0 million parameters with 1000 classes, 528 pixels."""
    return _preset(kwargs, 1.8, 2.6, 528, 0.5)


def efficientnet_b7(**kwargs) -> EfficientNet:
    """66.3 million parameters with 1000 classes, 600 pixels."""
    return _preset(kwargs, 2.0, 3.1, 600, 0.5)
