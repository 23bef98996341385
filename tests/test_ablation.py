"""passl_mae/ablation.py and tools/ablate.py: the plan, the table, and a grid that really runs."""

import csv
import itertools
import json
import re
from pathlib import Path

import pytest
import yaml
from tiny_runs import TINY_FINETUNE, TINY_PRETRAIN

from passl_mae.ablation import load_ablation, plan, row_of, summarise, table, write_csv

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def write_grid(write_config, tmp_path):
    """`write_grid(grid, **others)`: the YAML of a grid over the tiny runs."""
    write_config(TINY_PRETRAIN, "pt"), write_config(TINY_FINETUNE, "ft")

    def write(grid, **others):
        settings = {
            "output_dir": str(tmp_path / "grid"),
            "pretrain": {"config": "pt.yaml", "set": {"Global.epochs": 1}},
            "finetune": {"config": "ft.yaml", "set": {"Global.epochs": 1}},
            "grid": grid,
            **others,
        }
        path = tmp_path / "grid.yaml"
        path.write_text(
            yaml.safe_dump({k: v for k, v in settings.items() if v is not None}, sort_keys=False)
        )
        return path

    return write


def cells_of(path, tmp_path):
    return plan(load_ablation(path), path, tmp_path)


def test_the_plan_is_the_product_and_shares_what_is_equal(write_grid, tmp_path):
    path = write_grid(
        {
            "pretrain.Model.mask_ratio": [0.5, 0.75],
            "labels": {
                "few": {"finetune.Data.train.labels_per_class": 2},
                "all": {"finetune.Optimizer.layer_decay": 0.75},
            },
        },
        seeds=[0, 1],
    )
    cells = cells_of(path, tmp_path)
    combinations = itertools.product(["0.5", "0.75"], ["few", "all"], [0, 1])
    assert [(*cell.axes.values(), cell.seed) for cell in cells] == list(combinations)
    # two ratios x two seeds are pretrained, each for both kinds of labels
    assert len({cell.pretrain.folder for cell in cells}) == 4
    assert len({cell.finetune.folder for cell in cells}) == 8
    first, third = cells[0], cells[2]
    assert first.pretrain == third.pretrain and first.pretrain.config.Model.mask_ratio == 0.5
    assert first.finetune.config.Data.train.labels_per_class == 2
    assert third.finetune.config.Optimizer.layer_decay == 0.75
    assert third.finetune.config.Data.train.labels_per_class is None
    assert {cell.finetune.config.Global.seed for cell in cells} == {0, 1}
    assert first.encoder == first.pretrain.folder / "encoder.pdparams"
    assert first.finetune.config.Global.pretrained_model == str(first.encoder)
    assert cells_of(path, tmp_path) == cells  # nothing random in it


def test_scratch_and_given_encoders_and_fixed_seeds(write_grid, tmp_path):
    encoder = tmp_path / "encoder.pdparams"
    encoder.write_bytes(b"one")
    grid = {"finetune.Global.pretrained_model": [None, str(encoder)]}
    path = write_grid(grid, pretrain=None)
    scratch, pretrained = cells_of(path, tmp_path)
    assert scratch.encoder is None and pretrained.encoder == encoder and scratch.pretrain is None
    encoder.write_bytes(b"another")  # other weights: another run
    again = cells_of(path, tmp_path)
    assert again[0].finetune.folder == scratch.finetune.folder
    assert again[1].finetune.folder != pretrained.finetune.folder
    path = write_grid({}, seeds=[5, 6], pretrain={"config": "pt.yaml", "set": {"Global.seed": 3}})
    five, six = cells_of(path, tmp_path)
    assert five.pretrain == six.pretrain and five.pretrain.config.Global.seed == 3
    assert five.finetune.config.Global.seed == 5


def test_overrides_are_keys_of_the_file_and_settings_of_every_run(write_grid, tmp_path):
    path = write_grid({}, seeds=[4, 5])
    ablation = load_ablation(path, ["seeds=[7]", "finetune.Optimizer.blr=1e-3", "ranks=2"])
    (cell,) = plan(ablation, path, tmp_path)
    assert cell.seed == 7 and cell.finetune.config.Optimizer.blr == 1e-3 and ablation.ranks == 2
    assert cell.pretrain.config.Optimizer.blr == 1e-2
    with pytest.raises(ValueError, match="-o seeds: write it as key=value"):
        load_ablation(path, ["seeds"])
    with pytest.raises(ValueError, match=re.escape("-o seeds=[0: '[0' is not a YAML value")):
        load_ablation(path, ["seeds=[0"])
    for text in ("", "- seeds"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"grid\.yaml: not the YAML of an ablation"):
            load_ablation(path, ["pretrain.Global.epochs=1"])


def test_a_grid_that_has_made_its_encoder_keeps_its_folders(write_grid, tmp_path):
    path = write_grid({"pretrain.Model.mask_ratio": [0.5]})
    (before,) = cells_of(path, tmp_path)
    before.encoder.parent.mkdir(parents=True)
    before.encoder.write_bytes(b"trained")
    assert cells_of(path, tmp_path) == [before]


def test_a_setting_at_its_default_is_no_other_run(write_grid, tmp_path):
    (plain,) = cells_of(write_grid({}), tmp_path)
    (spelt,) = cells_of(write_grid({"finetune.Optimizer.layer_decay": [1.0]}), tmp_path)
    (other,) = cells_of(write_grid({"finetune.Optimizer.layer_decay": [0.9]}), tmp_path)
    assert plain.finetune.folder == spelt.finetune.folder != other.finetune.folder


def test_mean_and_standard_deviation_over_seeds(tmp_path):
    rows = [
        {"ratio": "0.5", "seed": 0, "finetune_test_top1": 0.50, "knn_top1": None, "loss": 1.0},
        {"ratio": "0.5", "seed": 1, "finetune_test_top1": 0.60, "knn_top1": None, "loss": 2.0},
        {"ratio": "0.9", "seed": 0, "finetune_test_top1": 0.25, "knn_top1": None, "loss": None},
        {"ratio": "0.9", "seed": 1, "finetune_test_top1": None, "knn_top1": None, "loss": None},
    ]
    half, most = summarise(rows, ["ratio"])
    mean, spread, seeds = half.figures["finetune_test_top1"]
    # deviations of 0.05 to both sides: sqrt((0.05^2 + 0.05^2) / 1)
    assert (mean, spread, seeds) == (pytest.approx(0.55), pytest.approx(0.0707107, rel=1e-5), 2)
    assert most.figures == {"finetune_test_top1": (0.25, 0.0, 1)}
    text = table([half, most])
    assert "| 0.5 | 55.0 ± 7.1 (2) | 1.5000 ± 0.7071 (2) |" in text and "| 0.9 | 25.0 |  |" in text
    write_csv(rows, tmp_path / "r.csv")
    with (tmp_path / "r.csv").open() as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == ["ratio", "seed", "finetune_test_top1", "loss"]
    assert read[3] == {"ratio": "0.9", "seed": "1", "finetune_test_top1": "", "loss": ""}


@pytest.mark.parametrize("text", ["", "[1]", '{"test_top1": 0.'])
def test_figures_that_cannot_be_read_are_named(write_grid, tmp_path, text):
    (cell,) = cells_of(write_grid({}), tmp_path)
    cell.finetune.folder.mkdir(parents=True)
    result = cell.finetune.folder / "result.json"
    result.write_text(text)
    with pytest.raises(ValueError, match=f"{re.escape(str(result))}: not (JSON|a JSON object)"):
        row_of(cell, tmp_path)
    result.write_text('{"test_top1": 0.5}')
    assert row_of(cell, tmp_path)["finetune_test_top1"] == 0.5


@pytest.mark.parametrize(
    ("grid", "others", "message"),
    [
        ({"Model.mask_ratio": [0.5]}, {}, "must begin with pretrain. or finetune."),
        ({"pretrain.Model.mask_ratios": [0.5]}, {}, "did you mean mask_ratio"),
        ({"pretrain.Model.mask_ratio": [0.5]}, {"pretrain": None}, "there is no section pretrain"),
        ({}, {"seeds": []}, "seeds: List should have at least 1 item"),
        ({}, {"probe": ["knn"]}, "probe: Extra inputs"),
        ({}, {"plot": "ratio"}, "ratio is no axis of the grid"),
        ({"pretrain.Model.mask_ratio": []}, {}, "grid: pretrain.Model.mask_ratio has no values"),
        ({}, {"finetune": {"config": "absent.yaml"}}, "there is no config file"),
    ],
)
def test_mistakes_are_named(write_grid, tmp_path, grid, others, message):
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        cells_of(write_grid(grid, **others), tmp_path)


@pytest.mark.slow
def test_a_grid_runs_stops_and_grows(write_grid, run_tool, tmp_path):
    axis = "pretrain.Model.mask_ratio"
    linear = ["--batch-size", "16", "--epochs", "3", "--warmup-epochs", "0"]
    others = {"probes": ["knn", "linear"], "plot": axis, "probe_options": {"linear": linear}}
    first = run_tool("ablate.py", "-c", write_grid({axis: [0.5]}, **others))
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    assert first.stdout.count("  $ python") == 5
    grown = run_tool("ablate.py", "-c", write_grid({axis: [0.5, 0.75]}, **others))
    assert grown.returncode == 0, grown.stdout[-3000:] + grown.stderr[-3000:]
    assert grown.stdout.count("  $ python") == 5
    with (tmp_path / "grid/results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row[axis] for row in rows] == ["0.5", "0.75"]
    cell = cells_of(tmp_path / "grid.yaml", tmp_path)[1]
    tested = json.loads((cell.finetune.folder / "result.json").read_text())
    assert float(rows[1]["finetune_test_top1"]) == tested["test_top1"]
    knn = json.loads((cell.finetune.folder / "knn.json").read_text())
    assert float(rows[1]["knn_top1"]) == knn["top1"] and knn["k"] == 20
    assert (tmp_path / "grid/results.png").stat().st_size > 5000
    again = run_tool("ablate.py", "-c", tmp_path / "grid.yaml")
    assert "  $ python" not in again.stdout and "| 0.75 |" in again.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "configs/ablation").glob("*.yaml")), ids=str)
def test_the_grids_that_come_with_it_can_be_planned(path):
    ablation = load_ablation(path)
    cells = plan(ablation, path, ROOT)
    assert len({(*cell.axes.values(), cell.seed) for cell in cells}) == len(cells) >= 2
    assert len({cell.finetune.folder for cell in cells}) == len(cells)
