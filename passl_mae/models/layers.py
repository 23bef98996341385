"""The building blocks of a Vision Transformer, under the names and state-dict keys of the tutorial.

Shapes: B images, C channels, L patches, N = L + 1 tokens, D embedding size, h heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Union

import paddle
import paddle.nn.functional as F
from paddle import nn

from passl_mae import runtime

Size = Union[int, "tuple[int, int]", "list[int]"]

Identity = nn.Identity


def to_pair(size: Size, name: str) -> tuple[int, int]:
    """An int or a (height, width) pair as a pair of positive ints; ValueError otherwise."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise ValueError(f"{name} must be a positive int or a (height, width) pair, got {size!r}")
    return pair


class DropPath(nn.Layer):
    """Stochastic depth (Huang et al. 2016): drops a residual branch for whole samples.

    In training each sample's branch is zeroed with probability `drop_prob` and the rest scaled by
    `1 / (1 - drop_prob)`; in evaluation, and at `drop_prob` 0 or None, the input passes through.
    """

    def __init__(self, drop_prob: float | None = None):
        super().__init__()
        self.drop_prob = float(drop_prob or 0.0)
        if not 0.0 <= self.drop_prob < 1.0:
            raise ValueError(f"drop_prob must be in [0, 1), got {drop_prob}")

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep_prob = 1.0 - self.drop_prob
        shape = [x.shape[0]] + [1] * (x.ndim - 1)
        keep = paddle.floor(paddle.rand(shape, dtype="float32") + keep_prob)  # 1 with keep_prob
        return x * (keep / keep_prob).astype(x.dtype)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob}"


class Mlp(nn.Layer):
    """Two linear layers with an activation between them; [..., in] -> [..., out]."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Callable[[], nn.Layer] = nn.GELU,
        drop: float = 0.0,
    ):
        super().__init__()
        hidden_features = in_features if hidden_features is None else hidden_features
        out_features = in_features if out_features is None else out_features
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.act = act_layer()
        self.drop1 = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden_features, out_features)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = self.drop1(self.act(self.fc1(x)))
        return self.drop2(self.fc2(x))


class PatchEmbed(nn.Layer):
    """Cuts images into patches and projects each: [B, C, H, W] -> [B, L, D].

    Patches are numbered row by row. `img_size` and `patch_size` are ints or (height, width).

    Raises:
        ValueError: the image size is not divisible by the patch size, or an input of another size.
    """

    def __init__(
        self,
        img_size: Size = 224,
        patch_size: Size = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        norm_layer: Callable[[int], nn.Layer] | None = None,
        flatten: bool = True,
    ):
        super().__init__()
        self.img_size = to_pair(img_size, "img_size")
        self.patch_size = to_pair(patch_size, "patch_size")
        (height, width), (p, q) = self.img_size, self.patch_size
        if height % p or width % q:
            raise ValueError(
                f"img_size {height}x{width} is not divisible by patch_size {p}x{q}: "
                "choose a patch_size that divides both sides"
            )
        self.in_chans = in_chans
        self.grid_size = (height // p, width // q)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.flatten = flatten
        self.proj = nn.Conv2D(
            in_chans, embed_dim, kernel_size=self.patch_size, stride=self.patch_size
        )
        self.norm = norm_layer(embed_dim) if norm_layer else Identity()

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        expected = [self.in_chans, *self.img_size]
        if list(x.shape[1:]) != expected:
            raise ValueError(
                f"the model takes images [B, {', '.join(map(str, expected))}], got {list(x.shape)}"
            )
        x = self.proj(x)  # [B, D, H/p, W/q]
        if self.flatten:
            x = x.flatten(2).transpose([0, 2, 1])  # [B, L, D]
        return self.norm(x)


class Attention(nn.Layer):
    """Multi-head self-attention (Vaswani et al. 2017, eq. 1): [B, N, D] -> [B, N, D].

    Raises:
        ValueError: `dim` is not divisible by `num_heads`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"embed_dim {dim} is not divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3, bias_attr=None if qkv_bias else False)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        tokens, dim = x.shape[1:]
        head_dim = dim // self.num_heads
        qkv = self.qkv(x).reshape([-1, tokens, 3 * self.num_heads, head_dim])  # [B, N, 3h, D/h]
        if _has_fused_attention(qkv.dtype):
            q, k, v = paddle.split(qkv, 3, axis=2)  # each [B, N, h, D/h]
            x = F.scaled_dot_product_attention(
                q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0
            )
        else:
            q, k, v = paddle.split(qkv.transpose([0, 2, 1, 3]), 3, axis=1)  # each [B, h, N, D/h]
            attn = paddle.matmul(q * self.scale, k, transpose_y=True)  # [B, h, N, N]
            attn = self.attn_drop(F.softmax(attn, axis=-1))
            x = (attn @ v).transpose([0, 2, 1, 3])  # [B, N, h, D/h]
        x = x.reshape([-1, tokens, dim])  # [B, N, D]
        return self.proj_drop(self.proj(x))


def _has_fused_attention(dtype: paddle.dtype) -> bool:
    """Whether flash attention takes this type here: half precision on Ampere or newer.

    Elsewhere paddle's scaled_dot_product_attention fails (2.6 picks flash attention whatever the
    type) or is made of the same products in a layout that costs 0 to 40 % more (on the CPU).
    """
    half = dtype in (paddle.float16, paddle.bfloat16)
    return half and runtime.on_gpu() and paddle.device.cuda.get_device_capability()[0] >= 8


class Block(nn.Layer):
    """Pre-norm transformer block (Dosovitskiy et al. 2020, eq. 2-3): [B, N, D] -> [B, N, D]."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        act_layer: Callable[[], nn.Layer] = nn.GELU,
        norm_layer: Callable[[int], nn.Layer] = nn.LayerNorm,
    ):
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = Attention(
            dim, num_heads=num_heads, qkv_bias=qkv_bias, attn_drop=attn_drop, proj_drop=drop
        )
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else Identity()
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, hidden_features=int(dim * mlp_ratio), act_layer=act_layer, drop=drop)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def init_patch_projection(proj: nn.Conv2D, like_linear: bool) -> None:
    """Initialises a patch projection in place, as the reference does.

    `like_linear`: Xavier-uniform over the weight seen as a [D, C*p*q] matrix (MAE pretraining);
    otherwise U(-1/sqrt(C*p*q), 1/sqrt(C*p*q)), the convolution default that the reference's
    classifier keeps. The bias takes the latter in both.
    """
    embed_dim, fan_in = proj.weight.shape[0], proj.weight.size // proj.weight.shape[0]
    conv_bound = fan_in**-0.5
    bound = (6.0 / (fan_in + embed_dim)) ** 0.5 if like_linear else conv_bound
    nn.initializer.Uniform(-bound, bound)(proj.weight)
    nn.initializer.Uniform(-conv_bound, conv_bound)(proj.bias)
