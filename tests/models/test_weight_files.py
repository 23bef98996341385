"""Files of weights: what paddle.save writes, round trips, hostile and damaged files."""

import argparse
import contextlib
import io
import os
import pickle
import shutil
import subprocess
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import paddle
import pytest

from passl_mae import mae_vit_t_p4_dec128d2b
from passl_mae.models.weights import load_file, save_file

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
STATE = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
    "transposed.weight": (np.arange(6, dtype=np.float32).reshape(2, 3) / 7).T,
    "half": np.arange(4, dtype=np.float16) / 3,
    "double": np.arange(4.0) / 3,
    "count": np.array(5, np.int64),
    "flag": np.array([True, False]),
    "none": np.zeros((0, 2), np.float32),
    "one": np.ones([1, 1, 1], np.float32),
}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("suffix", [".pdparams", ".pd", ".pth", ".pt", ".safetensors"])
def test_round_trips_are_bit_identical(tmp_path, suffix):
    save_file(STATE, tmp_path / f"w{suffix}")
    assert_same(load_file(tmp_path / f"w{suffix}"), STATE)
    assert [path.name for path in tmp_path.iterdir()] == [f"w{suffix}"]  # nothing left beside


@pytest.mark.parametrize("suffix", [".pdparams", ".pth"])
def test_weights_under_a_key(tmp_path, suffix):
    notes = []
    save_file(STATE, tmp_path / f"w{suffix}", key="model")
    assert_same(load_file(tmp_path / f"w{suffix}", notes), STATE)
    assert notes == ["weights found under the key 'model'"]


def test_paddle_reads_what_we_write(tmp_path):
    save_file(STATE, tmp_path / "w.pdparams")
    found = paddle.load(str(tmp_path / "w.pdparams"))
    assert_same({name: value.numpy() for name, value in found.items()}, STATE)


def test_tensors_are_written_like_arrays(tmp_path):
    save_file({"w": paddle.to_tensor([1.5, 2.5])}, tmp_path / "w.pth")
    assert_same(load_file(tmp_path / "w.pth"), {"w": np.array([1.5, 2.5], np.float32)})


# `protocol` 2 writes bytes as latin1 text; a nested dict holds Tensors as (name, array) pairs.
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("nested", [False, True])
def test_what_paddle_saved_is_read(tmp_path, protocol, nested):
    model = mae_vit_t_p4_dec128d2b(depth=1, decoder_depth=1)
    state = model.state_dict()
    saved = {"model": state, "epoch": 3, "lr": {"last_lr": 0.1}} if nested else state
    paddle.save(saved, str(tmp_path / "w.pdparams"), protocol=protocol)
    notes = []
    found = load_file(tmp_path / "w.pdparams", notes)
    assert list(found) == list(state)  # without paddle's table of names
    assert_same(found, {name: value.numpy() for name, value in state.items()})
    left = "weights found under the key 'model'; left aside: epoch, lr"
    assert notes == ([left] if nested else [])


def test_what_passl_saves_beside_the_weights_is_left_aside(tmp_path):
    model = paddle.nn.Linear(2, 3)
    schedule = paddle.optimizer.lr.CosineAnnealingDecay(0.1, 5)
    optimizer = paddle.optimizer.AdamW(schedule, parameters=model.parameters())
    model(paddle.ones([1, 2])).sum().backward()
    optimizer.step()
    checkpoint = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 1,
        "scaler": {"scale": np.ones(1, np.float32), "incr_count": 0, "use_dynamic_loss_scaling": 1},
        "args": argparse.Namespace(batch_size=64, betas=(0.9, 0.95), output_dir="./out"),
    }
    paddle.save(checkpoint, str(tmp_path / "checkpoint-1.pd"))
    notes = []
    found = load_file(tmp_path / "checkpoint-1.pd", notes)
    assert_same(found, {name: value.numpy() for name, value in model.state_dict().items()})
    left = "optimizer, epoch, scaler, args"
    assert notes == [f"weights found under the key 'model'; left aside: {left}"]


def test_bfloat16_is_widened_exactly_and_noted(tmp_path):
    values = paddle.to_tensor([1 / 3, -2.5, 3e38, 0.0])
    paddle.save({"w": values.astype("bfloat16")}, str(tmp_path / "w.pdparams"))
    notes = []
    found = load_file(tmp_path / "w.pdparams", notes)["w"]
    assert found.dtype == np.float32 and notes == ["1 bfloat16 arrays widened to float32"]
    np.testing.assert_array_equal(found, values.astype("bfloat16").astype("float32").numpy())
    save_file({"w": values.astype("bfloat16")}, tmp_path / "w.pth")
    np.testing.assert_array_equal(load_file(tmp_path / "w.pth")["w"], found)


def test_bfloat16_in_safetensors(tmp_path):
    header = b'{"h":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},'
    header += b'"f":{"dtype":"F32","shape":[1,1],"data_offsets":[4,8]}}'
    data = np.array([0x3FAB, 0xC020], "<u2").tobytes() + np.array([7], "<f4").tobytes()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    found = load_file(path)
    assert_same(
        found, {"h": np.array([1.3359375, -2.5], np.float32), "f": np.array([[7]], np.float32)}
    )


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "w.pth"
    save_file({"w": np.ones(2, np.float32)}, path)
    with pytest.raises(ValueError, match="no numbers of type complex128"):
        save_file({"w": np.zeros(2, np.float32), "z": np.zeros(2, complex)}, path)
    assert_same(load_file(path), {"w": np.ones(2, np.float32)})
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("state, name, match", [
    (STATE, "w.onnx", r"w.onnx: unknown kind of weights file; known are .pdparams"),
    ({"w": [1.0]}, "w.pth", "w: weights are arrays, got list"),
])  # fmt: skip
def test_what_cannot_be_written(tmp_path, state, name, match):
    with pytest.raises(ValueError, match=match):
        save_file(state, tmp_path / name)


@pytest.mark.parametrize("content, match", [
    ([1, 2], "holds list, not a dict of weights"),
    ({}, "it has no named arrays; its keys: none"),
    ({"epoch": 3, "w": np.ones(1)}, "'epoch' is no array; its keys: 'epoch', 'w'"),
    ({"model": {"w": "text"}}, "'w' is no array"),
    ({3: np.ones(1)}, "it has no named arrays"),
    ({"UnpackBigParamInfor@@": {}, "w": np.ones(1)}, "arrays cut into slices"),
])  # fmt: skip
def test_files_without_weights_say_what_they_hold(tmp_path, content, match):
    path = tmp_path / "w.pdparams"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=match):
        load_file(path)


def test_a_missing_file_and_an_unknown_kind(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_file(tmp_path / "w.pdparams")
    (tmp_path / "w.h5").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"w.h5: unknown kind"):
        load_file(tmp_path / "w.h5")


# --- files that want to run code -----------------------------------------------------------------


class Call:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call

    def __call__(self):
        """pickle wants what is called to be callable."""


def attacks(marker):
    """Pickles that leave `marker` behind when they are obeyed."""
    touch = f"open({str(marker)!r}, 'w').close()"
    shell = f"touch {marker}"
    return {
        "os.system": Call(os.system, shell),
        "builtins.eval": Call(eval, touch),
        "builtins.exec": Call(exec, touch),
        "subprocess": Call(subprocess.call, ["touch", str(marker)]),
        "shutil.copy": Call(shutil.copy, __file__, str(marker)),
        "chain through getattr": Call(Call(getattr, Call(__import__, "os"), "system"), shell),
        "pickle in a pickle": Call(pickle.loads, pickle.dumps(Call(os.system, shell))),
        "as an array's argument": Call(np.frombuffer, Call(os.system, shell)),
    }


NAMES = list(attacks(Path("x")))
PLACES = {
    "alone": lambda attack: attack,
    "value": lambda attack: {"w": np.ones(2), "x": attack},
    "nested": lambda attack: {"model": OrderedDict(w=[("t", attack)]), "epoch": 1},
}
LEGACY = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {"w": 1}, []]


def hostile_files(folder, attack):
    """The attack in every kind of file, in every place that is unpickled."""
    pickled = pickle.dumps(attack, protocol=2)
    for place, put in PLACES.items():
        for suffix in (".pdparams", ".pd"):
            path = folder / f"{place}{suffix}"
            path.write_bytes(pickle.dumps(put(attack), protocol=4))
            yield path
        path = folder / f"zip {place}.pth"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(put(attack), protocol=2))
            archive.writestr("archive/version", "3")
        yield path
    for position in range(len(LEGACY)):
        parts = [pickle.dumps(part, protocol=2) for part in LEGACY]
        parts[position] = pickled if position else parts[0] + pickled
        path = folder / f"legacy {position}.pth"
        path.write_bytes(b"".join(parts))
        yield path


@pytest.mark.parametrize("name", NAMES)
def test_no_file_runs_code(tmp_path, name):
    marker = tmp_path / "marker"
    for path in hostile_files(tmp_path, attacks(marker)[name]):
        with pytest.raises(ValueError) as error:
            load_file(path)
        assert "\n" not in str(error.value) and path.name in str(error.value)
        assert not marker.exists(), path.name


@pytest.mark.parametrize("name", NAMES)
def test_the_attacks_are_real(tmp_path, name):
    marker = tmp_path / "marker"
    pickled = pickle.dumps(attacks(marker)[name])
    with contextlib.suppress(TypeError):  # after the deed
        pickle.loads(pickled)
    assert marker.exists()


def test_the_refusal_names_what_was_asked_for(tmp_path):
    path = tmp_path / "w.pdparams"
    path.write_bytes(pickle.dumps({"w": Call(os.system, "true")}))
    with pytest.raises(ValueError, match=r"w.pdparams: refused, .* asks for posix.system"):
        load_file(path)


# --- damaged files -------------------------------------------------------------------------------


def good_file(folder, kind):
    path = folder / f"good{Path(kind).suffix}"
    if kind.startswith("torch"):
        shutil.copy(FIXTURES / {"torch zip.pth": "checkpoint_zip.pth"}.get(
            kind, "checkpoint_legacy.pth"), path)  # fmt: skip
    elif kind == "paddle.pdparams":
        paddle.save({k: paddle.to_tensor(v) for k, v in STATE.items() if v.size}, str(path))
    else:
        save_file(STATE, path)
    return path


KINDS = ["paddle.pdparams", "ours.pdparams", "ours.pth", "ours.safetensors", "torch zip.pth",
         "torch legacy.pth"]  # fmt: skip


def assert_one_clear_line(path):
    with pytest.raises(ValueError) as error:
        load_file(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_off_anywhere_is_one_clear_line(tmp_path, kind):
    data = good_file(tmp_path, kind).read_bytes()
    path = tmp_path / f"cut{Path(kind).suffix}"
    for length in sorted({*range(0, len(data), 1 + len(data) // 150), len(data) - 1}):
        path.write_bytes(data[:length])
        assert_one_clear_line(path)


@pytest.mark.parametrize("suffix", [".pdparams", ".pd", ".pth", ".safetensors"])
@pytest.mark.parametrize("content", [
    b"", b"\0", b"<html>404</html>", b"PK\x03\x04" + b"\0" * 60, bytes(range(256)) * 4,
    b"\x80\x04]\x94.", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"\xff" * 999,
])  # fmt: skip
def test_garbage_is_one_clear_line(tmp_path, suffix, content):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    assert_one_clear_line(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_byte_is_read_or_refused(tmp_path, kind):
    data = bytearray(good_file(tmp_path, kind).read_bytes())
    path = tmp_path / f"flipped{Path(kind).suffix}"
    rng = np.random.default_rng(0)
    for place in rng.integers(len(data), size=300):
        kept = data[place]
        data[place] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        data[place] = kept
        try:
            load_file(path)
        except ValueError as error:
            assert "\n" not in str(error) and str(path) in str(error)


def test_a_large_array_costs_its_own_memory_only():
    # what is written goes out array by array; see the pickler's memo
    from passl_mae.models.weight_files import _ArrayPickler

    buffer = io.BytesIO()
    pickler = _ArrayPickler(buffer)
    pickler.dump({"a": np.zeros(1000, np.float32), "b": np.zeros(1000, np.float32).T})
    assert pickler.fast and len(buffer.getvalue()) < 8500
