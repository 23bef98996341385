"""Chromium on VisualDL's pages: scalars, pictures, settings and features of runs are there."""

import csv
import io
import logging
import sys
import urllib.request

import pytest
import yaml
from real_browser import Server, free_port, wait_for
from tiny_runs import TINY_FINETUNE, TINY_PRETRAIN

from passl_mae.config import load_config
from passl_mae.engine.build import build_trainer


@pytest.fixture(scope="module")
def board(tmp_path_factory, browser):
    """`visualdl --logdir` of a pretraining, two finetunings and the features of one."""
    root = tmp_path_factory.mktemp("board")
    output = root / "output"
    for name, settings, blr in (
        ("pretrain", TINY_PRETRAIN, 1e-2),
        ("finetune", TINY_FINETUNE, 1e-2),
        ("slower", TINY_FINETUNE, 1e-3),
    ):
        own = {"output_dir": str(output / name), "use_visualdl": True}
        config = {**settings, "Global": {**settings["Global"], **own}}
        config["Optimizer"] = {**settings["Optimizer"], "blr": blr}
        (root / f"{name}.yaml").write_text(yaml.safe_dump(config))
        build_trainer(load_config(root / f"{name}.yaml")).train()
    log = logging.getLogger("passl_mae")
    for handler in list(log.handlers):
        handler.close()
        log.removeHandler(handler)
    write_features(root)
    port = free_port()
    code = "from visualdl.server.app import main; main()"
    command = [sys.executable, "-c", code, "--logdir", "output", "--port", port]
    command += ["--host", "127.0.0.1", "--disable-telemetry"]
    # VisualDL's page of features mixes up its caches where --logdir is an absolute path
    server = Server(command, root / "log.txt", port, cwd=root)
    yield server
    server.stop()


def write_features(root) -> None:
    import runpy

    from real_browser import ROOT

    weights = f"Global.pretrained_model={root}/output/finetune/mae_finetune.pdparams"
    before, sys.argv = sys.argv, [
        "embed.py", "-c", f"{root}/finetune.yaml", "-o", weights,
        "--output", f"{root}/features.png", "--vdl", f"{root}/output/finetune/features",
    ]  # fmt: skip
    try:
        runpy.run_path(str(ROOT / "tools/embed.py"), run_name="__main__")
    finally:
        sys.argv = before


def see(browser, board, page: str, *words: str) -> str:
    """Opens a page and waits until all the words are on it; its text."""
    browser.get(f"{board.url}/app/{page}")

    shown = "return document.body ? document.body.innerText : ''"

    def there() -> str:
        text = browser.execute_script(shown)
        return text if all(word in text for word in words) else ""

    try:
        return wait_for(there, f"{words} on {page}")
    except AssertionError as error:
        raise AssertionError(f"{error}; there is: {browser.execute_script(shown)}") from None


def test_scalars_of_all_runs(browser, board):
    runs = [f"output/{name}/vdl" for name in ("pretrain", "finetune", "slower")]
    see(browser, board, "scalar", "Train", "Eval", "Test", *runs)
    # curves are drawn on canvases: some of the pixels have the colour of a run
    coloured = """
        return [...document.querySelectorAll('canvas')].some(canvas => {
            if (!canvas.width || !canvas.height) return false;
            const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
            for (let i = 0; i < data.length; i += 4)
                if (data[i + 3] > 200 && Math.max(data[i], data[i + 1], data[i + 2])
                    - Math.min(data[i], data[i + 1], data[i + 2]) > 100) return true;
            return false;
        })"""
    wait_for(lambda: browser.execute_script(coloured), "a curve")


def test_pictures_of_the_pretraining(browser, board):
    see(browser, board, "sample/image", "Eval/reconstructions", "output/pretrain/vdl")
    width = "return Math.max(0, ...[...document.images].filter(i => i.src.startsWith('blob:'))"
    wait_for(
        lambda: browser.execute_script(f"{width}.map(i => i.naturalWidth))") > 500,
        "the figure of reconstructions",
    )


def test_settings_of_several_runs_side_by_side(browser, board):
    see(browser, board, "hyper-parameter", "Optimizer/blr", "output/slower/vdl")
    cells = "return [...document.querySelectorAll('[role=cell]')].map(cell => cell.innerText)"
    found = wait_for(lambda: browser.execute_script(cells), "the table")
    assert {"0.01", "0.001", "mae_vit_t_p4", "Shapes"} <= {cell.strip() for cell in found}
    # and what they are compared by
    request = urllib.request.Request(
        f"{board.url}/app/api/hparams/data?type=csv", headers={"Accept-Language": "en"}
    )
    with urllib.request.urlopen(request) as answer:
        rows = list(csv.DictReader(io.StringIO(answer.read().decode())))
    assert {row["Optimizer/blr"] for row in rows} == {"0.01", "0.001"}
    assert all(float(row["Test/loss"]) > 0 for row in rows)


def test_features_with_their_classes(browser, board):
    see(browser, board, "high-dimensional", "Points: 24", "Label by\nclass")
