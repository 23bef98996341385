"""The library in the cache: what its name depends on, damage, no compiler; and the config's key."""

import hashlib

import pytest
from tiny_runs import TINY_PRETRAIN

from passl_mae.config import load_config
from passl_mae.engine.build import build_trainer
from passl_mae.fast import build, library_path, load
from passl_mae.fast.layers import is_accelerated

ON_A_MODEL = """
import passl_mae
passl_mae.runtime.import_paddle()
from paddle import nn
from passl_mae.fast import choose
model = nn.Sequential(nn.Linear(2, 2))
print(*choose(model, "auto"), type(model[0]).__name__)
"""


def test_it_is_built_once(operators, cache):
    before, files = operators.stat().st_mtime_ns, set(operators.parent.iterdir())
    assert build() == operators == library_path() == load()
    assert operators.stat().st_mtime_ns == before
    assert set(operators.parent.iterdir()) == files


def test_its_name_follows_source_versions_flags_and_processor(tmp_path, monkeypatch):
    import passl_mae.fast.library as module

    assert library_path().name == library_path().name
    names = {library_path().name}
    monkeypatch.setattr(module.paddle, "__version__", "9.9")
    names.add(library_path().name)
    monkeypatch.setattr(module, "_processor", lambda: "flags: none")
    names.add(library_path().name)
    monkeypatch.setattr(module, "FLAGS", ["-O0"])
    names.add(library_path().name)
    (tmp_path / "ops.cc").write_text("// another")
    monkeypatch.setattr(module, "SOURCES", tmp_path)
    names.add(library_path().name)
    assert len(names) == 5


def test_the_cache_folder_is_the_users_choice(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert library_path().parent == tmp_path / "passl_mae" / "ops"
    with pytest.raises(FileNotFoundError, match=r"`python tools/build_ops.py` builds them"):
        load()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert library_path().parent == tmp_path / ".cache" / "passl_mae" / "ops"


def test_without_a_compiler_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(OSError, match=r"apt-get install g\+\+"):
        build()
    assert not library_path().exists()


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_library_is_noticed(operators, tmp_path, monkeypatch, damage):
    content = operators.read_bytes()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library_path().parent.mkdir(parents=True)
    changed = content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]
    library_path().write_bytes({"cut": content[:-999], "changed": changed, "empty": b""}[damage])
    with pytest.raises(OSError, match=r"is damaged: build it again with .*--force"):
        load()


def test_training_goes_on_without_a_library_that_cannot_be_loaded(
    operators, tmp_path, monkeypatch, run_python
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = b"not a library"
    library_path().parent.mkdir(parents=True)
    library_path().write_bytes(code + hashlib.sha256(code).digest())
    printed = run_python(ON_A_MODEL, 1)
    assert printed.startswith("30 CPU operators: off, training goes on without them; ")
    assert "cannot be loaded" in printed and printed.endswith(" ProductBiasLinear\n")


@pytest.mark.parametrize(("value", "wish"), [(True, "on"), (False, "off"), ("auto", "auto")])
def test_yaml_reads_bare_on_and_off_as_booleans(write_config, value, wish):
    settings = {**TINY_PRETRAIN, "Global": {**TINY_PRETRAIN["Global"], "cpu_ops": value}}
    assert load_config(write_config(settings)).Global.cpu_ops == wish
    with pytest.raises(ValueError, match="cpu_ops"):
        load_config(write_config(settings), ["Global.cpu_ops=fast"])


def test_a_run_says_which_and_trains(write_config, operators, cache, tmp_path):
    losses = {}
    for wish in ("on", "off"):
        config = load_config(write_config(TINY_PRETRAIN, wish), [f"Global.cpu_ops={wish}"])
        trainer = build_trainer(config)
        assert is_accelerated(trainer.model) == (wish == "on")
        losses[wish] = trainer.train_epoch()["train_loss"]
        trainer.run.unlock()
    assert f"CPU operators: {operators}" in (tmp_path / "on" / "train.log").read_text()
    assert "CPU operators: off" in (tmp_path / "off" / "train.log").read_text()
    assert losses["on"] == pytest.approx(losses["off"], rel=1e-4)


def test_on_is_refused_where_they_are_not_built(write_config, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = load_config(write_config(TINY_PRETRAIN), ["Global.cpu_ops=on"])
    with pytest.raises(ValueError, match=r"Global.cpu_ops is on, but: .*build_ops.py"):
        build_trainer(config)
    assert not (tmp_path / "run").exists()
