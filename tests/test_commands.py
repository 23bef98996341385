"""The commands as a user types them: the whole way, several ranks, and mistakes."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from tiny_runs import TINY_FINETUNE, TINY_PRETRAIN

from passl_mae.models.weights import load_file


def succeeded(run):
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    return run.stdout


def test_pretrain_extract_finetune_evaluate_visualize(write_config, run_tool, tmp_path):
    pretrain, finetune = write_config(TINY_PRETRAIN, "pt"), write_config(TINY_FINETUNE, "ft")
    out = succeeded(run_tool("train_pretrain.py", "-c", pretrain, "-o", "Global.use_visualdl=true"))
    assert "[Epoch 2/2][Iter 4/4]" in out and "Traceback" not in out
    weights = tmp_path / "pt/mae_pretrain.pdparams"

    encoder = tmp_path / "encoder.pdparams"
    out = succeeded(run_tool("extract_encoder.py", "--checkpoint", weights, "--output", encoder))
    assert "fc_norm.weight" in out and "decoder_pred.weight" in out
    assert "norm.weight" not in load_file(encoder)

    from_encoder = f"Global.pretrained_model={encoder}"
    out = succeeded(run_tool("train_finetune.py", "-c", finetune, "-o", from_encoder))
    assert "newly initialised: fc_norm.weight, fc_norm.bias, head.weight, head.bias" in out

    tuned = f"Global.pretrained_model={tmp_path / 'ft/mae_finetune.pdparams'}"
    out = succeeded(run_tool("evaluate.py", "-c", finetune, "-o", tuned))
    tested = json.loads((tmp_path / "ft/result.json").read_text())
    assert tested["test_images"] == 24 and "24 test images" in out
    rows = [json.loads(line) for line in (tmp_path / "ft/metrics.jsonl").read_text().splitlines()]
    on_held_out = succeeded(run_tool("evaluate.py", "-c", finetune, "-o", tuned, "--split", "val"))
    assert "16 held-out images" in on_held_out
    for text, expected, prefix in ((out, tested, "test"), (on_held_out, rows[-1], "eval")):
        shown = dict(re.findall(r"(\w+): (\d\.\d{4})", text))
        for name in ("top1", "top5", "loss"):
            assert float(shown[name]) == pytest.approx(expected[f"{prefix}_{name}"], abs=6e-5)

    photo = tmp_path / "照片 1.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 91, 3), np.uint8)).save(photo)
    picture = tmp_path / "out.png"
    arguments = ["-c", tmp_path / "pt/config.yaml", "--checkpoint", weights, "--output", picture]
    succeeded(run_tool("visualize.py", *arguments, "--images", photo, "--mask-ratios", "0.5"))
    with Image.open(picture) as image:
        assert image.size == (8 + 96 + 15 + 3 * 96 + 2 * 4 + 8, 52 + 96 + 8)


def test_two_ranks_are_one_rank(write_config, run_tool, tmp_path):
    """Real processes over gloo: the same losses and evaluation as one process, one writer."""
    for name, settings in (("pt", TINY_PRETRAIN), ("ft", TINY_FINETUNE)):
        # dropout and drop path draw by rank: off, to compare with one process
        settings = {**settings, "Model": {**settings["Model"]}}
        settings["Model"].pop("drop_rate", None), settings["Model"].pop("drop_path", None)
        # 23 evaluation images do not divide by two
        settings["Data"] = {**settings["Data"], "eval": {"num_images": 23}}
        tool = {"pt": "train_pretrain.py", "ft": "train_finetune.py"}[name]
        runs = {}
        for ranks in (1, 2):
            config = write_config(settings, f"{name}{ranks}")
            succeeded(run_tool(tool, "-c", config, ranks=ranks))
            folder = tmp_path / f"{name}{ranks}"
            lines = (folder / "metrics.jsonl").read_text().splitlines()
            runs[ranks] = [json.loads(line) for line in lines]
            assert len((folder / "train.log").read_text().split("finished after 8 steps")) == 2
        for one, two in zip(runs[1], runs[2]):
            for key in one.keys() - {"seconds", "ips"}:
                assert one[key] == pytest.approx(two[key], rel=2e-4), (name, key)
        weights = {"pt": "mae_pretrain.pdparams", "ft": "mae_finetune.pdparams"}[name]
        a, b = (load_file(tmp_path / f"{name}{ranks}" / weights) for ranks in (1, 2))
        for key in a:
            np.testing.assert_allclose(a[key], b[key], atol=1e-3, err_msg=key)


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("train_pretrain.py", ["-o", "Global.epochss=2"], "unknown key; did you mean epochs?"),
        ("train_pretrain.py", ["-o", "Model.name=mae_vit_b_p16"], "unknown key"),
        ("train_finetune.py", [], "train it with tools/train_pretrain.py"),
        ("evaluate.py", [], "say which weights: -o Global.pretrained_model=FILE"),
        (
            "visualize.py",
            ["--checkpoint", "absent.pdparams", "--output", "x.png"],
            "absent.pdparams",
        ),
    ],
)
def test_a_mistake_ends_in_one_line_and_exit_code_2(
    write_config, run_tool, tool, arguments, message
):
    run = run_tool(tool, "-c", write_config(TINY_PRETRAIN), *arguments)
    assert run.returncode == 2
    assert message in run.stderr and run.stderr.startswith("error: ")
    assert len(run.stderr.strip().splitlines()) == 1 and run.stdout == ""


def test_debug_shows_the_traceback(write_config, run_tool):
    config = write_config(TINY_PRETRAIN)
    run = run_tool("train_pretrain.py", "-c", config, "-o", "Global.epochss=2", "--debug")
    assert run.returncode == 1 and "Traceback" in run.stderr


def test_help_and_a_missing_config(run_tool):
    assert "--override" in succeeded(run_tool("train_pretrain.py", "--help"))
    run = run_tool("train_pretrain.py", "-c", "nowhere.yaml")
    assert run.returncode == 2 and "there is no config file nowhere.yaml" in run.stderr
