"""The commands around a frozen encoder, as a user types them; a run of the probe's recipe."""

import argparse
import re
import runpy
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image
from tiny_runs import TINY_FINETUNE

from passl_mae.config import load_config
from passl_mae.data.loader import EvalLoader
from passl_mae.engine.build import build_model, build_trainer
from passl_mae.engine.build_probes import encode, hold_out, predict
from passl_mae.evaluation import confusion_matrix, per_class_accuracy
from passl_mae.knn import knn_accuracy
from passl_mae.models.weights import save_file

ROOT = Path(__file__).resolve().parents[1]


def succeeded(run):
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    return run.stdout


@pytest.fixture
def finetune(write_config, tmp_path):
    """(config file, encoder file, whole classifier's file)."""
    config = write_config(TINY_FINETUNE, "ft")
    paddle.seed(7)
    state = build_model(load_config(config)).state_dict()
    whole = {name: value.numpy() for name, value in state.items()}
    save_file(whole, tmp_path / "whole.pdparams")
    encoder = {k: v for k, v in whole.items() if not k.startswith(("head", "fc_norm"))}
    save_file(encoder, tmp_path / "encoder.pdparams")
    return config, tmp_path / "encoder.pdparams", tmp_path / "whole.pdparams"


def test_neighbours_from_the_command_are_those_of_the_library(
    finetune, run_tool, tmp_path, monkeypatch
):
    config, encoder, _ = finetune
    override = f"Global.pretrained_model={encoder}"
    cache = tmp_path / "cache"
    arguments = ["-c", config, "-o", override, "--random", "--k", "5", "--cache", cache]
    out = succeeded(run_tool("knn.py", *arguments))
    assert "64 images of the training split, 24 of the test split" in out
    rows = re.findall(r"^ +5 +([\d.]+) +([\d.]+)  (.+)$", out, re.MULTILINE)
    assert [row[2] for row in rows] == [str(encoder), "random"]
    encoded = encode(load_config(config, [override]))
    expected = knn_accuracy(encoded.train, encoded.test, 10, [5])[5]
    assert float(rows[0][0]) == pytest.approx(100 * expected["top1"], abs=0.01)
    assert len(list(cache.glob("*.npz"))) == 2

    # with the operators, whose features differ by rounding, where they are asked for
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nothing built"))
    with pytest.raises(ValueError, match=r"cpu_ops is on, but: .*not built"):
        encode(load_config(config, [override, "Global.cpu_ops=on"]))

    # what is kept is used for the same weights and data only
    settings = load_config(config, [override])
    np.testing.assert_array_equal(
        encode(settings, cache=str(cache)).test.features, encoded.test.features
    )
    assert len(list(cache.glob("*.npz"))) == 2
    encode(load_config(config, [override, "Data.train.labels_per_class=2"]), cache=str(cache))
    assert len(list(cache.glob("*.npz"))) == 3


def test_two_ranks_extract_what_one_does(finetune, run_tool, tmp_path):
    config, encoder, _ = finetune
    loads = []
    for ranks in (1, 2):
        file = tmp_path / f"{ranks}.npz"
        arguments = ["-c", config, "-o", f"Global.pretrained_model={encoder}", "--output", file]
        # 23 images in batches of 16: parts of different size
        arguments += ["-o", "Data.eval.num_images=23"]
        succeeded(run_tool("extract_features.py", *arguments, ranks=ranks))
        loads.append(np.load(file))
    for name in loads[0].files:
        if name.endswith("features"):
            np.testing.assert_allclose(loads[0][name], loads[1][name], atol=1e-5)
        else:
            np.testing.assert_array_equal(loads[0][name], loads[1][name])
    assert loads[0]["test_features"].shape == (23, 24)


def test_probe_attention_embedding_confusion(finetune, run_tool, tmp_path):
    config, encoder, whole = finetune
    base = ["-c", config, "-o", f"Global.pretrained_model={encoder}"]
    probe = [*base, "--optimizer", "SGD", "--epochs", "2", "--warmup-epochs", "1"]
    out = succeeded(run_tool("linear_probe.py", *probe, "--batch-size", "16", "--holdout", "0.25"))
    assert "48 images of the training split, 16 held out of it" in out

    picture = tmp_path / "out.png"
    out = succeeded(run_tool("attention.py", *base, "--output", picture, "--patch", "1,2"))
    assert "6 images (test split of Shapes)" in out
    vdl = tmp_path / "vdl"
    succeeded(run_tool("embed.py", *base, "--output", tmp_path / "pca.png", "--vdl", vdl))
    assert any(vdl.iterdir())
    confusion = tmp_path / "confusion.png"
    arguments = ["-c", config, "-o", f"Global.pretrained_model={whole}", "--confusion", confusion]
    out = succeeded(run_tool("evaluate.py", *arguments))
    assert len(re.findall(r"(?:[\d.]+|nan) %$", out, re.MULTILINE)) == 10
    for file in (picture, tmp_path / "pca.png", confusion):
        with Image.open(file) as image:
            image.load()
            assert min(image.size) > 200


def test_a_confusion_matrix_takes_no_second_look_at_the_images(
    finetune, monkeypatch, tmp_path, capsys
):
    config, _, whole = finetune
    wishes = [f"Global.pretrained_model={whole}", "Data.eval.num_images=23"]
    looks, iterate = [], EvalLoader.__iter__
    monkeypatch.setattr(EvalLoader, "__iter__", lambda self: looks.append(1) or iterate(self))
    tool = runpy.run_path(str(ROOT / "tools/evaluate.py"))
    said = {}
    for picture in (None, str(tmp_path / "confusion.png")):
        looks.clear()
        settings = {"config": config, "override": wishes, "split": "test", "confusion": picture}
        tool["main"](argparse.Namespace(**settings))
        said[bool(picture)] = capsys.readouterr().out
        assert len(looks) == 1
    assert "23 test images" in said[False] and said[True].startswith(said[False])

    predictions = predict(load_config(config, wishes))
    assert predictions.metrics["top1"] == (predictions.predicted == predictions.labels).mean()
    assert f"top1: {predictions.metrics['top1']:.4f}" in said[False]


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("knn.py", [], "say which weights: -o Global.pretrained_model=FILE (or --random)"),
        ("knn.py", ["--random", "--k", "65"], "between 1 and the 64 training images, got 65"),
        ("linear_probe.py", ["--random"], "a batch of 512 of 64 training images"),
        ("linear_probe.py", ["--random", "--holdout", "0"], "leave both sides images, got 0 of 64"),
        ("attention.py", ["--random", "--output", "x.png", "--block", "2"], "blocks 0 to 1"),
        ("attention.py", ["--random", "--output", "x.png", "--patch", "4,0"], "outside the grid"),
    ],
)
def test_a_mistake_ends_in_one_line(write_config, run_tool, tool, arguments, message):
    run = run_tool(tool, "-c", write_config(TINY_FINETUNE), *arguments)
    assert run.returncode == 2 and message in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1 and run.stdout == ""


def test_held_out_images_are_training_images_once(finetune):
    config, encoder, _ = finetune
    encoded = encode(load_config(config, [f"Global.pretrained_model={encoder}"]))
    held = hold_out(encoded, 0.25, seed=1)
    together = np.concatenate([held.train.features, held.test.features])
    assert len(held.test.labels) == 16
    key = np.lexsort(together.T), np.lexsort(encoded.train.features.T)
    np.testing.assert_array_equal(together[key[0]], encoded.train.features[key[1]])
    with pytest.raises(ValueError, match="must leave both sides images, got 1 of 64"):
        hold_out(encoded, 1.0, seed=1)


def test_confusion_by_hand():
    labels, predicted = np.array([0, 0, 0, 1, 3]), np.array([0, 1, 0, 1, 0])
    matrix = confusion_matrix(predicted, labels, 4)
    assert matrix.tolist() == [[2, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    np.testing.assert_allclose(per_class_accuracy(matrix), [2 / 3, 1, np.nan, 0])


@pytest.mark.parametrize("optimizer", ["LARS", "SGD"])
def test_a_probe_run_trains_the_head_alone_and_resumes_exactly(
    write_config, finetune, tmp_path, optimizer
):
    _, encoder, _ = finetune
    overrides = [
        *("Model.freeze=encoder", "Model.head_bn=true", f"Optimizer.name={optimizer}"),
        *("Optimizer.weight_decay=0", f"Global.pretrained_model={encoder}"),
    ]
    path = write_config(TINY_FINETUNE, "whole")
    trainer = build_trainer(load_config(path, overrides))
    before = {name: value.numpy() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    after = {name: value.numpy() for name, value in trainer.model.state_dict().items()}
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert {"head.0._mean", "head.0._variance", "head.1.weight"} <= changed
    assert all(name.startswith(("head", "fc_norm")) for name in changed)

    first = tmp_path / "whole/checkpoints/epoch_0001"
    other = write_config(TINY_FINETUNE, "again")
    resumed = build_trainer(load_config(other, [*overrides, f"Global.checkpoints={first}"]))
    resumed.train()
    for name, value in resumed.model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), after[name], err_msg=name)
