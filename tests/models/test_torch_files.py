"""PyTorch's files without PyTorch: files written by torch.save, hostile ones, and our own."""

import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from passl_mae.models.torch_files import open_torch_file
from passl_mae.models.weights import convert, load_file, save_file

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
BASE = (np.arange(24, dtype=np.float32) / np.float32(7)).reshape(4, 6)
EXPECTED = {
    "float32": BASE,
    "transposed": BASE.T,
    "part": BASE[1:3, 2:5],
    "float64": np.arange(3) / 3,
    "float16": np.array([0.0, 0.33325195, 0.66650391, 1.0, 1.33300781], np.float16),
    # bfloat16 keeps 8 bits of the fraction: 1/3 = 171/512, 2/3 = 171/256, 4/3 = 171/128
    "bfloat16": np.array([0.0, 171 / 512, 171 / 256, 1.0, 171 / 128], np.float32),
    "int64": np.arange(-2, 3),
    "uint8": np.arange(250, 256, dtype=np.uint8),
    "bool": np.array([True, False, True]),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "parameter": np.full((2, 2), 1.5, np.float32),
}


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_what_torch_wrote_is_read_bit_for_bit(form):
    notes = []
    assert_same(load_file(FIXTURES / f"checkpoint_{form}.pth", notes), EXPECTED)
    assert notes == [
        "weights found under the key 'model'; left aside: optimizer, epoch, args",
        "1 bfloat16 arrays widened to float32",
    ]


def test_a_plain_state_dict_and_its_metadata():
    state = load_file(FIXTURES / "state_dict.pth")
    assert list(state) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    np.testing.assert_array_equal(state["0.weight"], [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(convert(state)[0]["0.weight"], [[1, 4], [2, 5], [3, 6]])


def test_a_whole_module_is_refused_by_name():
    with pytest.raises(ValueError, match=r"refused, .* asks for torch\.nn\.modules"):
        load_file(FIXTURES / "whole_module.pth")


@pytest.mark.parametrize("key", [None, "model"])
def test_our_own_files_come_back_bit_for_bit(tmp_path, key):
    state = {name: value for name, value in EXPECTED.items() if name != "bfloat16"}
    save_file(state, tmp_path / "a.pth", key=key)
    assert_same(load_file(tmp_path / "a.pth"), state)


def test_torch_reads_our_files(tmp_path):
    torch = pytest.importorskip("torch")
    state = {name: value for name, value in EXPECTED.items() if name != "bfloat16"}
    save_file(state, tmp_path / "a.pth", key="model")
    found = torch.load(tmp_path / "a.pth", weights_only=True)["model"]
    assert_same({name: value.numpy() for name, value in found.items()}, state)


def test_numbers_that_torch_has_no_storage_for_are_refused(tmp_path):
    with pytest.raises(ValueError, match="w: PyTorch's files have no numbers of type complex64"):
        save_file({"w": np.ones(2, np.complex64)}, tmp_path / "a.pth")
    assert not list(tmp_path.iterdir())


class Tensor:
    """Pickles as a tensor of PyTorch would, with whatever is given for its parts."""

    def __init__(self, offset=0, size=(2, 3), stride=(3, 1), storage=None):
        self.parts = storage or ("storage", "FloatStorage", "0", "cpu", 6), offset, size, stride


class Pickler(pickle._Pickler):  # the one in Python, so that names need not exist
    def persistent_id(self, value):
        return value.parts[0] if isinstance(value, Storage) else None

    def save(self, value, *args, **kwargs):
        if isinstance(value, Tensor):
            storage, *rest = value.parts
            self.write(b"ctorch._utils\n_rebuild_tensor_v2\n")
            super().save((Storage(storage), *rest, False, {}))
            self.write(pickle.REDUCE)
        elif value == "FloatStorage":
            self.write(b"ctorch\nFloatStorage\n")
        else:
            super().save(value, *args, **kwargs)


class Storage:
    def __init__(self, pid):
        self.parts = (pid,)


def forged_zip(path, tree, data=b"\0" * 24, compression=zipfile.ZIP_STORED, name="a/data/0"):
    buffer = io.BytesIO()
    Pickler(buffer, 2).dump(tree)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/data.pkl", buffer.getvalue())
        archive.writestr(name, data)
    return path


def test_the_forger_can_write_a_good_file(tmp_path):
    path = forged_zip(tmp_path / "a.pth", {"w": Tensor()}, struct.pack("<6f", *range(6)))
    np.testing.assert_array_equal(load_file(path)["w"], [[0, 1, 2], [3, 4, 5]])


FORGED = {
    "beyond": (Tensor(size=(3, 3)), "reaches beyond its storage"),
    "offset": (Tensor(offset=1), "reaches beyond its storage"),
    "stride": (Tensor(stride=(4, 1)), "reaches beyond its storage"),
    "expanded": (Tensor(size=(10**9, 1), stride=(0, 1)), "reaches beyond its storage"),
    "negative offset": (Tensor(offset=-1), "offset -1"),
    "negative stride": (Tensor(stride=(-3, 1)), "stride"),
    "overflow": (Tensor(size=(2**62, 4), stride=(1, 1)), "size"),
    "not numbers": (Tensor(size=("a", 1)), "size"),
    "not a tuple": (Tensor(size=6), "size"),
    "uneven": (Tensor(size=(6,)), "size"),
    "huge storage": (
        Tensor(storage=("storage", "FloatStorage", "0", "cpu", 2**60)), "holds 24 bytes for"
    ),
    "no storage": (Tensor(storage=("storage", "FloatStorage", "9", "cpu", 6)), "9 is missing"),
    "path": (Tensor(storage=("storage", "FloatStorage", "../x", "cpu", 6)), "is missing"),
    "odd type": (Tensor(storage=("storage", "Evil", "0", "cpu", 6)), "described as"),
    "odd id": (Tensor(storage=("module", "x")), "could run code"),
}  # fmt: skip


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_tensor_is_one_clear_line(tmp_path, case):
    tensor, match = FORGED[case]
    with pytest.raises(ValueError, match=match) as error:
        load_file(forged_zip(tmp_path / "a.pth", {"w": tensor}))
    assert "a.pth" in str(error.value) and "\n" not in str(error.value)


def test_a_zip_that_unfolds_is_refused_before_it_does(tmp_path):
    path = forged_zip(tmp_path / "a.pth", {"w": Tensor()}, bytes(10**7), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10**5
    with pytest.raises(ValueError, match="content is larger than itself"):
        load_file(path)


def test_a_changed_number_is_noticed(tmp_path):
    path = forged_zip(tmp_path / "a.pth", {"w": Tensor()}, b"ABCDEFGHIJKLMNOPQRSTUVWX")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"ABCD", b"ABCE"))
    with pytest.raises(ValueError, match="damaged: Bad CRC-32"):
        load_file(path)


def test_other_zip_files_are_not_torchs(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match="a zip file, but not one written by"):
        load_file(tmp_path / "a.pth")


def test_tensors_that_are_not_wanted_are_not_read(tmp_path):
    path = forged_zip(tmp_path / "a.pth", {"model": {"w": Tensor()}, "optimizer": Tensor((9, 9))})
    assert list(load_file(path)) == ["w"]
    with open_torch_file(path) as (tree, _):
        assert set(tree) == {"model", "optimizer"}
