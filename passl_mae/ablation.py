"""A grid of runs from one YAML: what is varied, which runs that takes, and what came out.

    output_dir: output/ablation/mask_ratio
    ranks: 2
    pretrain: {config: ../pretrain/cifar10_cpu.yaml, set: {Global.epochs: 4}}
    finetune: {config: ../finetune/cifar10_cpu.yaml}
    probes: [knn, linear]
    seeds: [0, 1, 2]
    grid:
      pretrain.Model.mask_ratio: [0.25, 0.5, 0.75, 0.9]

An axis of the grid is a setting with its values, or a name with named sets of settings. A run's
folder is named by what it depends on, so cells share the runs they have in common, and a grid that
was stopped, or has grown, goes on with what is missing.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Optional, Union

import numpy as np
import yaml
from pydantic import Field, ValidationError

from passl_mae.config import RunConfig, load_config
from passl_mae.files import hash_file, read_json, replacing
from passl_mae.schema import Count, Section

SECTIONS = ("pretrain", "finetune")
PRETRAINED = "Global.pretrained_model"


class RunSpec(Section):
    config: str = Field(description="a config file, from the folder of this one")
    set: dict[str, Any] = Field({}, description="settings for every run, as -o has them")


class Ablation(Section):
    """The YAML of `tools/ablate.py`."""

    output_dir: str = Field(description="folder of the runs, results.csv and results.png")
    ranks: Count = Field(1, description="processes that train one run")
    pretrain: Optional[RunSpec] = Field(None, description="the encoder of a cell")
    finetune: RunSpec = Field(description="finetuning, or the images that probes see")
    finetuning: bool = Field(True, description="false: probes only")
    probes: list[Literal["knn", "linear"]] = Field([], description="of the frozen encoder")
    probe_options: dict[Literal["knn", "linear"], list[str]] = Field(
        {}, description="further options of tools/knn.py and tools/linear_probe.py"
    )
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = Field(
        [0], description="Global.seed of the runs of each cell"
    )
    grid: dict[str, Union[list[Any], dict[str, dict[str, Any]]]] = Field(
        {}, description="axes: a setting with its values, or a name with named sets of settings"
    )
    plot: Optional[str] = Field(None, description="the axis that results.png has as x")


class Job(NamedTuple):
    """One training run: its settings (`-o`), its resolved config and its folder."""

    config_file: Path
    overrides: list[str]
    config: RunConfig
    folder: Path


class Cell(NamedTuple):
    """A combination of the grid with one seed; axes: what each axis has here, as text."""

    axes: dict[str, str]
    seed: int
    pretrain: Optional[Job]
    finetune: Job
    encoder: Optional[Path]  # what finetuning and probes start from; None: from scratch


def load_ablation(path: str | Path, overrides: Sequence[str] = ()) -> Ablation:
    """Reads the YAML.

    Args:
        overrides: plain keys, such as "seeds=[0]", and settings of every run, such as
            "finetune.Data.path=cifar.tar.gz".

    Raises:
        ValueError: not such a file; the key and what is wrong with it.
    """
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise TypeError("it holds no keys with values")
        for override in overrides:
            _apply_override(settings, override)
        ablation = Ablation.model_validate(settings)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ValueError(f"{path}: {'; '.join(problems)}") from None
    except (yaml.YAMLError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not the YAML of an ablation: {error}") from None
    empty = next((name for name, values in ablation.grid.items() if not values), None)
    if empty is not None:
        raise ValueError(f"{path}: grid: {empty} has no values, so there is nothing to run")
    if ablation.plot is not None and ablation.plot not in ablation.grid:
        raise ValueError(f"{path}: plot: {ablation.plot} is no axis of the grid")
    if ablation.pretrain is None and any(
        key.startswith("pretrain.") for chosen in _choices(ablation) for key in chosen.settings
    ):
        raise ValueError(f"{path}: the grid varies pretrain, and there is no section pretrain")
    return ablation


def _apply_override(settings: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"-o {override}: write it as key=value, e.g. seeds=[0]")
    section, _, key = name.partition(".")
    target = settings
    if section in SECTIONS and key and isinstance(settings.get(section), dict):
        target, name = settings[section].setdefault("set", {}), key
    try:
        target[name] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"-o {override}: {text!r} is not a YAML value") from None


class _Choice(NamedTuple):
    axes: dict[str, str]
    settings: dict[str, Any]


def _choices(ablation: Ablation) -> list[_Choice]:
    """Every combination of the axes' values, with the settings that it stands for.

    Raises:
        ValueError: a setting that is neither of pretraining nor of finetuning.
    """
    axes = []
    for name, values in ablation.grid.items():
        if isinstance(values, dict):
            axes.append([_Choice({name: label}, settings) for label, settings in values.items()])
        else:
            axes.append([_Choice({name: _text(value)}, {name: value}) for value in values])
    result = []
    for parts in itertools.product(*axes):
        merged = _Choice({}, {})
        for part in parts:
            merged.axes.update(part.axes)
            merged.settings.update(part.settings)
        for key in merged.settings:
            if key.partition(".")[0] not in SECTIONS:
                raise ValueError(f"grid: {key} must begin with pretrain. or finetune.")
        result.append(merged)
    return result


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def plan(ablation: Ablation, file: str | Path, root: Path) -> list[Cell]:
    """The cells, every seed of a combination after the other.

    Args:
        file: the YAML that the ablation was read from; its configs are named relative to it.
        root: the folder in which paths of files, such as weights, are taken.

    Raises:
        ValueError: a config that does not exist or does not take its settings.
    """
    output = Path(ablation.output_dir)
    cells = []
    for choice, seed in itertools.product(_choices(ablation), ablation.seeds):
        chosen: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        for key, value in choice.settings.items():
            section, _, name = key.partition(".")
            chosen[section][name] = value
        base = Path(file).parent
        pretrain = encoder = None
        if ablation.pretrain is not None:
            settings = {"Global.seed": seed, **ablation.pretrain.set, **chosen["pretrain"]}
            pretrain = _job(base / ablation.pretrain.config, settings, output / "pretrain", root)
            encoder = pretrain.folder / "encoder.pdparams"
        settings = {"Global.seed": seed, **ablation.finetune.set, **chosen["finetune"]}
        if encoder is not None:
            settings.setdefault(PRETRAINED, str(encoder))
        finetune = _job(base / ablation.finetune.config, settings, output / "finetune", root)
        start = finetune.config.Global.pretrained_model
        cells.append(Cell(choice.axes, seed, pretrain, finetune, start and Path(start)))
    return cells


def _job(config_file: Path, settings: Mapping[str, Any], folder: Path, root: Path) -> Job:
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    config = load_config(config_file, overrides)
    # What is at its default is left out: a key that a later version adds makes no run another one.
    depends_on = config.model_dump(
        exclude={"Global": {"output_dir", "checkpoints"}}, exclude_defaults=True
    )
    digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode())
    weights = config.Global.pretrained_model
    # Weights from elsewhere count by what they hold: an encoder that was trained anew is another.
    # The grid's own have a name that says it, and are not there yet when it is planned.
    elsewhere = weights is not None and folder.parent not in Path(weights).parents
    if elsewhere and (root / weights).is_file():
        hash_file(root / weights, digest)
    own = folder / digest.hexdigest()[:10]
    return Job(config_file, [*overrides, f"Global.output_dir={own}"], config, own)


def row_of(cell: Cell, root: Path) -> dict[str, Any]:
    """What the files of a cell's runs say, one column a figure; accuracies as shares."""
    row: dict[str, Any] = {**cell.axes, "seed": cell.seed}
    if cell.pretrain is not None:
        metrics = _last_row(root / cell.pretrain.folder / "metrics.jsonl")
        row["pretrain_loss"] = metrics.get("train_loss")
    folder = root / cell.finetune.folder
    metrics, result = _last_row(folder / "metrics.jsonl"), _figures(folder / "result.json")
    row["finetune_val_top1"] = metrics.get("eval_top1")
    row["finetune_test_top1"] = result.get("test_top1")
    for probe in ("knn", "linear"):
        row[f"{probe}_top1"] = _figures(folder / f"{probe}.json").get("top1")
    return row


def _last_row(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    lines = file.read_text(encoding="utf-8").splitlines()
    return json.loads(lines[-1]) if lines else {}


def _figures(file: Path) -> dict[str, Any]:
    return read_json(file) if file.exists() else {}


def write_csv(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """One row a cell and seed; columns without any figure are left out."""
    columns = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with replacing(file) as beside:
        beside.write_text(text.getvalue(), encoding="utf-8")


class Summary(NamedTuple):
    """A combination over its seeds: column -> (mean, standard deviation, number of seeds)."""

    axes: dict[str, str]
    figures: dict[str, tuple[float, float, int]]


def summarise(rows: Sequence[Mapping[str, Any]], axes: Sequence[str]) -> list[Summary]:
    """Rows of the same axes as one; the standard deviation is the sample's (n - 1), 0 for one."""
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[axis] for axis in axes), []).append(row)
    result = []
    for key, members in groups.items():
        figures = {}
        for name in members[0].keys() - {*axes, "seed"}:
            values = np.array([m[name] for m in members if m[name] is not None], dtype=np.float64)
            if len(values):
                spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
                figures[name] = (float(values.mean()), spread, len(values))
        result.append(Summary(dict(zip(axes, key)), figures))
    return result


def table(summaries: Sequence[Summary]) -> str:
    """The summaries as a Markdown table; accuracies in per cent, mean ± standard deviation."""
    names = sorted({name for summary in summaries for name in summary.figures})
    axes = list(summaries[0].axes)
    lines = ["| " + " | ".join([*axes, *names]) + " |", "|---" * (len(axes) + len(names)) + "|"]
    for summary in summaries:
        shown = [_figure(name, summary.figures.get(name)) for name in names]
        lines.append("| " + " | ".join([*summary.axes.values(), *shown]) + " |")
    return "\n".join(lines)


def _figure(name: str, figure: tuple[float, float, int] | None) -> str:
    if figure is None:
        return ""
    mean, spread, seeds = figure
    scale, digits = (100, 1) if name.endswith("top1") else (1, 4)
    text = f"{scale * mean:.{digits}f}"
    return text if seeds == 1 else f"{text} ± {scale * spread:.{digits}f} ({seeds})"
