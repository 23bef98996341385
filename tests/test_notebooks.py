"""The notebooks: one source, no errors kept, pictures in them, and code that runs to its end."""

import base64
import io
import json
import os
import re
import runpy
import subprocess
import sys
import tokenize
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
BUILD = runpy.run_path(str(ROOT / "notebooks/build.py"))
NOTEBOOKS = BUILD["NOTEBOOKS"]
TINY = "SMALL = dict(images=400, pretrain_epochs=1, finetune_epochs=3, test_images=24)"


def read(language: str) -> list[dict]:
    return json.loads(NOTEBOOKS[language].read_text(encoding="utf-8"))["cells"]


def text_of(cell: dict) -> str:
    return "".join(cell["source"])


def code_of(language: str) -> list[str]:
    return [text_of(cell) for cell in read(language) if cell["cell_type"] == "code"]


def without_comments(code: str) -> list[str]:
    kinds = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE)
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    return [token.string for token in tokens if token.type not in kinds]


@pytest.mark.parametrize("language", NOTEBOOKS)
def test_a_notebook_is_what_the_source_says(language):
    kept = [(cell["cell_type"], text_of(cell)) for cell in read(language)]
    assert kept == BUILD["cells"](language)
    assert "||" not in "".join(text for _, text in kept) and "<!--" not in str(kept)


def test_both_have_the_same_code_and_outputs():
    zh, en = (map(without_comments, code_of(language)) for language in NOTEBOOKS)
    assert list(zh) == list(en)
    kinds = [[cell["cell_type"] for cell in read(language)] for language in NOTEBOOKS]
    assert kinds[0] == kinds[1]
    assert [c.get("outputs") for c in read("zh")] == [c.get("outputs") for c in read("en")]


def test_each_is_in_its_language():
    texts = {
        language: [text_of(cell) for cell in read(language) if cell["cell_type"] == "markdown"]
        for language in NOTEBOOKS
    }
    chinese = re.compile("[\u4e00-\u9fff]")
    assert all(chinese.search(text) for text in texts["zh"])
    in_english = "".join(texts["en"] + code_of("en")).replace("[中文]", "").replace("可视化", "")
    assert not chinese.search(in_english)


@pytest.mark.parametrize("language", NOTEBOOKS)
def test_outputs_are_kept_small_in_order_and_without_errors(language):
    assert NOTEBOOKS[language].stat().st_size < 600_000
    code = [cell for cell in read(language) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    printed = "".join("".join(output.get("text", "")) for output in outputs)
    assert not re.search(r"[\x00-\x08\x0b-\x1f]|Traceback|rror:|/root/|/home/", printed)
    pictures = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 8
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode("".join(picture)))) as image:
            # A blank picture, or one without its images, has next to no colours.
            assert min(image.size) > 100 and len(np.unique(np.asarray(image.convert("L")))) > 20


@pytest.mark.parametrize("language", NOTEBOOKS)
def test_links_and_pictures_in_them_exist(language):
    text = "\n".join(text for kind, text in BUILD["cells"](language) if kind == "markdown")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (ROOT / "notebooks" / target).exists(), target


def run_as_script(tmp_path: Path, *replaced: tuple[str, str]) -> str:
    """Runs the Chinese notebook's cells from an empty folder in Python itself; what it printed."""
    code = "\n\n".join(code_of("zh"))
    for old, new in (*replaced, ('Path("output")', f"Path({str(tmp_path / 'out')!r})")):
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    script = tmp_path / "notebook.py"
    script.write_text(code, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, str(script)],
        cwd=ROOT / "notebooks",
        env={**os.environ, "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    return run.stdout


SMALL = r"SMALL = dict(images=6000, pretrain_epochs=5, finetune_epochs=30, test_images=500)"


def test_the_code_runs_on_the_built_in_data(tmp_path):
    printed = run_as_script(tmp_path, (SMALL, TINY))
    assert printed.count("  $ python tools/train_") == 3
    assert re.search(r"from the encoder +top-1 +[\d.]+% on 24 test images", printed)
    assert re.search(r"pretrained encoder +kNN top-1 +[\d.]+%", printed)


@pytest.mark.slow
def test_the_code_runs_on_cifar_10_given_by_its_path(tmp_path):
    """With files of CIFAR-10's form; their images are noise."""
    import pickle

    folder = tmp_path / "my data/cifar-10-batches-py"
    folder.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        images = np.random.default_rng(number).integers(0, 256, (200, 3072), np.uint8)
        batch = {b"data": images, b"labels": [i % 10 for i in range(200)]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    given = ("DATA = None", f"DATA = {str(folder.parent)!r}")
    printed = run_as_script(tmp_path, (SMALL, TINY.replace("400", "1000")), given)
    assert "Data.name=Cifar10" in printed


@pytest.mark.slow
def test_it_runs_whole_in_a_jupyter_kernel(tmp_path, monkeypatch):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    made = BUILD["notebook"]("en")
    for cell in made.cells:
        cell.source = cell.source.replace('Path("output")', f"Path({str(tmp_path)!r})")
    BUILD["execute"](made)
    executed = [BUILD["joined"](cell.outputs) for cell in BUILD["code_cells"](made)]
    outputs = [output for cell in executed for output in cell]
    kept = [output for cell in read("en") for output in cell.get("outputs", [])]
    assert [o.output_type for o in outputs] == [o["output_type"] for o in kept]
