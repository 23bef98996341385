"""tools/demo.py: the way from end to end, again, after a stop, and in the wrong folder."""

import json
import shutil

import numpy as np
import pytest
from tiny_runs import TINY_FINETUNE, TINY_PRETRAIN

from passl_mae.models.weights import load_file


@pytest.fixture
def demo(write_config, run_tool, tmp_path):
    pretrain, finetune = write_config(TINY_PRETRAIN, "pt"), write_config(TINY_FINETUNE, "ft")
    configs = ["--pretrain-config", pretrain, "--finetune-config", finetune]
    return lambda: run_tool("demo.py", "--output-dir", tmp_path / "demo", *configs)


@pytest.mark.slow
def test_all_steps_then_nothing_left_then_only_what_is_missing(demo, tmp_path):
    first = demo()
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-2000:]
    assert first.stdout.count("  $ python tools/") == 5
    # Of a run's log the progress is shown, and not the settings or the names of all weights.
    assert "[Train][Epoch 2/2][Iter 2/4]" in first.stdout and "[Iter 4/4]" not in first.stdout
    assert "print_batch_step" not in first.stdout and "blocks.0" not in first.stdout

    out = tmp_path / "demo"
    top1 = {}
    for name in ("scratch", "pretrained"):
        result = json.loads((out / f"finetune_{name}" / "result.json").read_text())
        top1[name] = 100 * result["test_top1"]
    assert f"from scratch {top1['scratch']:18.1f} %" in first.stdout
    assert f"from the MAE's encoder {top1['pretrained']:8.1f} %" in first.stdout
    for picture in ("reconstructions.png", "pretrain/curves.png", "finetune_scratch/curves.png"):
        assert str(out / picture) in first.stdout and (out / picture).is_file()

    # Both runs have the same settings, but for where they start.
    settings = [(out / f"finetune_{name}" / "config.yaml").read_text() for name in top1]
    differing = set(settings[0].splitlines()) ^ set(settings[1].splitlines())
    assert {line.split(":")[0].strip() for line in differing} == {"output_dir", "pretrained_model"}

    second = demo()
    assert second.returncode == 0 and "Nothing was left to do" in second.stdout
    assert "  $ python" not in second.stdout

    # As a stop after the first epoch leaves it.
    shutil.rmtree(out / "finetune_pretrained/checkpoints/epoch_0002")
    (out / "finetune_pretrained/mae_finetune.pdparams").rename(tmp_path / "before.pdparams")
    third = demo()
    assert third.returncode == 0, third.stdout[-2000:] + third.stderr[-2000:]
    assert third.stdout.count("  $ python") == 1 and "epoch 1, step 4" in third.stdout
    before = load_file(tmp_path / "before.pdparams")
    after = load_file(out / "finetune_pretrained/mae_finetune.pdparams")
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_it_stops_with_the_message_of_the_command_that_failed(write_config, run_tool, tmp_path):
    settings = {**TINY_PRETRAIN, "Data": {**TINY_PRETRAIN["Data"], "batch_size": 100}}
    configs = ["--pretrain-config", write_config(settings, "pt")]
    run = run_tool("demo.py", "--output-dir", tmp_path / "demo", *configs)
    assert run.returncode == 2
    assert run.stderr.startswith(
        "error: Pretrain on images without their labels: tools/train_pretrain.py ended with exit "
        "code 2: "
    )
    assert "100" in run.stderr and run.stderr.count("\n") == 1


def test_a_folder_that_is_no_demo_or_one_of_other_settings_is_refused(demo, run_tool, tmp_path):
    out = tmp_path / "demo"
    (out / "pretrain").mkdir(parents=True)
    (out / "pretrain/config.yaml").write_text(
        (tmp_path / "pt.yaml").read_text().replace("seed: 3", "seed: 4")
    )
    run = demo()
    assert run.returncode == 2 and "Global.seed = 4, which is 3 now" in run.stderr
    shutil.rmtree(out / "pretrain")
    (out / "photo.png").touch()
    run = demo()
    assert run.returncode == 2 and "holds something else than a demo" in run.stderr
    assert [path.name for path in out.iterdir()] == ["photo.png"]
