"""The classifier that MAE pretraining is for: a Vision Transformer with global average pooling.

Shapes: B images, C channels, L patches, D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import paddle
import paddle.nn.functional as F
from paddle import nn

from passl_mae.models.layers import Block, Identity, PatchEmbed, Size, init_patch_projection


class MAE_FineTune(nn.Layer):  # noqa: N801 - the tutorial's name
    """ViT classifier: mean of the patch tokens, then `fc_norm`, then `head` (MAE appendix A.1).

    With `global_pool=False` it is `norm`, then the class token, then `head`, as in the original
    ViT; the state dict then holds `norm` instead of `fc_norm`.

    Args:
        img_size, patch_size: an int or (height, width), in pixels; any `in_chans`.
        num_classes: outputs of the head; 0 makes the head an identity (features).
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        global_pool: mean of the patch tokens (the default), or the class token.
        head_bn: the head is that of a linear probe, see `linear_probe_head`.

    Raises:
        ValueError: sizes that do not fit (image and patch, width and heads).
    """

    def __init__(
        self,
        img_size: Size = 224,
        patch_size: Size = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        embed_layer: Callable[..., nn.Layer] = PatchEmbed,
        norm_layer: Callable[[int], nn.Layer] | None = None,
        act_layer: Callable[[], nn.Layer] | None = None,
        global_pool: bool = True,
        head_bn: bool = False,
    ):
        super().__init__()
        norm_layer = norm_layer or partial(nn.LayerNorm, epsilon=1e-6)
        act_layer = act_layer or nn.GELU
        normal = nn.initializer.Normal(std=0.02)
        self.num_classes = num_classes
        self.num_features = self.embed_dim = embed_dim

        self.patch_embed = embed_layer(
            img_size=img_size, patch_size=patch_size, in_chans=in_chans, embed_dim=embed_dim
        )
        num_tokens = self.patch_embed.num_patches + 1
        self.cls_token = self.create_parameter([1, 1, embed_dim], default_initializer=normal)
        self.pos_embed = self.create_parameter(
            [1, num_tokens, embed_dim], default_initializer=normal
        )
        self.pos_drop = nn.Dropout(drop_rate)
        self.blocks = nn.LayerList(
            [
                Block(
                    embed_dim,
                    num_heads,
                    mlp_ratio,
                    qkv_bias=qkv_bias,
                    drop=drop_rate,
                    attn_drop=attn_drop_rate,
                    drop_path=drop_path_rate * i / max(depth - 1, 1),
                    act_layer=act_layer,
                    norm_layer=norm_layer,
                )
                for i in range(depth)
            ]
        )
        self.global_pool = global_pool
        if global_pool:
            self.fc_norm = norm_layer(embed_dim)
        else:
            self.norm = norm_layer(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes > 0 else Identity()
        self.initialize_weights()
        if head_bn and num_classes > 0:
            self.head = linear_probe_head(embed_dim, num_classes)

    def initialize_weights(self) -> None:
        """The reference's initialisation: N(0, 0.02) for linear weights, zeros for their biases."""
        init_patch_projection(self.patch_embed.proj, like_linear=False)
        normal, zeros = nn.initializer.Normal(std=0.02), nn.initializer.Constant(0.0)
        for layer in self.sublayers():
            if isinstance(layer, nn.Linear):
                normal(layer.weight)
                if layer.bias is not None:
                    zeros(layer.bias)

    @property
    def img_size(self) -> tuple[int, int]:
        """(height, width) of the images, in pixels."""
        return self.patch_embed.img_size

    @property
    def in_chans(self) -> int:
        return self.patch_embed.in_chans

    def forward_features(self, x: paddle.Tensor) -> paddle.Tensor:
        """[B, C, H, W] -> [B, D]: normalised mean of the patch tokens (or class token)."""
        x = self.patch_embed(x)  # [B, L, D]
        cls_token = self.cls_token.astype(x.dtype).expand([x.shape[0], -1, -1])
        x = paddle.concat([cls_token, x], axis=1) + self.pos_embed  # [B, 1 + L, D]
        x = self.pos_drop(x)
        for block in self.blocks:
            x = block(x)
        if not self.global_pool:
            return self.norm(x[:, 0, :])  # [B, D]; the norm works on each token alone
        return self.fc_norm(x[:, 1:, :].mean(axis=1))  # [B, D]

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """[B, C, H, W] -> logits [B, num_classes]."""
        return self.head(self.forward_features(x))


class PlainBatchNorm(nn.BatchNorm1D):
    """BatchNorm without scale and shift, and without paddle's warning at every training run."""

    def __init__(self, dim: int, momentum: float = 0.9, epsilon: float = 1e-6):
        super().__init__(dim, momentum, epsilon, weight_attr=False, bias_attr=False)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return F.batch_norm(
            x,
            self._mean,
            self._variance,
            training=self.training,
            momentum=self._momentum,
            epsilon=self._epsilon,
            data_format="NC",
        )


def linear_probe_head(dim: int, num_classes: int) -> nn.Sequential:
    """BatchNorm without scale and shift, then a linear layer: [B, dim] -> [B, num_classes].

    As the reference probes (MAE appendix A.1, "Linear probing"; weights from N(0, 0.01)). Several
    ranks each take the statistics of their own part of a batch, as it does.

    State-dict keys, as a classifier's head: `head.0._mean, head.0._variance, head.1.weight,
    head.1.bias`; the reference's are `head.0.running_mean, head.0.running_var, head.1.*`.
    """
    linear = nn.Linear(dim, num_classes)
    nn.initializer.Normal(std=0.01)(linear.weight)
    nn.initializer.Constant(0.0)(linear.bias)
    return nn.Sequential(PlainBatchNorm(dim), linear)


def mae_vit_t_p4(**kwargs) -> MAE_FineTune:
    """ViT-T/4 for small images (32 px unless told otherwise)."""
    preset = dict(img_size=32, patch_size=4, embed_dim=192, depth=12, num_heads=3)
    return MAE_FineTune(**{**preset, **kwargs})


def mae_vit_s_p4(**kwargs) -> MAE_FineTune:
    """ViT-S/4 for small images (32 px unless told otherwise)."""
    preset = dict(img_size=32, patch_size=4, embed_dim=384, depth=12, num_heads=6)
    return MAE_FineTune(**{**preset, **kwargs})


def mae_vit_b_p16(**kwargs) -> MAE_FineTune:
    """ViT-B/16, the reference's `vit_base_patch16`; the tutorial's finetuning model."""
    preset = dict(patch_size=16, embed_dim=768, depth=12, num_heads=12)
    return MAE_FineTune(**{**preset, **kwargs})


def mae_vit_l_p16(**kwargs) -> MAE_FineTune:
    """ViT-L/16, the reference's `vit_large_patch16`."""
    preset = dict(patch_size=16, embed_dim=1024, depth=24, num_heads=16)
    return MAE_FineTune(**{**preset, **kwargs})


def mae_vit_h_p14(**kwargs) -> MAE_FineTune:
    """ViT-H/14, the reference's `vit_huge_patch14`."""
    preset = dict(patch_size=14, embed_dim=1280, depth=32, num_heads=16)
    return MAE_FineTune(**{**preset, **kwargs})
