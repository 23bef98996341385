import copyreg
import io
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest

from passl_mae.safe_pickle import UnsafePickleError, safe_load

ARRAYS = [
    np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    np.linspace(-1, 1, 7, dtype=np.float32),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(3, dtype=">i4"),
    np.array(5, dtype=np.int64),
    np.zeros((0, 4), np.float16),
    np.array([True, False]),
    np.array([1 + 2j]),
    np.array(["ab", "c"]),
    np.array([b"ab", b"c"]),
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_come_back_as_they_went_in(protocol):
    value = {"a": ARRAYS, "b": (ARRAYS[0], {"c": ARRAYS[1]}), "shared": ARRAYS[0]}
    found = safe_load(pickle.dumps(value, protocol), source="x")
    assert found["shared"] is not None and list(found) == list(value)
    for a, b in zip([*found["a"], found["b"][0], found["b"][1]["c"]], [*ARRAYS, *ARRAYS[:2]]):
        # Up to protocol 4 NumPy itself turns foreign byte orders into the machine's.
        assert a.dtype == (b.dtype if protocol == 5 else b.dtype.newbyteorder("="))
        assert type(a) is np.ndarray and a.shape == b.shape and a.flags.writeable
        np.testing.assert_array_equal(a, b)
        assert a.flags.f_contiguous == b.flags.f_contiguous


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_back(protocol):
    ordered = OrderedDict([("z", np.float32(1.5)), ("a", np.int64(3)), ("m", b"\x00\xff")])
    value = [None, True, 2**70, -1.5, "é", b"", ordered, {"k": (1, [2, {3}])}]
    found = safe_load(pickle.dumps(value, protocol), source="x") if protocol > 3 else None
    if protocol < 4:  # sets are a call of `set` there, which nothing of ours needs
        value[-1] = {"k": (1, [2])}
        found = safe_load(pickle.dumps(value, protocol), source="x")
    assert found == value and type(found[6]) is OrderedDict and list(found[6]) == list("zam")
    assert type(found[6]["z"]) is np.float32 and type(found[6]["a"]) is np.int64


def test_a_file_is_read_from_where_it_stands():
    file = io.BytesIO(b"head" + pickle.dumps(1) + pickle.dumps(2))
    file.seek(4)
    assert safe_load(file, source="x") == 1
    assert safe_load(file, source="x") == 2


def test_a_list_that_holds_itself_comes_back():
    value = [np.arange(2)]
    value.append(value)
    found = safe_load(pickle.dumps(value), source="x")
    assert found[1] is found and type(found[0]) is np.ndarray


def python2_array(
    shape=b"K\x02K\x03\x86", data=b"U\x06abcdef", code=b"U\x02u1", order=b"|", fields=b"NNN"
):
    """What Python 2 and NumPy 1 write for uint8 [[97, 98, 99], [100, 101, 102]], byte by byte."""
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        b"(K\x01" + shape + b"cnumpy\ndtype\n(" + code + b"K\x00K\x01tR"
        b"(K\x03U\x01" + order + fields + b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89" + data + b"tb"
    )


@pytest.mark.parametrize("encoding", ["bytes", "latin1"])
def test_python_2_pickles_are_read(encoding):
    found = safe_load(
        b"\x80\x02}U\x04data" + python2_array() + b"s.", source="x", encoding=encoding
    )
    data = found[b"data" if encoding == "bytes" else "data"]
    np.testing.assert_array_equal(data, [[97, 98, 99], [100, 101, 102]])
    assert data.dtype == np.uint8 and type(data) is np.ndarray


class Call:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class EvilError(Exception):
    pass


def bombs(marker):
    write = f"open({str(marker)!r}, 'w')"
    shell = f"touch {marker}"
    return {
        "system": Call(os.system, shell),
        "eval": Call(eval, write),
        "exec": Call(exec, write),
        "open": Call(open, str(marker), "w"),
        "import": Call(__import__, "os"),
        "getattr": Call(getattr, "os", "system"),
        "in a list": [1, [Call(os.system, shell)]],
        "in a dictionary": {"a": {"b": (Call(eval, write),)}},
        "as an argument": Call(OrderedDict, [("a", Call(os.system, shell))]),
        "class": EvilError("x"),
        "numpy load": Call(np.load, str(marker)),
        "numpy save": Call(np.save, str(marker), np.arange(3)),
        "numpy fromfile": Call(np.fromfile, str(marker)),
        "loads": Call(pickle.loads, pickle.dumps(Call(os.system, shell))),
    }


@pytest.mark.parametrize("protocol", [0, 2, 4, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize("name", sorted(bombs("")))
def test_nothing_of_a_malicious_pickle_runs(name, protocol, tmp_path):
    marker = tmp_path / "ran"
    data = pickle.dumps(bombs(marker)[name], protocol)
    with pytest.raises(UnsafePickleError, match=r"^weights.bin: refused, .* it asks for ") as error:
        safe_load(data, source="weights.bin")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def short(text):
    return b"\x8c" + bytes([len(text)]) + text.encode()


def test_the_bombs_are_live(tmp_path):
    """The test above would prove nothing if they did no harm to pickle itself."""
    marker = tmp_path / "ran"
    pickle.loads(pickle.dumps(bombs(marker)["in a list"]))
    assert marker.exists()


@pytest.mark.parametrize(
    "module,name",
    [
        ("numpy", "ndarray.__reduce__"),
        ("numpy", "ndarray.__class__"),
        ("collections", "OrderedDict.__init__.__globals__"),
        ("numpy", "core"),
        ("passl_mae.safe_pickle", "_Array"),
        ("builtins", "bytes"),
        ("_codecs", "decode"),
    ],
)
def test_only_exact_names_are_found(module, name):
    data = b"\x80\x04" + short(module) + short(name) + b"\x93."
    with pytest.raises(UnsafePickleError, match=f"asks for {module}.{name}"):
        safe_load(data, source="x")


@pytest.mark.parametrize("opcode", [b"Pid\n", b"K\x01Q", b"(ios\nsystem\n", b"\x82\xf0", b"\x97"])
def test_other_ways_to_a_name_are_refused(opcode):
    with pytest.raises(UnsafePickleError, match="it uses the opcode"):
        safe_load(b"\x80\x05" + opcode + b".", source="x")


def test_the_extension_registry_is_no_way_round_even_once_it_is_cached():
    copyreg.add_extension("os", "getcwd", 0xF1)
    try:
        data = b"\x80\x02\x82\xf1)R."
        assert pickle.loads(data) == os.getcwd()  # now in copyreg's cache
        with pytest.raises(UnsafePickleError, match="EXT1"):
            safe_load(data, source="x")
    finally:
        copyreg.remove_extension("os", "getcwd", 0xF1)


NDARRAY, DTYPE = b"cnumpy\nndarray\n", b"cnumpy\ndtype\n"
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
HUGE = b"\x8a\x06\x00\x00\x00\x00\x00\x01"


@pytest.mark.parametrize(
    "data",
    [
        NDARRAY,  # the bare name
        b"(" + NDARRAY + b"t",
        NDARRAY + b"(" + HUGE + b"\x85tR",  # ndarray((2**40,)): memory
        NDARRAY + b"(" + HUGE + b"\x85t\x81",  # the same by NEWOBJ
        RECONSTRUCT + b"(" + NDARRAY + HUGE + b"\x85C\x01btR",
        RECONSTRUCT + b"(" + DTYPE + b"K\x00\x85C\x01btR",
        DTYPE + b"(X\x01\x00\x00\x00O\x89\x88tR",  # objects
        DTYPE + b"(X\x06\x00\x00\x00i4, i4\x89\x88tR",  # records
        DTYPE + b"(}\x89\x88tR",
        python2_array(code=b"U\x02O8"),
        python2_array(shape=HUGE + HUGE + b"\x86"),
        python2_array(shape=b"J\xff\xff\xff\xffK\x03\x86"),
        python2_array(shape=b"G\x40\x00\x00\x00\x00\x00\x00\x00K\x03\x86"),
        python2_array(data=b"]"),
        python2_array(order=b"S"),
        python2_array(fields=b"N(U\x01at}U\x01aNs"),
        # BUILD on what find_class gave: {"__call__": ...} as slots
        RECONSTRUCT + b"N}X\x08\x00\x00\x00__call__K\x01s\x86b",
        RECONSTRUCT + b"}X\x01\x00\x00\x00aK\x01sb",
        b"ccollections\nOrderedDict\nN}X\x06\x00\x00\x00updateK\x01s\x86b",
        b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR",
        b"c__builtin__\nbytes\n(" + HUGE + b"tR",
        b"\x8e" + b"\xff" * 7 + b"\x0fN",  # bytes of that length
    ],
)
def test_nonsense_is_one_clear_error(data):
    with pytest.raises(ValueError, match=r"^weights.bin: cut off or not a pickle") as error:
        safe_load(b"\x80\x04" + data + b".", source="weights.bin", encoding="bytes")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"Nr\xff\xff\xff\xff", "memo index 4294967295 after 3 opcodes"),
        (
            b"\x95" + b"\xff" * 7 + b"\x0fN",
            "a frame of 1152921504606846975 bytes in a pickle of 13",
        ),
        (python2_array(shape=b"K\x02K\x04\x86"), r"shape \(2, 4\) holds 6 bytes instead of 8"),
        (python2_array(shape=HUGE + HUGE + b"\x86"), r"holds 6 bytes instead of \d{25}"),
    ],
)
def test_sizes_are_checked_before_memory_is_taken(data, message):
    with pytest.raises(ValueError, match=message):
        safe_load(b"\x80\x04" + data + b".", source="x", encoding="bytes")


def test_every_cut_of_a_pickle_is_one_clear_error():
    whole = pickle.dumps({"a": np.arange(5), "b": [1, "x"], "c": np.float32(2)})
    for end in range(len(whole)):
        with pytest.raises(ValueError, match=r"^w: cut off or not a pickle"):
            safe_load(whole[:end], source="w")


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
def test_random_damage_never_raises_anything_else():
    rng = np.random.default_rng(0)
    whole = pickle.dumps({"a": np.arange(5), "b": [1, "x"], "c": np.float32(2)}, 2)
    for _ in range(3000):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), rng.integers(1, 4)):
            damaged[at] = rng.integers(256)
        try:
            safe_load(bytes(damaged), source="w")
        except ValueError as error:
            assert str(error).startswith("w: ")


def test_shared_lists_do_not_take_exponential_time():
    value = [np.arange(1)]
    for _ in range(60):
        value = [value, value]
    found = safe_load(pickle.dumps(value), source="x")
    assert found[0] is found[1]


def test_deep_nesting_is_one_clear_error():
    with pytest.raises(ValueError, match=r"^x: cut off or not a pickle"):
        safe_load(b"]" * 100_000 + b"a" * 99_999 + b".", source="x")


def test_paddles_nested_tensors_are_read():
    # paddle.save writes a tensor inside a list as tuple((name, array)).
    data = pickle.dumps([Call(tuple, ("linear_0.w_0", np.arange(3)))], 4)
    ((name, array),) = safe_load(data, source="x")
    assert name == "linear_0.w_0" and type(array) is np.ndarray and list(array) == [0, 1, 2]
    with pytest.raises(ValueError, match=r"^x: cut off or not a pickle"):
        safe_load(pickle.dumps(Call(tuple, {1: 2}), 4), source="x")


def test_the_caller_can_allow_more():
    data = pickle.dumps(Call(complex, 1, 2), 4)
    allowed = {("builtins", "complex"): lambda a, b: (a, b)}
    assert safe_load(data, source="x", extra_allowed=allowed) == (1, 2)
    with pytest.raises(UnsafePickleError, match=r"builtins.complex"):
        safe_load(data, source="x")
