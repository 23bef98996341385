"""Arrays in, matplotlib figure out. Figures are made without pyplot: no window, no global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from passl_mae.files import replacing

PANEL_INCHES = 1.1


def reconstruction_figure(
    original: np.ndarray,
    panels: Mapping[float, Mapping[str, np.ndarray]],
    note: str = "",
) -> Figure:
    """One row an image: the original, then the panels of each mask ratio.

    Args:
        original: [N, H, W, C], 0..1; C of 1 is drawn in grey, of 3 in colour, else channel 0.
        panels: mask ratio -> {title: [N, H, W, C]}, drawn in the order given.
        note: a line below the figure.
    """
    columns: list[tuple[str, np.ndarray]] = [("original", original)]
    groups: list[tuple[int, int, float]] = []  # first column, one past the last, ratio
    for ratio, titled in panels.items():
        first = len(columns)
        columns.extend(titled.items())
        groups.append((first, len(columns), ratio))
    rows, height, width = original.shape[:3]
    panel_height = PANEL_INCHES * height / width
    top, bottom = 0.5, 0.3 if note else 0.08
    gap = 0.14  # between the groups, of a panel's width
    units = [
        i + gap * sum(first <= i for first, _, _ in groups) for i in range(len(columns))
    ]  # left edge of each column, in panels
    total_width = (units[-1] + 1) * PANEL_INCHES + 0.16
    total_height = top + rows * panel_height + bottom
    figure = Figure(figsize=(total_width, total_height))
    FigureCanvasAgg(figure)
    for row in range(rows):
        for column, (title, images) in enumerate(columns):
            axes = figure.add_axes(
                (
                    (0.08 + units[column] * PANEL_INCHES + 0.02) / total_width,
                    (bottom + (rows - 1 - row) * panel_height + 0.02) / total_height,
                    (PANEL_INCHES - 0.04) / total_width,
                    (panel_height - 0.04) / total_height,
                )
            )
            _draw_image(axes, images[row])
            if row == 0:
                axes.set_title(title, fontsize=8, pad=3)
    for first, last, ratio in groups:
        centre = 0.08 + (units[first] + units[last - 1] + 1) / 2 * PANEL_INCHES
        figure.text(
            centre / total_width,
            1 - 0.16 / total_height,
            f"mask ratio {ratio:g}",
            ha="center",
            va="center",
            fontsize=9,
            weight="bold",
        )
    if note:
        figure.text(0.5, 0.12 / total_height, note, ha="center", va="center", fontsize=7)
    return figure


def _draw_image(axes, image: np.ndarray) -> None:
    pixels = image if image.shape[-1] == 3 else image[..., 0]
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()


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
        ("learning rate at the epoch's end", {"lr": ""}, 1.0),
    ]
    plots = [plot for plot in plots if any(key in row for row in rows for key in plot[1])]
    figure = Figure(figsize=(4.2 * len(plots), 3.2), layout="constrained")
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


def save_figure(figure: Figure, path: str | Path, dpi: int = 130) -> None:
    """Writes a PNG, whole or not at all."""
    with replacing(path) as beside:
        figure.savefig(beside, dpi=dpi, format="png")


def figure_pixels(figure: Figure, dpi: int = 100) -> np.ndarray:
    """The figure as uint8 [H, W, 3]."""
    figure.set_dpi(dpi)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
