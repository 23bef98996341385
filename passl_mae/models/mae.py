"""Masked Autoencoder with a Vision Transformer (He et al. 2021, arXiv 2111.06377), pretraining.

Read top to bottom in the order the tensors flow: patchify, mask, encode, decode, loss.
Shapes: B images, C channels, L patches, K kept patches, D / Dd encoder / decoder width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import paddle
from paddle import nn

from passl_mae.models.layers import Block, PatchEmbed, Size, init_patch_projection
from passl_mae.models.pos_embed import get_2d_sincos_pos_embed


class MAE_Pretrain(nn.Layer):  # noqa: N801 - the tutorial's name
    """MAE with its encoder and decoder (paper sec. 3).

    Args:
        img_size, patch_size: an int or (height, width), in pixels; any `in_chans`.
        embed_dim, depth, num_heads: the encoder; decoder_*: the decoder.
        norm_pix_loss: the target of each patch is normalised by its own mean and standard
            deviation (paper sec. 3, "Reconstruction target").

    Raises:
        ValueError: sizes that do not fit (image and patch, width and heads).
    """

    def __init__(
        self,
        img_size: Size = 224,
        patch_size: Size = 16,
        in_chans: int = 3,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        mlp_ratio: float = 4.0,
        norm_layer: Callable[[int], nn.Layer] = nn.LayerNorm,
        norm_pix_loss: bool = False,
    ):
        super().__init__()
        normal = nn.initializer.Normal(std=0.02)
        fixed = paddle.ParamAttr(trainable=False)

        # Encoder
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        num_tokens = self.patch_embed.num_patches + 1
        self.cls_token = self.create_parameter([1, 1, embed_dim], default_initializer=normal)
        self.pos_embed = self.create_parameter([1, num_tokens, embed_dim], attr=fixed)
        self.blocks = nn.LayerList(
            [
                Block(embed_dim, num_heads, mlp_ratio, qkv_bias=True, norm_layer=norm_layer)
                for _ in range(depth)
            ]
        )
        self.norm = norm_layer(embed_dim)

        # Decoder
        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
        self.mask_token = self.create_parameter(
            [1, 1, decoder_embed_dim], default_initializer=normal
        )
        self.decoder_pos_embed = self.create_parameter(
            [1, num_tokens, decoder_embed_dim], attr=fixed
        )
        self.decoder_blocks = nn.LayerList(
            [
                Block(
                    decoder_embed_dim,
                    decoder_num_heads,
                    mlp_ratio,
                    qkv_bias=True,
                    norm_layer=norm_layer,
                )
                for _ in range(decoder_depth)
            ]
        )
        self.decoder_norm = norm_layer(decoder_embed_dim)
        p, q = self.patch_embed.patch_size
        self.decoder_pred = nn.Linear(decoder_embed_dim, p * q * in_chans)

        self.norm_pix_loss = norm_pix_loss
        self.initialize_weights()

    def initialize_weights(self) -> None:
        """The reference's initialisation, on the parameters themselves."""
        for table in (self.pos_embed, self.decoder_pos_embed):
            values = get_2d_sincos_pos_embed(
                table.shape[-1], self.patch_embed.grid_size, cls_token=True
            )
            table.set_value(values[None].astype("float32"))
        init_patch_projection(self.patch_embed.proj, like_linear=True)
        xavier, zeros = nn.initializer.XavierUniform(), nn.initializer.Constant(0.0)
        for layer in self.sublayers():
            if isinstance(layer, nn.Linear):
                xavier(layer.weight)
                if layer.bias is not None:
                    zeros(layer.bias)

    @property
    def img_size(self) -> tuple[int, int]:
        """(height, width) of the images, in pixels."""
        return self.patch_embed.img_size

    @property
    def in_chans(self) -> int:
        return self.patch_embed.in_chans

    def patchify(self, imgs: paddle.Tensor) -> paddle.Tensor:
        """[B, C, H, W] -> [B, L, p*q*C]; inside a patch: row, column, channel."""
        channels = imgs.shape[1]
        (rows, cols), (p, q) = self.patch_embed.grid_size, self.patch_embed.patch_size
        if list(imgs.shape[2:]) != [rows * p, cols * q]:
            raise ValueError(
                f"images of {imgs.shape[2]}x{imgs.shape[3]} do not fit this model, which was "
                f"built for {rows * p}x{cols * q}"
            )
        x = imgs.reshape([-1, channels, rows, p, cols, q])
        x = x.transpose([0, 2, 4, 3, 5, 1])  # [B, rows, cols, p, q, C]
        return x.reshape([-1, rows * cols, p * q * channels])

    def unpatchify(self, x: paddle.Tensor) -> paddle.Tensor:
        """[B, L, p*q*C] -> [B, C, H, W], the inverse of `patchify`."""
        (rows, cols), (p, q) = self.patch_embed.grid_size, self.patch_embed.patch_size
        if x.shape[1] != rows * cols or x.shape[2] % (p * q):
            raise ValueError(
                f"patches {list(x.shape)} do not fit a grid of {rows}x{cols} patches of {p}x{q}"
            )
        channels = x.shape[2] // (p * q)
        x = x.reshape([-1, rows, cols, p, q, channels])
        x = x.transpose([0, 5, 1, 3, 2, 4])  # [B, C, rows, p, cols, q]
        return x.reshape([-1, channels, rows * p, cols * q])

    def random_masking(
        self, x: paddle.Tensor, mask_ratio: float, noise: paddle.Tensor | None = None
    ) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        """Keeps the patches with the smallest noise, per sample (paper sec. 3, "Masking").

        Args:
            x: [B, L, D] patch embeddings.
            mask_ratio: share of the patches to remove, in [0, 1).
            noise: [B, L]; drawn uniformly from [0, 1) if not given.

        Returns:
            the kept patches [B, K, D] with K = int(L * (1 - mask_ratio)); mask [B, L] (float32,
            1 = removed); ids_restore [B, L], which puts (kept, removed) back in order.

        Raises:
            ValueError: a mask_ratio outside [0, 1) or one that keeps no patch; noise of another
                shape.
        """
        length = x.shape[1]
        len_keep = num_kept_patches(length, mask_ratio)
        if noise is None:
            noise = paddle.rand([x.shape[0], length])
        elif noise.ndim != 2 or noise.shape[1] != length:
            raise ValueError(f"noise must be [B, {length}], got {list(noise.shape)}")
        elif paddle.in_dynamic_mode() and noise.shape[0] != x.shape[0]:  # unknown when exporting
            raise ValueError(f"noise must be {[x.shape[0], length]}, got {list(noise.shape)}")
        ids_shuffle = paddle.argsort(noise, axis=1)  # small noise is kept
        ids_restore = paddle.argsort(ids_shuffle, axis=1)
        x_kept = gather_tokens(x, ids_shuffle[:, :len_keep])  # [B, K, D]
        mask = (ids_restore >= len_keep).astype("float32")  # [B, L]
        return x_kept, mask, ids_restore

    def forward_encoder(
        self, x: paddle.Tensor, mask_ratio: float, noise: paddle.Tensor | None = None
    ) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        """Images [B, C, H, W] -> latent [B, 1 + K, D] (class token first), mask, ids_restore."""
        x = self.patch_embed(x) + self.pos_embed[:, 1:, :]  # [B, L, D]
        x, mask, ids_restore = self.random_masking(x, mask_ratio, noise)  # [B, K, D]
        cls_token = (self.cls_token + self.pos_embed[:, :1, :]).astype(x.dtype)
        x = paddle.concat([cls_token.expand([x.shape[0], -1, -1]), x], axis=1)  # [B, 1 + K, D]
        for block in self.blocks:
            x = block(x)
        return self.norm(x), mask, ids_restore

    def forward_decoder(self, x: paddle.Tensor, ids_restore: paddle.Tensor) -> paddle.Tensor:
        """Latent [B, 1 + K, D] -> predicted patches [B, L, p*q*C]."""
        x = self.decoder_embed(x)  # [B, 1 + K, Dd]
        batch, num_kept, length = x.shape[0], x.shape[1] - 1, ids_restore.shape[1]
        patches = x[:, 1:, :]  # [B, K, Dd]
        if num_kept < length:  # PaddlePaddle 2.6 cannot expand to a size of 0
            mask_tokens = self.mask_token.astype(x.dtype).expand([batch, length - num_kept, -1])
            patches = paddle.concat([patches, mask_tokens], axis=1)  # [B, L, Dd], shuffled
        patches = gather_tokens(patches, ids_restore)  # [B, L, Dd], in order
        x = paddle.concat([x[:, :1, :], patches], axis=1)  # [B, 1 + L, Dd]
        x = x + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        x = self.decoder_pred(self.decoder_norm(x))  # [B, 1 + L, p*q*C]
        return x[:, 1:, :]

    def forward_loss(
        self, imgs: paddle.Tensor, pred: paddle.Tensor, mask: paddle.Tensor
    ) -> paddle.Tensor:
        """Mean squared error over the removed patches, in float32 whatever the AMP level.

        Where nothing was removed (`mask_ratio` 0) it is the mean over all patches: a plain
        autoencoder, instead of the reference's 0/0.
        """
        with paddle.amp.auto_cast(enable=False):
            target = self.patchify(imgs.astype("float32"))  # [B, L, p*q*C]
            if self.norm_pix_loss:
                mean, std = patch_statistics(target)
                target = (target - mean) / std
            loss = ((pred.astype("float32") - target) ** 2).mean(axis=-1)  # [B, L]
            weight = paddle.where(mask.sum() > 0, mask, paddle.ones_like(mask))
            return (loss * weight).sum() / weight.sum()

    def forward(
        self,
        imgs: paddle.Tensor,
        mask_ratio: float = 0.75,
        noise: paddle.Tensor | None = None,
    ) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        """[B, C, H, W] -> (loss, pred [B, L, p*q*C], mask [B, L], 1 = removed)."""
        latent, mask, ids_restore = self.forward_encoder(imgs, mask_ratio, noise)
        pred = self.forward_decoder(latent, ids_restore)
        return self.forward_loss(imgs, pred, mask), pred, mask


def patch_statistics(patches: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
    """(mean, standard deviation) of each patch [B, L, p*q*C], both [B, L, 1] (paper sec. 3).

    The variance is unbiased, plus 1e-6, as in the reference.
    """
    mean = patches.mean(axis=-1, keepdim=True)
    # paddle's own var warns of a type promotion inside it
    var = ((patches - mean) ** 2).sum(axis=-1, keepdim=True) / float(patches.shape[-1] - 1)
    return mean, (var + 1e-6) ** 0.5


def num_kept_patches(length: int, mask_ratio: float) -> int:
    """How many of `length` patches stay visible, as the reference rounds: down.

    Raises:
        ValueError: a `mask_ratio` outside [0, 1), or one that keeps no patch.
    """
    if not 0.0 <= mask_ratio < 1.0:
        raise ValueError(f"mask_ratio must be in [0, 1), got {mask_ratio}")
    len_keep = int(length * (1 - mask_ratio))
    if len_keep == 0:
        raise ValueError(f"mask_ratio {mask_ratio} keeps none of the {length} patches: lower it")
    return len_keep


def gather_tokens(x: paddle.Tensor, ids: paddle.Tensor) -> paddle.Tensor:
    """Picks tokens per sample: x [B, L, D], ids [B, K] -> [B, K, D]."""
    batch, length, dim = x.shape
    rows = ids + paddle.arange(batch, dtype=ids.dtype).unsqueeze(1) * length  # [B, K]
    return paddle.gather(x.reshape([-1, dim]), rows.flatten()).reshape([batch, -1, dim])


def _mae(preset: dict, overrides: dict) -> MAE_Pretrain:
    norm_layer = partial(nn.LayerNorm, epsilon=1e-6)
    return MAE_Pretrain(**{"mlp_ratio": 4.0, "norm_layer": norm_layer, **preset, **overrides})


def mae_vit_t_p4_dec128d2b(**kwargs) -> MAE_Pretrain:
    """ViT-T/4 for small images (32 px unless told otherwise), decoder 128-d x 2 blocks."""
    preset = dict(img_size=32, patch_size=4, embed_dim=192, depth=12, num_heads=3)
    decoder = dict(decoder_embed_dim=128, decoder_depth=2, decoder_num_heads=4)
    return _mae({**preset, **decoder}, kwargs)


def mae_vit_s_p4_dec256d4b(**kwargs) -> MAE_Pretrain:
    """ViT-S/4 for small images (32 px unless told otherwise), decoder 256-d x 4 blocks."""
    preset = dict(img_size=32, patch_size=4, embed_dim=384, depth=12, num_heads=6)
    decoder = dict(decoder_embed_dim=256, decoder_depth=4, decoder_num_heads=8)
    return _mae({**preset, **decoder}, kwargs)


_DEC512D8B = dict(decoder_embed_dim=512, decoder_depth=8, decoder_num_heads=16)


def mae_vit_b_p16_dec512d8b(**kwargs) -> MAE_Pretrain:
    """ViT-B/16, the reference's `mae_vit_base_patch16`; the tutorial's pretraining model."""
    preset = dict(patch_size=16, embed_dim=768, depth=12, num_heads=12)
    return _mae({**preset, **_DEC512D8B}, kwargs)


def mae_vit_l_p16_dec512d8b(**kwargs) -> MAE_Pretrain:
    """ViT-L/16, the reference's `mae_vit_large_patch16`."""
    preset = dict(patch_size=16, embed_dim=1024, depth=24, num_heads=16)
    return _mae({**preset, **_DEC512D8B}, kwargs)


def mae_vit_h_p14_dec512d8b(**kwargs) -> MAE_Pretrain:
    """ViT-H/14, the reference's `mae_vit_huge_patch14`."""
    preset = dict(patch_size=14, embed_dim=1280, depth=32, num_heads=16)
    return _mae({**preset, **_DEC512D8B}, kwargs)
