"""Arrays in, matplotlib figure out. Figures are made without pyplot: no window, no global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from passl_mae.files import replacing

PANEL_PIXELS = 96  # drawn width of one image; small ones are enlarged by a whole factor
GAP = 0.04  # between panels, and
GROUP_GAP = 0.16  # between the groups of a mask ratio, of a panel's width


def reconstruction_figure(
    original: np.ndarray,
    panels: Mapping[float, Mapping[str, np.ndarray]],
    note: str = "",
) -> Figure:
    """One row an image: the original, then the panels of each mask ratio.

    Args:
        original: [N, H, W, C], 0..1; C of 3 is drawn in colour, else channel 0 in grey.
        panels: mask ratio -> {title: [N, H, W, C]}, drawn in the order given.
        note: a line below the figure.
    """
    width = original.shape[2]
    scale = max(1, round(PANEL_PIXELS / width))
    panel = width * scale
    gap, group_gap = round(GAP * panel), round(GROUP_GAP * panel)
    columns, titles, headings = [_column(original, scale, gap)], [(panel / 2, "original")], []
    edge = panel
    for ratio, titled in panels.items():
        first = edge + group_gap
        for number, (title, images) in enumerate(titled.items()):
            space = gap if number else group_gap
            columns.append(_column(images, scale, gap, left=space))
            titles.append((edge + space + panel / 2, title))
            edge += space + panel
        headings.append(((first + edge) / 2, f"mask ratio {ratio:g}"))
    canvas = np.concatenate(columns, axis=1)  # [rows, edge, 3]

    top, bottom, side = 52, 26 if note else 8, 8  # margins in pixels
    size = (canvas.shape[1] + 2 * side, canvas.shape[0] + top + bottom)
    figure = Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100)
    FigureCanvasAgg(figure)
    box = (side / size[0], bottom / size[1], canvas.shape[1] / size[0], canvas.shape[0] / size[1])
    axes = figure.add_axes(box)
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    for x, title in titles:
        axes.text(x, -6, title, ha="center", va="bottom", fontsize=8)
    for x, heading in headings:
        axes.text(x, -26, heading, ha="center", va="bottom", fontsize=9, weight="bold")
    if note:
        figure.text(0.5, 12 / size[1], note, ha="center", va="center", fontsize=7)
    return figure


def _column(images: np.ndarray, scale: int, gap: int, left: int = 0) -> np.ndarray:
    """[N, H, W, C] below one another, enlarged, with white between them and to the left."""
    if images.shape[-1] != 3:
        images = np.repeat(images[..., :1], 3, axis=-1)
    large = images.repeat(scale, axis=1).repeat(scale, axis=2)
    spaced = np.pad(
        large, ((0, 0), (0, gap), (left, 0), (0, 0)), mode="constant", constant_values=1.0
    )
    return spaced.reshape(-1, *spaced.shape[2:])[:-gap]


def curves_figure(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Loss, learning rate and, where there is one, accuracy over epochs.

    Args:
        rows: objects of `metrics.jsonl`: "epoch" and any of "train_loss", "eval_loss", "lr",
            "train_top1", "top1", "top5" (shares, drawn in per cent).
    """
    percent = {
        "train_top1": "training, top-1",
        "top1": "held out, top-1",
        "top5": "held out, top-5",
    }
    plots = [
        ("loss", {"train_loss": "training", "eval_loss": "held out"}, 1.0),
        ("accuracy (%)", percent, 100.0),
        ("learning rate", {"lr": ""}, 1.0),
    ]
    plots = [plot for plot in plots if any(key in row for row in rows for key in plot[1])]
    figure = Figure(figsize=(4.6 * len(plots), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for position, (ylabel, series, factor) in enumerate(plots, 1):
        axes = figure.add_subplot(1, len(plots), position)
        for key, label in series.items():
            points = [(row["epoch"], row[key] * factor) for row in rows if key in row]
            if points:
                axes.plot(*zip(*points), label=label, marker="o", markersize=2.5, linewidth=1.3)
        axes.set_xlabel("epoch")
        axes.set_ylabel(ylabel)
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if any(series.values()):
            axes.legend(fontsize=8, frameon=False)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def save_figure(figure: Figure, path: str | Path, dpi: int = 100) -> None:
    """Writes a PNG, whole or not at all."""
    with replacing(path) as beside:
        figure.savefig(beside, dpi=dpi, format="png")


def figure_pixels(figure: Figure, dpi: int = 100) -> np.ndarray:
    """The figure as uint8 [H, W, 3]."""
    figure.set_dpi(dpi)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
