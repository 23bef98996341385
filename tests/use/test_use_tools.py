"""`tools/predict.py` and `tools/export_model.py` as a user types them."""

import json

import numpy as np
from PIL import Image

from passl_mae import Predictor


def succeeded(run):
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    return run.stdout


def refused(run):
    assert run.returncode == 2, run.stdout[-2000:] + run.stderr[-4000:]
    (line,) = run.stderr.splitlines()
    return line


def test_predict_from_table_to_files(runs, run_here, tmp_path):
    val, bad = runs.images / "val", tmp_path / "bad.png"
    bad.write_text("hello")
    out, features = tmp_path / "out.json", tmp_path / "out.npy"
    command = ["predict.py", "--run", runs.finetune, val, bad, "--top-k", 2, "--json", out]
    line = refused(run_here(*command))
    reason = f"{bad} cannot be read as an image: not an image, or damaged at its beginning"
    assert line == f"error: {reason}"
    assert not out.exists()
    run = run_here(*command, "--features", features, "--skip-errors")
    shown = succeeded(run)
    assert run.stderr == f"left out: {reason}\n"
    predictions = Predictor.from_run(runs.finetune).classify(val, top_k=2)
    written = json.loads(out.read_text())
    assert written["model"] == "mae_vit_t_p4" and len(written["images"]) == 15
    assert written["skipped"][0]["file"] == str(bad)
    lines = shown.splitlines()
    for line, image, prediction in zip(lines, written["images"], predictions):
        first = prediction.classes[0]
        assert image["file"] == prediction.source and line.startswith(prediction.source)
        assert [c["name"] for c in image["classes"]] == [s.name for s in prediction.classes]
        assert f"{first.name} {100 * first.probability:5.1f} %" in line
    assert np.load(features).shape == (15, 24) and "15 images, 24 features" in shown


def test_predict_with_a_pretraining_run(runs, run_here, tmp_path):
    png = tmp_path / "out.png"
    command = ["predict.py", "--run", runs.pretrain, runs.images / "val/apple"]
    succeeded(run_here(*command, "--reconstruct", png, "--mask-ratio", 0.5, 0.75))
    assert Image.open(png).size[0] > 500
    assert "which knows no classes" in refused(run_here(*command))
    line = refused(run_here(*command, "--features", "out.txt"))
    assert line == "error: --features writes a NPY: name it so, not out.txt"
    for option in ("--seed", "--mask-ratio"):
        line = refused(run_here(*command, "--features", tmp_path / "out.npy", option, 0))
        assert line.startswith("error: --mask-ratio and --seed are for --reconstruct")
    empty = tmp_path / "empty"
    empty.mkdir()
    line = refused(run_here("predict.py", "--run", runs.pretrain, empty))
    assert f"{empty}: no images in it" in line


def test_export_and_use(runs, run_here, run_tool, tmp_path):
    folder = tmp_path / "exported"
    command = ["export_model.py", "--run", runs.finetune, "--output", folder, "--what"]
    shown = succeeded(run_here(*command, "classifier"))
    assert shown.startswith(f"wrote {folder}: classifier of mae_vit_t_p4\n")
    assert "paddle.jit.load: differs by " in shown and "paddle.inference: differs by " in shown
    val = runs.images / "val"
    found = succeeded(run_tool("predict.py", "--model", folder, val))  # as a user types it
    assert found == succeeded(run_here("predict.py", "--run", runs.finetune, val))
    assert "is there already" in refused(run_here(*command, "classifier"))
    line = refused(run_here(*command, "encoder", "--mask-ratio", 0.5))
    assert line == "error: --mask-ratio is for --what reconstruction"
    other = ["export_model.py", "--run", runs.pretrain, "--output", tmp_path / "no"]
    assert "which knows no classes" in refused(run_here(*other, "--what", "classifier"))
    assert not (tmp_path / "no").exists()
