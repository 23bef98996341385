"""docs/own-images.md, "From nothing to a classifier", as a reader types it, with fewer epochs."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from doc_commands import commands_of, fenced
from PIL import Image

from passl_mae import Predictor

ROOT = Path(__file__).resolve().parents[2]
sklearn_datasets = pytest.importorskip("sklearn.datasets")
SHORT = ["Global.epochs=2", "Global.eval_interval=2", "LRScheduler.warmup_epochs=1"]


@pytest.fixture
def walk(tmp_path, monkeypatch):
    """The page's section in an empty folder: its images made, its configs written, its commands."""
    page = (ROOT / "docs/own-images.md").read_text(encoding="utf-8")
    text = page[page.index("## From nothing to a classifier") : page.index("## Layouts")]
    monkeypatch.chdir(tmp_path)
    (code,) = fenced(text, "python")
    exec(compile(code, "own-images.md", "exec"), {})
    for block in fenced(text, "yaml"):
        Path(block.splitlines()[0].removeprefix("# ")).write_text(block, encoding="utf-8")
    return [command.words for command in commands_of("own-images.md", text)]


def test_a_stranger_gets_from_digits_to_an_exported_classifier(walk, run_here):
    digits = sklearn_datasets.load_digits()
    file = Path("digits/test") / str(digits.target[1400]) / "1400.png"
    assert np.array_equal(np.asarray(Image.open(file)), np.rint(digits.images[1400] * 255 / 16))

    outputs = {}
    for python, script, *arguments in walk:
        assert python == "python"
        if "train_" in script:
            arguments += [] if "-o" in arguments else ["-o"]
            arguments += SHORT
        run = run_here(Path(script).name, *arguments)
        assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
        outputs.setdefault(Path(script).stem, []).append(run.stdout)

    # the mean and std that the tool prints are the images', and those of the page's configs
    pixels = np.rint(digits.images[:1397] * 255 / 16) / 255
    for name, exact in (("mean", pixels.mean()), ("std", pixels.std())):
        assert yaml.safe_load(outputs["dataset_stats"][0])[name] == [pytest.approx(exact, abs=6e-7)]
        for config in ("digits_pretrain.yaml", "digits_finetune.yaml"):
            (written,) = yaml.safe_load(Path(config).read_text(encoding="utf-8"))["Data"][name]
            assert written == pytest.approx(exact, abs=6e-7)

    # the accuracy of the run's own test is that of its predictions against scikit-learn's labels
    result = json.loads(Path("output/digits/finetune/result.json").read_text())
    found = Predictor.from_run("output/digits/finetune").classify("digits/test", top_k=1)
    right = [int(p.classes[0].name) == digits.target[int(Path(p.source).stem)] for p in found]
    assert (result["test_images"], len(right)) == (400, 400)
    assert np.mean(right) == pytest.approx(result["test_top1"], abs=1e-9)

    # files and the exported model agree with them
    threes = [p for p in found if Path(p.source).parent.name == "3"]
    written = json.loads(Path("output/digits/three.json").read_text())["images"]
    assert [image["classes"][0]["name"] for image in written] == [p.classes[0].name for p in threes]
    exported = outputs["predict"][1].splitlines()
    for line, prediction in zip(exported, threes):
        assert line.split()[1] == prediction.classes[0].name
    assert Path("output/digits/scratch/mae_finetune.pdparams").exists()
