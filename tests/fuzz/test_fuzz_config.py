"""Whatever a config holds: reading it gives settings, or one line that says what is wrong."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny_runs import TINY_FINETUNE, TINY_PRETRAIN

from passl_mae.config import RunConfig, dump_config, flatten, load_config

quick = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
KEYS = sorted(
    {key for run in (TINY_PRETRAIN, TINY_FINETUNE) for key in flatten(run)}
    | {"Global", "Model", "Data", "Data.train", "_base_", "Global.device", "Model.img_size"}
    | {"Data.train.crop_scale", "Data.mean", "AMP.level", "Global.seed.x", "", ".", "Global."}
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["latest", "1e-3", "off", "~", "=", "nan", ".inf", "2001-01-01", "0x10"]),
    st.dates(),
    st.binary(max_size=4),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | SCALARS, inner)
    ),
    max_leaves=6,
)


def refused_in_a_line_or_read(path: Path, overrides=()) -> RunConfig | None:
    try:
        config = load_config(path, overrides)
    except (ValueError, FileNotFoundError) as error:
        assert str(error)
        return None
    assert isinstance(config, RunConfig)
    return config


@quick
@given(st.lists(st.tuples(st.sampled_from(KEYS), VALUES), min_size=1, max_size=4))
def test_any_values_under_known_keys(changes):
    with tempfile.TemporaryDirectory() as folder:
        run = yaml.safe_load(yaml.safe_dump(TINY_PRETRAIN))
        for key, value in changes:
            section = run
            *parents, last = key.split(".")
            for parent in parents:
                section = section.get(parent) if isinstance(section, dict) else None
            if isinstance(section, dict):
                section[last] = value
        path = Path(folder) / "run.yaml"
        path.write_text(yaml.safe_dump(run), encoding="utf-8")
        config = refused_in_a_line_or_read(path)
        if config is not None:  # what is accepted can be written down and read again
            path.write_text(dump_config(config), encoding="utf-8")
            assert dump_config(load_config(path)) == dump_config(config)


@quick
@given(st.binary(max_size=80) | st.text(alphabet="&*!{}[]:,#|>-?%@`\"' \n\tab1._", max_size=40))
@example(b"a: &a [*a]")
@example(b"Global: &g {x: *g}")
@example(b"? [a, b]\n: 1")
@example(b"? {a: b}\n: 1")
@example(b"[]: 1")
@example(b"_base_: [1, 2]")
@example(b"_base_: {a: b}")
@example(b"_base_: ..")
@example(b"_base_: /dev/null")
@example(b"_base_: 'a\\0b'")
@example(b"Global: {seed: !!python/object/apply:os.getcwd []}")
@example(b"Global: !!binary '*'")
@example(b"Global: {seed: !!int x}")
@example(b"Global: {seed: !!timestamp x}")
@example(b"a: 2001-99-99")
@example(b"a: 1:99999999999999999999999999999:1")
@example(b"<<: 1")
@example(b"Global: {<<: [1]}")
@example(b"Global: {<<: {seed: 1}}")
@example(b"\xff\xfe")
def test_any_bytes_as_a_config(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        refused_in_a_line_or_read(path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY_PRETRAIN))
    return path


@quick
@given(
    overrides=st.lists(
        st.one_of(
            st.text(max_size=20),
            st.tuples(st.sampled_from(KEYS), st.text(max_size=10)).map("=".join),
            st.tuples(
                st.sampled_from(KEYS), st.text(alphabet="&*!{}[]:,#|>-?%@`\"' 10.e", max_size=12)
            ).map("=".join),
        ),
        min_size=1,
        max_size=3,
    )
)
@example(overrides=["Global.seed=!!int x"])
@example(overrides=["Global.seed=2001-99-99"])
@example(overrides=["Global=1", "Global.seed=1"])
@example(overrides=["Global.seed=\0"])
@example(overrides=["Global.seed=[" * 2000])
@example(overrides=["Global.seed=&a [*a]"])
@example(overrides=["Data.mean=&a [*a]"])
@example(overrides=["Data.train={1: 2}"])
@example(overrides=["Model.name=[1]"])
@example(overrides=["Global.seed=" + "9" * 5000])
@example(overrides=["Data={? [1]: 2}"])
def test_any_overrides(tiny, overrides):
    refused_in_a_line_or_read(tiny, overrides)


def test_deep_nesting_is_refused(tmp_path):
    path = tmp_path / "deep.yaml"
    path.write_text("a: " + "[" * 100_000)
    with pytest.raises(ValueError, match=r"deep\.yaml"):
        load_config(path)
    path.write_text("".join(" " * depth + "a:\n" for depth in range(3000)))
    with pytest.raises(ValueError):
        load_config(path)


def test_a_billion_laughs_are_refused(tmp_path):
    """Aliases of aliases: 10 levels of 10 would be ten thousand million values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 10):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    path = tmp_path / "laughs.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError) as refused:
        load_config(path)
    assert len(str(refused.value)) < 20_000


def test_aliases_that_multiply_or_go_round_are_refused(tmp_path):
    lines = ["a0: &a0 {p: 1, q: 1, r: 1, s: 1}"]
    for level in range(1, 16):
        lines.append(f"a{level}: &a{level} {{{', '.join(f'{k}: *a{level - 1}' for k in 'pqrs')}}}")
    path = tmp_path / "multiply.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="nested too deeply, or too many keys"):
        load_config(path)
    path.write_text("Global: &g {x: *g}")
    with pytest.raises(ValueError, match="nested too deeply, or too many keys"):
        load_config(path)


def test_a_device_is_not_read_for_ever(tmp_path):
    path = tmp_path / "device.yaml"
    path.write_text("_base_: /dev/zero")
    with pytest.raises(ValueError, match="/dev/zero: a folder or a device, not a config file"):
        load_config(path)
