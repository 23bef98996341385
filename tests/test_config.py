"""Configs: merging, overrides, refusals that name file, line, key and the nearest key."""

import re
from pathlib import Path

import pytest
import yaml

from passl_mae.config import dump_config, flatten, load_config

ROOT = Path(__file__).resolve().parents[1]

MINIMAL = """\
Global:
  output_dir: out
  epochs: 7
Model:
  name: mae_vit_t_p4_dec128d2b
Data:
  name: Shapes
Optimizer:
  blr: 1e-3
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="run.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_defaults_are_filled_in_and_exponents_without_a_dot_are_numbers(write):
    config = load_config(write(MINIMAL))
    assert config.Global.epochs == 7 and config.Global.seed == 0
    assert config.Optimizer.blr == 0.001  # YAML 1.1 reads 1e-3 as text
    assert config.Model.mask_ratio == 0.75 and config.task == "pretrain"


def test_the_model_name_decides_the_task(write):
    config = load_config(write(MINIMAL), ["Model.name=mae_vit_b_p16", "Model.num_classes=5"])
    assert config.task == "classify" and config.Model.num_classes == 5


def test_base_files_are_merged_deeply_and_later_ones_win(write):
    write(MINIMAL, "base.yaml")
    child = write("_base_: base.yaml\nGlobal: {epochs: 9}\nData: {train: {hflip: 0}}\n", "c.yaml")
    config = load_config(child)
    assert config.Global.epochs == 9 and config.Global.output_dir == "out"
    assert config.Data.train.hflip == 0 and config.Data.name == "Shapes"
    write("Global: {epochs: 11, seed: 4}\n", "second.yaml")
    config = load_config(write("_base_: [base.yaml, second.yaml]\n", "two.yaml"))
    assert (config.Global.epochs, config.Global.seed) == (11, 4)


def test_overrides_win_over_the_file_and_are_read_as_yaml(write):
    overrides = [
        "Global.epochs=3",
        "Optimizer.blr=2e-4",
        "Model.img_size=[16, 32]",
        "AMP.level=off",
    ]
    config = load_config(write(MINIMAL), overrides)
    assert config.Global.epochs == 3 and config.Optimizer.blr == 2e-4
    assert config.Model.img_size == [16, 32] and config.AMP.level == "off"


def test_the_dump_loads_to_the_same_config(write):
    config = load_config(write(MINIMAL), ["Global.seed=5", "Data.mean=[0.5, 0.5, 0.5]"])
    assert load_config(write(dump_config(config), "dump.yaml")) == config


def test_flatten_gives_dotted_names():
    assert flatten({"A": {"b": 1, "c": {"d": [2]}}, "e": None}) == {
        "A.b": 1,
        "A.c.d": [2],
        "e": None,
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "epochs: 7",
            "epochss: 7",
            r"run.yaml, line 3: Global.epochss: unknown key.*mean epochs\?",
        ),
        ("epochs: 7", "epochs: seven", r"line 3: Global.epochs: .*valid integer, got 'seven'"),
        ("epochs: 7", "epochs: 1.5", r"line 3: Global.epochs: .*valid integer, got 1.5"),
        ("epochs: 7", "epochs: 0", r"line 3: Global.epochs: .*greater than or equal to 1, got 0"),
        ("epochs: 7", "use_visualdl: 1", r"line 3: Global.use_visualdl: .*valid boolean, got 1"),
        ("epochs: 7", "epochs: 7\n  epochs: 8", r"line 4: epochs is given twice"),
        ("name: Shapes", "name: Shape", r"line 7: Data.name: .*'Shape'; did you mean Shapes\?"),
        ("dec128d2b", "dec128d2c", r"line 5: Model.name: .*did you mean mae_vit_t_p4_dec128d2b\?"),
        ("dec128d2b", "dec128d2b\n  mask_ratio: 1.0", r"line 6: Model.mask_ratio: .*less than 1"),
        ("dec128d2b", "dec128d2b\n  num_classes: 3", r"line 6: Model.num_classes: unknown key"),
        ("blr: 1e-3", "beta1: 0.9", r"line 8: Optimizer: set exactly one of blr"),
        ("blr: 1e-3", "blr: fast", r"line 9: Optimizer.blr: .*valid number, got 'fast'"),
        ("Optimizer:\n  blr: 1e-3\n", "", r"Optimizer: this key is required"),
        ("Global:", "Globl:", r"line 1: Globl: unknown key; did you mean Global\?"),
        ("Global:", "Global: [", r"run.yaml: not valid YAML"),
    ],
)
def test_mistakes_are_named_with_file_line_and_key(write, old, new, message):
    with pytest.raises(ValueError, match=message):
        load_config(write(MINIMAL.replace(old, new)))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("Global.epochs", "-o Global.epochs: write it as Key.sub=value"),
        ("=3", "-o =3: write it as"),
        ("Global.epochs.x=3", "-o Global.epochs.x=3: Global.epochs holds a value"),
        ("Global.epoch=3", "-o Global.epoch=3: Global.epoch: unknown key; did you mean epochs"),
        ("Global.epochs=[", r"'\[' is not a YAML value"),
        ("Optimizer.learning_rate=0.1", "Optimizer: set exactly one of blr"),
    ],
)
def test_mistakes_in_overrides_name_the_override(write, override, message):
    with pytest.raises(ValueError, match=message):
        load_config(write(MINIMAL), [override])


def test_all_mistakes_are_told_at_once(write):
    with pytest.raises(ValueError, match=r"Global.epochss.*Optimizer.wieght_decay"):
        load_config(write(MINIMAL.replace("epochs:", "epochss:")), ["Optimizer.wieght_decay=0"])


def test_missing_files_and_circles(write, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no config file .*nowhere.yaml"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(
        FileNotFoundError, match=r"absent.yaml, which .*child.yaml names under _base_"
    ):
        load_config(write("_base_: absent.yaml\n", "child.yaml"))
    write("_base_: b.yaml\n", "a.yaml")
    with pytest.raises(ValueError, match="_base_ goes round in a circle"):
        load_config(write("_base_: a.yaml\n", "b.yaml"))


def test_a_file_that_is_no_mapping_or_no_text(write, tmp_path):
    with pytest.raises(ValueError, match="a config is a mapping of sections"):
        load_config(write("- 1\n- 2\n"))
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match="not a text file in UTF-8"):
        load_config(binary)


def test_yaml_tags_build_no_objects(write):
    with pytest.raises((ValueError, yaml.YAMLError)):
        load_config(write(MINIMAL.replace("out", "!!python/object/apply:os.getcwd []")))


def test_every_shipped_config_is_valid():
    # grids are planned in tests/test_ablation.py
    files = sorted(
        file for file in (ROOT / "configs").rglob("*.yaml") if "ablation" not in file.parts
    )
    assert len(files) >= 2
    for file in files:
        config = load_config(file)
        task = {"pretrain": "pretrain", "moco": "contrast"}.get(file.parent.name, "classify")
        assert config.task == task, file


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.name)
def test_every_config_says_its_command_and_where_it_was_run(path):
    head = path.read_text(encoding="utf-8").split("Global:")[0].split("output_dir:")[0]
    header = "\n".join(line for line in head.splitlines() if line.startswith("#"))
    assert re.search(r"python .*tools/\w+\.py", header), "the command"
    assert re.search(r"[Nn]ot run|Run on .*\d{4}-\d\d-\d\d", header.replace("\n# ", " "), re.S)


def test_a_dump_is_the_same_when_it_is_read_and_dumped_again(write, tmp_path):
    """A default of 0 for a number would be dumped as 0, and as 0.0 the next time."""
    first = dump_config(load_config(write(MINIMAL)))
    again = tmp_path / "again.yaml"
    again.write_text(first, encoding="utf-8")
    assert dump_config(load_config(again)) == first
