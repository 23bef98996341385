"""Layouts, extraction of the encoder, other grids and channels, and loading that checks first."""

import json
import random
from collections import OrderedDict
from pathlib import Path

import numpy as np
import numpy_pos_embed
import paddle
import pytest

from passl_mae import MAE_FineTune, MAE_Pretrain, extract_mae_pt, models
from passl_mae.models.adapt import adapt_channels, grid_of
from passl_mae.models.weights import (
    convert,
    extract_encoder,
    load_file,
    load_into,
    load_weights,
    refuse_same_file,
    resize_pos_embed,
    save_file,
    save_weights,
    to_float16,
)

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
SMALL = dict(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3)
DECODER = dict(decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)
NEW = ["fc_norm", "head"]


def pretrainer(**overrides):
    return MAE_Pretrain(**{**SMALL, **DECODER, **overrides})


def classifier(**overrides):
    return MAE_FineTune(**{**SMALL, "num_classes": 5, **overrides})


def arrays(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


# --- convert -------------------------------------------------------------------------------------


def test_linear_weights_are_transposed_and_nothing_else():
    state = arrays(pretrainer())
    found, report = convert(state, to="torch")
    assert list(found) == list(state)
    blocks = ["blocks.0", "blocks.1", "decoder_blocks.0"]
    parts = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
    linear = [f"{block}.{part}.weight" for block in blocks for part in parts]
    assert set(report.transposed) == {*linear, "decoder_embed.weight", "decoder_pred.weight"}
    assert sorted(report.transposed + report.unchanged) == sorted(state)
    for name, value in state.items():
        expected = value.T if name in report.transposed else value
        np.testing.assert_array_equal(found[name], expected, err_msg=name)
    assert found["blocks.0.attn.qkv.weight"].shape == (72, 24)  # [out, in]
    assert "  transposed  decoder_pred.weight" in str(report)
    assert str(report).endswith(f"14 transposed, {len(state) - 14} as they were")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_there_and_back_is_bit_identical(tmp_path, suffix):
    state = arrays(pretrainer())
    save_file(convert(state, to="torch")[0], tmp_path / f"a{suffix}")
    save_file(convert(load_file(tmp_path / f"a{suffix}"))[0], tmp_path / "b.pdparams")
    back = load_file(tmp_path / "b.pdparams")
    assert set(back) == set(state)
    for name, value in state.items():
        assert back[name].dtype == value.dtype
        np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_another_direction_is_refused():
    with pytest.raises(ValueError, match="to must be 'paddle' or 'torch', got 'jax'"):
        convert({}, to="jax")


def test_load_weights_gives_paddles_layout_from_a_pth(tmp_path):
    state = arrays(pretrainer())
    for name in ("a.pth", "a.pdparams"):
        save_weights(state, tmp_path / name)
        found = load_weights(tmp_path / name)
        assert all((found[key] == value).all() for key, value in state.items())
    stored = load_file(tmp_path / "a.pth")
    assert stored["blocks.0.attn.qkv.weight"].shape == (72, 24)


def test_half_the_space_is_rounded_to_nearest_and_what_is_too_large_is_refused(tmp_path):
    state = {
        "w": np.array([1 / 3, -2.0, 2049.0, 1e-9], np.float32),  # float16 keeps 11 bits
        "count": np.array([3], np.int64),
    }
    half = to_float16(state)
    expected = np.array([0.33325195, -2.0, 2048.0, 0.0], np.float16)
    assert half["w"].dtype == np.float16 and (half["w"] == expected).all()
    assert half["count"].dtype == np.int64
    save_file(half, tmp_path / "half.safetensors")
    assert (load_weights(tmp_path / "half.safetensors")["w"] == expected).all()
    with pytest.raises(ValueError, match="w holds 70000, too large for float16"):
        to_float16({"w": np.array([7e4], np.float32)})


def test_the_input_is_not_overwritten(tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / "b").symlink_to(tmp_path / "a")
    refuse_same_file(tmp_path / "a", tmp_path / "new")
    with pytest.raises(ValueError, match="is the input itself"):
        refuse_same_file(tmp_path / "a", tmp_path / "b")


# --- extract_encoder -----------------------------------------------------------------------------


def test_the_encoder_is_what_the_classifier_can_use_whatever_the_order():
    state = arrays(pretrainer())
    target = classifier().state_dict()
    expected = set(target) - {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    for seed in range(5):
        items = list(state.items())
        random.Random(seed).shuffle(items)
        taken, report = extract_encoder(dict(items))
        assert set(taken) == set(report.taken) == expected
        assert set(report.dropped) == set(state) - expected
        assert {"norm.weight", "norm.bias", "mask_token"} < set(report.dropped)
        assert set(report.newly_initialised) == set(target) - expected
        assert all(taken[name] is state[name] for name in taken)
    assert "newly initialised by the classifier: 4\n  fc_norm.weight" in str(report)


def test_the_class_token_classifier_takes_norm_too():
    state = arrays(pretrainer())
    taken, report = extract_encoder(state, global_pool=False)
    assert set(taken) == set(classifier(global_pool=False).state_dict()) - {
        "head.weight",
        "head.bias",
    }
    assert report.newly_initialised == ["head.weight", "head.bias"]


@pytest.mark.parametrize("state, match", [
    ({}, "they lack patch_embed.proj.weight, cls_token, .* they have nothing"),
    ({"head.weight": 1, "conv1.weight": 2}, "no MAE encoder .* have head.weight, conv1.weight"),
    ({f"k{i}": 0 for i in range(9)}, r"they have k0, k1, k2, k3, ... \(5 more\)"),
])  # fmt: skip
def test_no_encoder_says_what_is_there(state, match):
    with pytest.raises(ValueError, match=match):
        extract_encoder(state)


def test_a_decoder_alone_is_no_encoder():
    state = {k: v for k, v in arrays(pretrainer()).items() if k.startswith("decoder")}
    with pytest.raises(ValueError, match="no MAE encoder"):
        extract_encoder(state)


def test_extract_mae_pt_keeps_the_kind_of_values():
    tensors = pretrainer().state_dict()
    found = extract_mae_pt(tensors)
    assert isinstance(found, OrderedDict) and isinstance(found["cls_token"], paddle.Tensor)
    assert set(found) == set(extract_encoder(tensors)[0])


# --- load_into -----------------------------------------------------------------------------------


def test_an_encoder_goes_into_a_classifier():
    source, model = pretrainer(), classifier()
    before = arrays(model)
    report = load_into(model, extract_mae_pt(source.state_dict()), allow_missing=NEW)
    after = arrays(model)
    for name, value in arrays(source).items():
        if name in after:
            np.testing.assert_array_equal(after[name], value)
    assert (after["head.weight"] == before["head.weight"]).all()
    assert report.missing == ["fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"]
    assert len(report.loaded) == len(after) - 4 and not report.extra and not report.cast
    assert "newly initialised: fc_norm.weight, fc_norm.bias, head.weight" in str(report)


def refused(model, state, match, **options):
    """Loading raises one line and has changed nothing."""
    before = arrays(model)
    with pytest.raises(ValueError, match=match) as error:
        load_into(model, state, **options)
    assert "\n" not in str(error.value)
    for name, value in arrays(model).items():
        np.testing.assert_array_equal(value, before[name])


def test_what_does_not_fit_is_refused_and_nothing_is_set():
    state = {name: value + 1 for name, value in arrays(classifier()).items()}
    lacking = {name: value for name, value in state.items() if not name.startswith("blocks.1.")}
    refused(classifier(), lacking, r"12 missing: blocks.1.norm1.weight, .* \(8 more\)")
    refused(classifier(), lacking, "12 missing", allow_missing=["blocks.11", "head"])
    refused(classifier(), {**state, "x.y": np.ones(1)}, "1 that the model does not have: x.y")
    refused(classifier(num_classes=7), state, r"2 of another shape: head.weight is \[24, 5\], the "
            r"model's \[24, 7\], head.bias is \[5\]")  # fmt: skip
    refused(
        classifier(), {**state, "head.bias": "text"}, "head.bias: weights are arrays of numbers"
    )
    refused(classifier(), {**state, "head.bias": np.array(["a"] * 5)}, "head.bias: weights are arr")
    ask = r"\(another image or patch size: ask for resize_pos_embed=True\)"
    table = rf"pos_embed is \[1, 17, 24\], the model's \[1, 65, 24\] {ask}"
    refused(classifier(img_size=32), state, table)
    ask = "ask for channels='average' or channels='repeat'"
    projection = rf"patch_embed.proj.weight is \[24, 3, 4, 4\], .* {ask}"
    refused(classifier(in_chans=1), state, projection)
    refused(classifier(in_chans=1), state, "channels must be 'average'", channels="median")


def test_declared_keys_are_let_through_by_name_or_layer():
    state = {**arrays(classifier()), "decoder.x": np.ones(1), "mask_token": np.ones(1)}
    report = load_into(classifier(), state, allow_extra=["decoder", "mask_token"])
    assert report.extra == ["decoder.x", "mask_token"]
    assert "not used: decoder.x, mask_token" in str(report)
    with pytest.raises(ValueError, match="does not have: mask_token"):
        load_into(classifier(), state, allow_extra=["decoder.x", "mask"])


def test_numbers_are_cast_to_what_the_model_holds():
    model = classifier()
    model.to(dtype="bfloat16")
    state = {name: value + 1 / 3 for name, value in arrays(classifier()).items()}
    report = load_into(model, state)
    assert set(report.cast.values()) == {"float32 to bfloat16"} and len(report.cast) == len(state)
    assert f"{len(state)} arrays cast from float32 to bfloat16" in str(report)
    for name, value in model.state_dict().items():
        assert value.dtype == paddle.bfloat16
        expected = paddle.to_tensor(state[name]).astype("bfloat16").astype("float32").numpy()
        np.testing.assert_array_equal(value.astype("float32").numpy(), expected)
    full = classifier()
    load_into(full, model.state_dict())  # bfloat16 Tensors into float32
    np.testing.assert_array_equal(arrays(full)["head.bias"], expected_of(model, "head.bias"))


def expected_of(model, name):
    return model.state_dict()[name].astype("float32").numpy()


def test_the_parameters_themselves_are_set_under_a_state_dict_hook():
    # paddle.amp.decorate(save_dtype="float32") hangs a hook on state_dict that hands out copies
    model = classifier()
    model.register_state_dict_hook(lambda state: state.update(
        {name: value.astype("float32") * 1 for name, value in state.items()}))  # fmt: skip
    state = {name: value.numpy() + 1 for name, value in model.state_dict(use_hook=False).items()}
    load_into(model, state)
    np.testing.assert_array_equal(model.cls_token.numpy(), state["cls_token"])


def test_a_position_table_of_another_size_on_request():
    state, model = arrays(classifier()), classifier(img_size=(16, 32))
    report = load_into(model, state, resize_pos_embed=True)
    assert report.adapted == {"pos_embed": "grid 4x4 to 4x8"}
    expected = numpy_pos_embed.bicubic(state["pos_embed"][0, 1:].reshape(4, 4, 24), 4, 8)
    found = model.pos_embed.numpy()[0]
    np.testing.assert_allclose(found[1:], expected.reshape(32, 24), atol=1e-6)
    np.testing.assert_array_equal(found[0], state["pos_embed"][0, 0])
    # the same number of patches in another grid: only the user can know
    other = classifier(img_size=(32, 8))
    assert not load_into(other, state, resize_pos_embed=True).adapted
    report = load_into(other, state, resize_pos_embed=True, old_grid=(4, 4))
    assert report.adapted == {"pos_embed": "grid 4x4 to 8x2"}


def test_both_tables_of_a_pretraining_model():
    model = pretrainer(img_size=24)
    report = load_into(model, arrays(pretrainer()), resize_pos_embed=True)
    assert report.adapted == dict.fromkeys(["pos_embed", "decoder_pos_embed"], "grid 4x4 to 6x6")


def test_channels_on_request():
    state, model = arrays(classifier()), classifier(in_chans=1)
    report = load_into(model, state, channels="average")
    assert report.adapted == {"patch_embed.proj.weight": "3 channels to 1 (average)"}
    grey = paddle.randn([2, 1, 16, 16])
    original = classifier()
    load_into(original, state)
    model.eval(), original.eval()
    np.testing.assert_allclose(
        model(grey).numpy(), original(grey.expand([2, 3, 16, 16])).numpy(), atol=1e-6
    )


# --- resize_pos_embed and adapt_channels ---------------------------------------------------------


@pytest.mark.parametrize("old, new", [((4, 4), (7, 7)), ((8, 8), (3, 5)), ((2, 6), (6, 2)),
                                      ((1, 3), (4, 4)), ((14, 14), (16, 12))])  # fmt: skip
def test_bicubic_equals_sixteen_neighbours_one_by_one(old, new):
    table = np.random.default_rng(0).standard_normal([1, 1 + old[0] * old[1], 6])
    found = resize_pos_embed(table, old, new)
    expected = numpy_pos_embed.bicubic(table[0, 1:].reshape(*old, 6), *new)
    np.testing.assert_array_equal(found[0, 0], table[0, 0])
    np.testing.assert_allclose(found[0, 1:], expected.reshape(-1, 6), atol=1e-12)


def test_bicubic_equals_torch():
    table = np.sin(np.arange(24.0)).reshape(1, 12, 2)
    for size, values in json.loads((FIXTURES / "bicubic.json").read_text()).items():
        new = tuple(map(int, size.split("x")))
        found = resize_pos_embed(table, (3, 4), new, num_prefix=0)
        np.testing.assert_allclose(found.reshape(-1), values, atol=1e-12)


def test_resizing_keeps_the_dtype_and_a_constant_table():
    table = np.full([1, 10, 4], 0.7, np.float32)
    found = resize_pos_embed(table, (3, 3), (5, 4))
    assert found.dtype == np.float32 and found.shape == (1, 21, 4)
    np.testing.assert_allclose(found, 0.7, rtol=1e-6)


@pytest.mark.parametrize("shape, old, new, match", [
    ((1, 17, 4), (4, 5), (2, 2), r"\[1, 17, 4\] is not \[1, 1 \+ 4\*5, D\]"),
    ((17, 4), (4, 4), (2, 2), r"\[17, 4\] is not"),
    ((1, 17, 4), (4, 4), (0, 2), "new_grid must be .rows, columns."),
    ((1, 17, 4), (4,), (2, 2), "old_grid must be .rows, columns."),
])  # fmt: skip
def test_grids_that_do_not_fit_are_refused(shape, old, new, match):
    with pytest.raises(ValueError, match=match):
        resize_pos_embed(np.zeros(shape), old, new)


def test_a_grid_that_is_not_square_must_be_said():
    assert grid_of(np.zeros((1, 50, 2)), None) == (7, 7)
    assert grid_of(np.zeros((1, 13, 2)), (3, 4)) == (3, 4)
    with pytest.raises(
        ValueError, match=r"12 patches is not square: .* old_grid=\(rows, columns\)"
    ):
        grid_of(np.zeros((1, 13, 2)), None)


@pytest.mark.parametrize("channels, how, factors", [
    (1, "average", [[1, 1, 1]]),  # the sum over the old ones
    (2, "average", [[0.5, 0.5, 0.5]] * 2),
    (6, "repeat", [[0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]] * 2),
    (4, "repeat", [[0.75, 0, 0], [0, 0.75, 0], [0, 0, 0.75], [0.75, 0, 0]]),
])  # fmt: skip
def test_channels_worked_by_hand(channels, how, factors):
    weight = np.random.default_rng(0).standard_normal([5, 3, 2, 2]).astype(np.float32)
    found = adapt_channels(weight, channels, how)
    assert found.dtype == np.float32 and found.shape == (5, channels, 2, 2)
    expected = np.stack([sum(f * weight[:, c] for c, f in enumerate(row)) for row in factors], 1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_only_a_patch_projection_has_channels():
    with pytest.raises(ValueError, match=r"is \[D, C, p, q\], got \[4, 3\]"):
        adapt_channels(np.ones((4, 3)), 1, "average")


# --- the real sizes ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mae_vit_b_p16_dec512d8b", "mae_vit_b_p16"])
def test_vit_b_at_224_from_the_references_shapes_and_back(tmp_path, name):
    model = models.MODELS[name]()
    rng = np.random.default_rng(0)
    torch_state = {
        key: rng.standard_normal(value.shape, np.float32) * 0.02
        for key, value in convert(arrays(model), to="torch")[0].items()
    }
    save_file(torch_state, tmp_path / "a.pth", key="model")
    load_into(model, load_weights(tmp_path / "a.pth"))
    save_weights(model.state_dict(), tmp_path / "b.pth")
    back = load_file(tmp_path / "b.pth")
    assert set(back) == set(torch_state)
    assert all((back[key] == value).all() for key, value in torch_state.items())
