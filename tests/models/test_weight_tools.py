"""tools/convert_weights.py and tools/extract_encoder.py, run as a user runs them."""

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from passl_mae import MAE_FineTune, MAE_Pretrain
from passl_mae.models.weights import convert, load_file, load_into, save_file

ROOT = Path(__file__).resolve().parents[2]
MODEL = dict(img_size=16, patch_size=4, embed_dim=24, depth=1, num_heads=3)
DECODER = dict(decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)


def run(tool, *arguments, cwd):
    """Runs a tool from another folder: a checkout needs no installation."""
    command = [sys.executable, str(ROOT / "tools" / f"{tool}.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.fixture
def state():
    model = MAE_Pretrain(**MODEL, **DECODER)
    return {name: value.numpy() for name, value in model.state_dict().items()}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_from_torch_and_back(tmp_path, state):
    torch_state, report = convert(state, to="torch")
    save_file(torch_state, tmp_path / "a.pth", key="model")
    done = run("convert_weights", "--from", "torch", "--input", "a.pth", "--output", "b.pdparams",
               cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0 and not done.stderr
    for name in state:
        fate = "transposed" if name in report.transposed else "as it was "
        assert f"  {fate}  {name}\n" in done.stdout
    assert "note: weights found under the key 'model'\nwrote b.pdparams\n" in done.stdout
    assert_same(load_file(tmp_path / "b.pdparams"), state)
    done = run("convert_weights", "--to", "torch", "--input", "b.pdparams", "--output", "c.pth",
               "--key", "model", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0
    assert (tmp_path / "c.pth").read_bytes() == (tmp_path / "a.pth").read_bytes()


def test_the_same_layout_in_another_kind_of_file(tmp_path, state):
    save_file(state, tmp_path / "a.pdparams")
    done = run("convert_weights", "--from", "paddle", "--to", "paddle", "--input", "a.pdparams",
               "--output", "b.safetensors", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0 and "\n0 transposed, " in done.stdout
    assert_same(load_file(tmp_path / "b.safetensors"), state)


def test_extract_prints_what_becomes_of_every_key(tmp_path, state):
    save_file(state, tmp_path / "a.pdparams")
    done = run("extract_encoder", "--checkpoint", "a.pdparams", "--output", "b.pdparams",
               cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0 and not done.stderr
    assert all(f"\n  {name}\n" in done.stdout for name in [*state, "head.weight", "fc_norm.bias"])
    model = MAE_FineTune(**MODEL, num_classes=3)
    load_into(model, load_file(tmp_path / "b.pdparams"), allow_missing=["fc_norm", "head"])


def test_extract_from_a_pth_for_other_images(tmp_path, state):
    save_file(convert(state, to="torch")[0], tmp_path / "a.pth")
    done = run("extract_encoder", "--checkpoint", "a.pth", "--output", "b.pdparams",
               "--keep-norm", "--grid", "4x8", "--in-chans", "1", "--channels", "repeat",
               cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0
    assert "note: pos_embed: grid 4x4 to 4x8\n" in done.stdout
    assert "note: patch_embed: 3 channels to 1, repeat\n" in done.stdout
    changed = {**MODEL, "img_size": (16, 32), "in_chans": 1}
    model = MAE_FineTune(**changed, num_classes=3, global_pool=False)
    load_into(model, load_file(tmp_path / "b.pdparams"), allow_missing=["head"])
    weight = model.blocks[0].attn.qkv.weight.numpy()
    np.testing.assert_array_equal(weight, state["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize("tool, arguments, match", [
    ("convert_weights", ["--input", "a.pth", "--output", "b.pdparams"], "say --from torch"),
    ("convert_weights", ["--to", "torch", "--input", "a.pth", "--output", "b.pth"],
     "a.pth holds torch's layout: it does not go with paddle here"),
    ("convert_weights", ["--from", "torch", "--input", "no.pth", "--output", "b.pdparams"],
     "No such file or directory: 'no.pth'"),
    ("convert_weights", ["--from", "torch", "--input", "a.pth", "--output", "b.pdparams"],
     "a.pth: not a file written by torch.save"),
    ("convert_weights", ["--from", "torch", "--to", "torch", "--input", "a.pth", "--output",
                         "a.pth"], "a.pth is the input itself"),
    ("extract_encoder", ["--checkpoint", "c.pdparams", "--output", "b.pdparams"],
     "no MAE encoder in these weights: they lack patch_embed.proj.weight"),
    ("extract_encoder", ["--checkpoint", "c.pdparams", "--output", "b.pdparams", "--in-chans", "1"],
     "--in-chans and --channels belong together"),
    ("extract_encoder", ["--checkpoint", "encoder.pdparams", "--output", "b.pdparams",
                         "--in-chans", "0", "--channels", "repeat"], "at least 1 channel, got 0"),
])  # fmt: skip
def test_mistakes_end_in_one_line(tmp_path, monkeypatch, capsys, state, tool, arguments, match):
    save_file(state, tmp_path / "encoder.pdparams")
    (tmp_path / "a.pth").write_bytes(b"<html>not found</html>")
    save_file({"w": np.ones(2, np.float32)}, tmp_path / "c.pdparams")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [tool, *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "tools" / f"{tool}.py"), run_name="__main__")
    out, err = capsys.readouterr()
    assert end.value.code == 2 and not out
    assert err.count("\n") == 1 and match in err
    assert not (tmp_path / "b.pdparams").exists()
