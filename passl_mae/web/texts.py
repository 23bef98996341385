"""All that the page says, in English and Chinese."""
# ruff: noqa: RUF001 - Chinese has its own punctuation

from __future__ import annotations

from typing import NamedTuple


class Texts(NamedTuple):
    title: str
    intro: str
    drop: str
    examples: str
    ratio: str
    ratio_info: str
    seed: str
    again: str
    original: str
    masked: str
    reconstruction: str
    pasted: str
    visible: str  # kept, length, ratio
    classes: str
    note: str
    norm_pix: str
    bad_file: str
    bad_seed: str
    last_patch: str


ENGLISH = Texts(
    title="Masked autoencoder",
    intro=(
        "Most of the picture is taken away; a network that has learned without labels paints what "
        "it thinks was there."
    ),
    drop="Your image",
    examples="or take one of these",
    ratio="Mask ratio",
    ratio_info="share of the patches that is removed",
    seed="Seed",
    again="Draw again",
    original="Original",
    masked="Masked · click a patch to cover or uncover it",
    reconstruction="Reconstruction · all that the network says",
    pasted="Reconstruction with the visible patches",
    visible="**{kept} of {length}** patches visible · mask ratio {ratio:.2f}",
    classes="The classifier takes the original for",
    note=(
        "{name}, images of {height} × {width} pixels, patches of {patch}. It was trained on "
        "removed patches only: what it says where a patch is visible means nothing, so the last "
        "picture puts the visible ones back."
    ),
    norm_pix=(
        "This model predicts patches normalised by themselves (`norm_pix_loss`): to show them, "
        "each takes **mean and contrast from the original**, which a real reconstruction would "
        "not know."
    ),
    bad_file="This file cannot be used: {reason}",
    bad_seed="The seed is a whole number from 0 to 4294967295.",
    last_patch="At least one patch has to stay visible.",
)

CHINESE = Texts(
    title="掩码自编码器",
    intro="遮住图片的大部分，由一个未用任何标签训练的网络画出它认为被遮住的内容。",
    drop="你的图片",
    examples="或选一张示例",
    ratio="掩码比例",
    ratio_info="被遮住的图块所占比例",
    seed="随机种子",
    again="换一个掩码",
    original="原图",
    masked="掩码后 · 点击图块可遮住或露出",
    reconstruction="重建 · 网络的全部输出",
    pasted="重建并贴回可见图块",
    visible="可见图块 **{kept} / {length}** · 掩码比例 {ratio:.2f}",
    classes="分类器对原图的判断",
    note=(
        "{name}，图片 {height} × {width} 像素，图块 {patch}。训练时只在被遮住的图块上计算损失，"
        "可见处的输出没有意义，因此最后一张图贴回了可见图块。"
    ),
    norm_pix=(
        "该模型预测的是各自归一化的图块（`norm_pix_loss`）：显示时每个图块的**均值和对比度取自原图**，"
        "真正的重建并不知道它们。"
    ),
    bad_file="无法使用这个文件：{reason}",
    bad_seed="种子为 0 到 4294967295 的整数。",
    last_patch="至少要保留一个可见图块。",
)

LANGUAGES = {"en": ENGLISH, "zh": CHINESE}
