"""Arrays in, matplotlib figure out. Figures are made without pyplot: no window, no global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

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
            "train_top1", "eval_top1", "eval_top5" (shares, drawn in per cent).
    """
    percent = {
        "train_top1": "training, top-1",
        "eval_top1": "held out, top-1",
        "eval_top5": "held out, top-5",
        "train_contrast_top1": "training, own key first",
        "eval_knn_top1": "held out, kNN",
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


def attention_figure(
    images: np.ndarray, maps: np.ndarray, note: str = "", patch: tuple[int, int] | None = None
) -> Figure:
    """One row an image: the image, the mean over the heads, then each head, laid over the image.

    Each map is drawn on its own scale, from nothing to its largest value.

    Args:
        images: [B, H, W, C], 0..1.
        maps: [B, heads, rows, cols].
        patch: (row, col) of the patch that looks, framed in the image.
        note: a line below the figure.
    """
    shown = np.concatenate([maps.mean(axis=1, keepdims=True), maps], axis=1)
    titles = ["image", "mean of heads", *(f"head {head + 1}" for head in range(maps.shape[1]))]
    count, columns = len(images), len(titles)
    height, width = images.shape[1:3]
    panel_width, panel_height = 1.15, 1.15 * height / width
    size = (columns * panel_width, count * panel_height + 0.25 + (0.3 if note else 0.0))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.0, hspace=0.0)
    axes = figure.subplots(count, columns, squeeze=False)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    for row in range(count):
        plain = images[row] if images.shape[3] == 3 else images[row, :, :, :1].repeat(3, axis=2)
        grey = plain.mean(axis=2, keepdims=True).repeat(3, axis=2)
        axes[row, 0].imshow(plain, interpolation="nearest")
        if patch is not None:
            rows, cols = maps.shape[2:]
            corner = (patch[1] * width / cols - 0.5, patch[0] * height / rows - 0.5)
            frame = Rectangle(corner, width / cols, height / rows, fill=False, color="red")
            axes[row, 0].add_patch(frame)
        for column in range(1, columns):
            its_map = shown[row, column - 1]
            axes[row, column].imshow(grey, interpolation="nearest")
            axes[row, column].imshow(
                its_map, cmap="inferno", alpha=0.7, vmin=0.0, extent=extent, interpolation="nearest"
            )
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=8, pad=3)
    if note:
        figure.supxlabel(note, fontsize=7)
    return figure


def confusion_figure(matrix: np.ndarray, class_names: Sequence[str], title: str = "") -> Figure:
    """Rows are true classes, columns predicted ones; shares of a row in per cent.

    Args:
        matrix: int [classes, classes], counts.
    """
    totals = matrix.sum(axis=1, keepdims=True)
    shares = 100.0 * matrix / np.maximum(totals, 1)
    count = len(class_names)
    side = max(4.0, 0.52 * count + 1.8) if count <= 40 else 9.0
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=100.0)
    figure.colorbar(image, ax=axes, label="share of the true class (%)", shrink=0.8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if title:
        axes.set_title(title, fontsize=10)
    if count > 40:  # neither names nor numbers could be read
        return figure
    axes.set_xticks(range(count), class_names, rotation=45, ha="right")
    axes.set_yticks(range(count), class_names)
    for row in range(count):
        for column in range(count):
            share = shares[row, column]
            axes.text(
                column, row, f"{share:.0f}", ha="center", va="center", fontsize=8,
                color="white" if share > 50 else "black",
            )  # fmt: skip
    return figure


def embedding_figure(
    points: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    title: str,
    axes_names: Sequence[str],
) -> Figure:
    """Points [N, 2], coloured by class (labels int [N]); a legend for up to 20 classes."""
    figure = Figure(figsize=(7.2, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = colormaps["tab10" if len(class_names) <= 10 else "tab20"]
    # In a shuffled order, so that no class lies on top of all others.
    order = np.random.default_rng(0).permutation(len(points))
    axes.scatter(
        points[order, 0], points[order, 1], c=colours(labels[order] % colours.N),
        s=max(2.0, min(14.0, 30000 / len(points))), alpha=0.7, linewidths=0,
    )  # fmt: skip
    if len(class_names) <= 20:
        handles = [
            Line2D([], [], marker="o", linestyle="", color=colours(number % colours.N), label=name)
            for number, name in enumerate(class_names)
        ]
        figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=8)
    axes.set_xlabel(axes_names[0])
    axes.set_ylabel(axes_names[1])
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=10)
    return figure


def ablation_figure(summaries: Sequence[Mapping[str, Any]], axis: str) -> Figure:
    """Accuracy against one axis of a grid, a panel a measure, a line a combination of the others.

    Args:
        summaries: {"axes": {name: text}, "figures": {measure: (mean, standard deviation, seeds)}};
            measures that end in "top1" are drawn, in per cent, with their standard deviation.
    """
    measures = sorted({m for s in summaries for m in s["figures"] if m.endswith("top1")})
    figure = Figure(figsize=(4.2 * max(1, len(measures)), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for position, measure in enumerate(measures, 1):
        axes = figure.add_subplot(1, len(measures), position)
        lines: dict[str, list[tuple]] = {}
        for summary in summaries:
            if measure in summary["figures"]:
                others = {k: v for k, v in summary["axes"].items() if k != axis}
                label = ", ".join(f"{k.rsplit('.', 1)[-1]} {v}" for k, v in others.items())
                mean, spread, _ = summary["figures"][measure]
                point = (_number(summary["axes"][axis]), 100 * mean, 100 * spread)
                lines.setdefault(label, []).append(point)
        for label, points in lines.items():
            x, mean, spread = zip(*points)
            axes.errorbar(x, mean, spread, label=label, marker="o", markersize=4, capsize=3)
        axes.set_xlabel(axis.rsplit(".", 1)[-1])
        axes.set_ylabel(f"{measure.removesuffix('_top1').replace('_', ', ')}: top-1 (%)")
        axes.grid(alpha=0.3)
        if any(lines):
            axes.legend(fontsize=8, frameon=False)
    return figure


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def save_figure(figure: Figure, path: str | Path, dpi: int = 100) -> None:
    """Writes a PNG, whole or not at all."""
    with replacing(path) as beside:
        figure.savefig(beside, dpi=dpi, format="png")


def figure_pixels(figure: Figure, dpi: int = 100) -> np.ndarray:
    """The figure as uint8 [H, W, 3]."""
    figure.set_dpi(dpi)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
