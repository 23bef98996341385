"""The page: Gradio's components, and what happens when one is touched."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from passl_mae.web.studio import Studio
from passl_mae.web.texts import Texts

MAX_SEED = 2**32 - 1
STYLE = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
.gradio-container h1 { margin: 0 0 4px; }
.caption { overflow: visible !important; flex-shrink: 0; margin-bottom: -4px; }
.caption * { overflow: visible !important; }
.caption p, #count p { font-size: 0.95em; font-weight: 600; }
.panel img { image-rendering: pixelated; width: 100%; object-fit: contain !important; }
#masked img { cursor: pointer; }
#examples .grid-wrap { max-height: none; min-height: 0; height: auto; padding: 0; }
#examples .grid-wrap { overflow: visible; }
#examples .grid-container { padding: 6px; gap: 6px; }
#examples .grid-container { grid-template-columns: repeat(6, minmax(0, 1fr)) !important; }
#examples .grid-container { grid-template-rows: none; grid-auto-rows: auto !important; }
#examples .thumbnail-lg { width: 100% !important; height: auto !important; aspect-ratio: 1; }
#examples img { image-rendering: pixelated; }
#note { opacity: 0.8; font-size: 0.9em; }
.toast-title { display: none !important; } /* "Warning", in English whatever the language */
footer { display: none !important; }
"""


def theme() -> gr.themes.Base:
    """With the visitor's own fonts: Gradio's would be asked from the network."""
    return gr.themes.Soft(
        primary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "-apple-system", "Noto Sans CJK SC", "Microsoft YaHei", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )


def build_page(studio: Studio, examples: list[Path], texts: Texts) -> gr.Blocks:
    """Args: examples: image files; the first is shown at the beginning."""
    run = studio.run
    height, width = run.model.img_size
    facts = {"name": run.name, "height": height, "width": width}
    note = texts.note.format(patch="{} \u00d7 {}".format(*studio.patch), **facts)
    if run.norm_pix_loss:
        note += "\n\n" + texts.norm_pix

    with gr.Blocks(title=texts.title, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        image, mask = gr.State(), gr.State()  # of a visitor: uint8 [H, W, C], Mask
        gr.Markdown(f"# {texts.title}\n{texts.intro}")
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                file = gr.File(label=texts.drop, elem_id="file", height=140)
                _caption(texts.examples)
                gallery = gr.Gallery(
                    [_thumbnail(path) for path in examples],
                    show_label=False,
                    elem_id="examples",
                    columns=6,
                    format="png",
                    allow_preview=False,
                    interactive=False,
                    buttons=[],
                )
                ratio = gr.Slider(
                    0,
                    studio.max_ratio,
                    min(run.mask_ratio, studio.max_ratio),
                    step=0.01,
                    label=texts.ratio,
                    info=texts.ratio_info,
                    elem_id="ratio",
                )
                seed = gr.Number(0, label=texts.seed, precision=0, elem_id="seed")
                again = gr.Button(texts.again, variant="primary", elem_id="again")
                with gr.Column(visible=studio.classifier is not None):
                    _caption(texts.classes)
                    classes = gr.Label(show_label=False, elem_id="classes")
            with gr.Column(scale=8, min_width=480):
                with gr.Row():
                    original = _panel(texts.original, "original")
                    masked = _panel(texts.masked, "masked")
                with gr.Row():
                    whole = _panel(texts.reconstruction, "reconstruction")
                    pasted = _panel(texts.pasted, "pasted")
                count = gr.Markdown(elem_id="count")
        gr.Markdown(note, elem_id="note")

        panels = [original, masked, whole, pasted]
        masks = [mask, *panels, count]
        everything = [file, image, *masks, classes]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

        def drawn(pixels, chosen) -> list:
            ratio = 1 - chosen.visible / len(chosen.removed)
            line = texts.visible.format(
                kept=chosen.visible, length=len(chosen.removed), ratio=ratio
            )
            return [chosen, *studio.draw(pixels, chosen), line]

        def random_mask(ratio: float, seed: int | None):
            if seed is None or not 0 <= seed <= MAX_SEED:
                gr.Warning(texts.bad_seed)
                return None
            return studio.random_mask(ratio, int(seed))

        def show(path: str, ratio: float, seed: int | None) -> list:
            """A file given by the visitor or an example; the drop zone is free again after it."""
            try:
                pixels = studio.read(path)
                scores = studio.classify(path)
            except ValueError as error:
                reason = str(error).replace(path, Path(path).name)
                gr.Warning(texts.bad_file.format(reason=html.escape(reason)))
                return [None, *[gr.skip()] * (len(everything) - 1)]
            chosen = random_mask(ratio, seed)
            if chosen is None:
                return [None, *[gr.skip()] * (len(everything) - 1)]
            named = {score.name: score.probability for score in scores}
            return [None, pixels, *drawn(pixels, chosen), named or None]

        def example(chosen: gr.SelectData, ratio: float, seed: int | None) -> list:
            return show(str(examples[chosen.index]), ratio, seed)

        def first(ratio: float, seed: int | None) -> list:
            return show(str(examples[0]), ratio, seed)

        def redraw(pixels, ratio: float, seed: int | None) -> list:
            chosen = None if pixels is None else random_mask(ratio, seed)
            return [gr.skip()] * len(masks) if chosen is None else drawn(pixels, chosen)

        def touch(pixels, old, at: gr.SelectData) -> list:
            if pixels is None:
                return [gr.skip()] * len(masks)
            try:
                chosen = studio.toggle(old, *at.index)
            except ValueError:
                gr.Warning(texts.last_patch)
                return [gr.skip()] * len(masks)
            return drawn(pixels, chosen)

        def next_seed(seed: int | None) -> int:
            return 0 if seed is None or not 0 <= seed < MAX_SEED else int(seed) + 1

        page.load(first, [ratio, seed], everything, **quiet)
        file.upload(show, [file, ratio, seed], everything, **quiet)
        gallery.select(example, [ratio, seed], everything, **quiet)
        ratio.change(redraw, [image, ratio, seed], masks, trigger_mode="always_last", **quiet)
        seed.change(redraw, [image, ratio, seed], masks, trigger_mode="always_last", **quiet)
        again.click(next_seed, seed, seed, **quiet)
        masked.select(touch, [image, mask], masks, trigger_mode="multiple", **quiet)
    return page


def _caption(text: str) -> None:
    gr.Markdown(text, elem_classes="caption")


def _panel(label: str, name: str) -> gr.Image:
    """Its name stands above it: Gradio's own label would cover patches."""
    with gr.Column(min_width=220):
        _caption(label)
        return gr.Image(
            show_label=False,
            elem_id=name,
            elem_classes="panel",
            format="png",  # what is shown is what was computed, to the bit
            interactive=False,
            buttons=["download"],
        )


def _thumbnail(path: Path) -> Image.Image:
    picture = Image.open(path).convert("RGB")
    resampling = Image.Resampling.NEAREST if max(picture.size) < 96 else Image.Resampling.BICUBIC
    return picture.resize((96, 96), resampling)
