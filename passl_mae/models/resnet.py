"""ResNets of paddle.vision's blocks (He et al. 2015), with a stem and widths for small images.

Shapes: B images, C channels, D features.
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.vision.models.resnet import BasicBlock, BottleneckBlock

from passl_mae.models.layers import Identity, Size, to_pair
from passl_mae.models.vit import linear_probe_head

STEMS = ("imagenet", "cifar")
_STAGES = {18: (BasicBlock, (2, 2, 2, 2)), 50: (BottleneckBlock, (3, 4, 6, 3))}


class GroupedBatchNorm2D(nn.BatchNorm2D):
    """BatchNorm over groups of the batch: with `groups` = 8, an eighth of it normalises itself.

    It stands for as many devices with a BatchNorm each, as in the official CIFAR demo of MoCo (its
    `SplitBatchNorm`): sample i belongs to group i mod `groups`, the running statistics are the
    groups' means. Evaluation, and `groups` = 1, are plain BatchNorm.

    Attributes:
        fixed: training uses the running statistics and leaves them alone, as of a frozen encoder.

    Raises:
        ValueError: in training, a batch that does not divide into the groups.
    """

    def __init__(self, num_features: int, groups: int = 1):
        super().__init__(num_features)
        if groups < 1:
            raise ValueError(f"BatchNorm needs at least 1 group, got {groups}")
        self.groups = groups
        self.fixed = False

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        training = self.training and not self.fixed
        batch, channels, height, width = x.shape
        if not training or self.groups == 1:
            return self._normalise(x, self._mean, self._variance, 1, training)
        if batch % self.groups:
            raise ValueError(
                f"a batch of {batch} does not divide into {self.groups} groups of BatchNorm"
            )
        mean, variance = (paddle.tile(s, [self.groups]) for s in (self._mean, self._variance))
        # A row of the reshaped batch holds one sample of each group.
        grouped = x.reshape([batch // self.groups, self.groups * channels, height, width])
        grouped = self._normalise(grouped, mean, variance, self.groups, True)
        with paddle.no_grad():
            for own, found in ((self._mean, mean), (self._variance, variance)):
                paddle.assign(found.reshape([self.groups, channels]).mean(axis=0), own)
        return grouped.reshape([batch, channels, height, width])

    def _normalise(self, x, mean, variance, times: int, training: bool) -> paddle.Tensor:
        weight, bias = self.weight, self.bias
        if times > 1:
            weight, bias = paddle.tile(weight, [times]), paddle.tile(bias, [times])
        return F.batch_norm(
            x, mean, variance, weight, bias,
            training=training, momentum=self._momentum, epsilon=self._epsilon,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, groups={self.groups}"


class ResNet(nn.Layer):
    """ResNet classifier; `forward_features` is what stands before its head.

    State-dict keys are those of `paddle.vision.models.ResNet`, but for the classifier, which is
    `head` here and `fc` there.

    Args:
        depth: 18 or 50.
        img_size: of the images that a run makes for it; the network takes any.
        num_classes: outputs of the head; 0 makes it an identity.
        stem: "imagenet" (7x7, stride 2, then pooling) or "cifar" (3x3, stride 1), for small images.
        width: channels of the first stage; 64 in the paper.
        bn_groups: groups of a training batch that BatchNorm works on, see `GroupedBatchNorm2D`.
        head_bn: the head is that of a linear probe, see `linear_probe_head`.

    Raises:
        ValueError: another depth or stem.
    """

    def __init__(
        self,
        depth: int = 18,
        img_size: Size = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        stem: str = "imagenet",
        width: int = 64,
        bn_groups: int = 1,
        head_bn: bool = False,
    ):
        super().__init__()
        if depth not in _STAGES:
            raise ValueError(f"a ResNet has a depth of {' or '.join(map(str, _STAGES))}: {depth}")
        if stem not in STEMS:
            raise ValueError(f"unknown stem {stem!r}: choose one of {', '.join(STEMS)}")
        self.img_size, self.in_chans = to_pair(img_size, "img_size"), in_chans
        self._groups = bn_groups
        block, blocks = _STAGES[depth]
        large = stem == "imagenet"
        self.conv1 = nn.Conv2D(
            in_chans, width, 7 if large else 3, stride=2 if large else 1,
            padding=3 if large else 1, bias_attr=False,
        )  # fmt: skip
        self.bn1 = self._norm(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2D(kernel_size=3, stride=2, padding=1) if large else Identity()
        inputs = width
        for number, count in enumerate(blocks):
            stage = self._stage(block, inputs, width << number, count, 1 if number == 0 else 2)
            setattr(self, f"layer{number + 1}", stage)
            inputs = (width << number) * block.expansion
        self.avgpool = nn.AdaptiveAvgPool2D((1, 1))
        self.num_classes, self.num_features = num_classes, inputs
        self.head = nn.Linear(inputs, num_classes) if num_classes > 0 else Identity()
        if head_bn and num_classes > 0:
            self.head = linear_probe_head(inputs, num_classes)

    def _norm(self, channels: int) -> nn.Layer:
        return GroupedBatchNorm2D(channels, self._groups)

    def _stage(self, block: type, inputs: int, planes: int, count: int, stride: int):
        outputs, downsample = planes * block.expansion, None
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2D(inputs, outputs, 1, stride=stride, bias_attr=False)
            downsample = nn.Sequential(conv, self._norm(outputs))
        layers = [block(inputs, planes, stride, downsample, norm_layer=self._norm)]
        layers += [block(outputs, planes, norm_layer=self._norm) for _ in range(count - 1)]
        return nn.Sequential(*layers)

    def forward_features(self, x: paddle.Tensor) -> paddle.Tensor:
        """[B, C, H, W] -> [B, D]: the mean over the places of the last stage."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.avgpool(x).flatten(1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """[B, C, H, W] -> logits [B, num_classes]."""
        return self.head(self.forward_features(x))


def resnet18(**kwargs) -> ResNet:
    """ResNet-18: D = 8 * width features."""
    return ResNet(18, **kwargs)


def resnet50(**kwargs) -> ResNet:
    """ResNet-50: D = 32 * width features."""
    return ResNet(50, **kwargs)
