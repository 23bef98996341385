"""MAE in plain PyTorch: what the library's speed is compared with. Needs torch and numpy alone.

Written from the paper (He et al. 2021, arXiv 2111.06377) with PyTorch's own fast parts (fused
attention, fused AdamW), under the reference's state-dict keys, so that weights can be exchanged.

    python benchmarks/torch_mae.py --model '{"embed_dim": 192, ...}' --batch 128 --steps 20

prints one line of JSON: seconds of each step, and the loss on given weights, images and noise.
"""

from __future__ import annotations

import argparse
import json
import os
import time

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, dim))


class Mlp(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, patch: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class MAE(nn.Module):
    def __init__(
        self, img_size, patch_size, embed_dim, depth, num_heads,
        decoder_embed_dim, decoder_depth, decoder_num_heads,
    ):  # fmt: skip
        super().__init__()
        self.patch = patch_size
        tokens = (img_size // patch_size) ** 2 + 1
        self.patch_embed = PatchEmbed(patch_size, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, embed_dim), requires_grad=False)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
        self.decoder_pos_embed = nn.Parameter(
            torch.zeros(1, tokens, decoder_embed_dim), requires_grad=False
        )
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_embed_dim, decoder_num_heads) for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_embed_dim, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_embed_dim, patch_size**2 * 3)

    def patchify(self, imgs: torch.Tensor) -> torch.Tensor:
        batch, side, p = len(imgs), imgs.shape[2] // self.patch, self.patch
        x = imgs.reshape(batch, 3, side, p, side, p)
        return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, side * side, p * p * 3)

    def forward(self, imgs: torch.Tensor, mask_ratio: float, noise: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(imgs) + self.pos_embed[:, 1:]
        batch, length, dim = x.shape
        keep = int(length * (1 - mask_ratio))
        shuffle = noise.argsort(1)
        restore = shuffle.argsort(1)
        x = x.gather(1, shuffle[:, :keep, None].expand(-1, -1, dim))
        mask = (restore >= keep).float()
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(batch, -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        x = self.decoder_embed(self.norm(x))
        patches = torch.cat([x[:, 1:], self.mask_token.expand(batch, length - keep, -1)], 1)
        patches = patches.gather(1, restore[:, :, None].expand(-1, -1, x.shape[2]))
        x = torch.cat([x[:, :1], patches], 1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        pred = self.decoder_pred(self.decoder_norm(x))[:, 1:]
        loss = ((pred - self.patchify(imgs)) ** 2).mean(-1)
        return (loss * mask).sum() / mask.sum()


class Classifier(nn.Module):
    def __init__(self, img_size, patch_size, embed_dim, depth, num_heads, num_classes):
        super().__init__()
        tokens = (img_size // patch_size) ** 2 + 1
        self.patch_embed = PatchEmbed(patch_size, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, embed_dim), requires_grad=False)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads) for _ in range(depth))
        self.fc_norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Linear(embed_dim, num_classes)

    def forward(self, imgs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(imgs)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.fc_norm(x[:, 1:].mean(1))), labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="JSON of the model's arguments")
    parser.add_argument("--batch", type=int, required=True, help="images over all processes")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--given", help=".npz of images, noise and weights: print the loss on them")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        dist.init_process_group("gloo")
    arguments = json.loads(args.model)
    torch.manual_seed(0)
    model = Classifier(**arguments) if "num_classes" in arguments else MAE(**arguments)
    if args.given:
        print(json.dumps({"loss": loss_on(model, args.given)}))
        return
    seconds = train(model, args.batch // ranks, args.steps, arguments["img_size"], ranks)
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps({"seconds": seconds, "version": torch.__version__}))


def loss_on(model: nn.Module, file: str) -> float:
    given = dict(np.load(file))
    images, noise = torch.tensor(given.pop("images")), torch.tensor(given.pop("noise"))
    model.load_state_dict({name: torch.tensor(value) for name, value in given.items()})
    with torch.no_grad():
        return model(images, 0.75, noise).item()


def train(model: nn.Module, batch: int, steps: int, size: int, ranks: int) -> list[float]:
    """Seconds of each step on random images that are there already: no input pipeline."""
    wrapped = nn.parallel.DistributedDataParallel(model) if ranks > 1 else model
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, 1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    images = torch.randn(batch, 3, size, size)
    labels = torch.randint(0, 10, (batch,))
    patches = 0 if isinstance(model, Classifier) else model.pos_embed.shape[1] - 1
    seconds = []
    for _ in range(steps):
        begin = time.perf_counter()
        if patches:
            loss = wrapped(images, 0.75, torch.rand(batch, patches))
        else:
            loss = wrapped(images, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - begin)
    return seconds


if __name__ == "__main__":
    main()
