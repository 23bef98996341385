"""MAE_Pretrain against a second implementation in float64 NumPy, and its parts by hand."""

import subprocess
import sys
from functools import partial

import numpy as np
import numpy_mae
import numpy_pos_embed
import paddle
import pytest
from paddle import nn

from passl_mae import MAE_Pretrain, mae_vit_b_p16_dec512d8b, models
from passl_mae.models import layers
from passl_mae.models.pos_embed import get_2d_sincos_pos_embed

EPS = partial(nn.LayerNorm, epsilon=1e-6)
SMALL = dict(embed_dim=24, depth=2, num_heads=3, mlp_ratio=2.0, norm_layer=EPS)
DECODER = dict(decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)
CASES = {
    "32/4": (dict(img_size=32, patch_size=4), 0.75, 2),
    "64/8 norm_pix": (dict(img_size=64, patch_size=8, norm_pix_loss=True), 0.75, 2),
    "wide": (dict(img_size=(16, 24), patch_size=4), 0.5, 1),
    "tall, oblong patches": (dict(img_size=(24, 16), patch_size=(4, 8)), 0.25, 5),
    "grey": (dict(img_size=16, patch_size=4, in_chans=1, norm_pix_loss=True), 0.6, 3),
    "four channels": (dict(img_size=16, patch_size=(8, 4), in_chans=4), 0.3, 2),
}


def build(**overrides):
    """A small model with every parameter random, so that no term is 0 or 1 by chance."""
    paddle.seed(0)
    model = MAE_Pretrain(**{**SMALL, **DECODER, **overrides})
    rng = np.random.default_rng(0)
    for name, param in model.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        param.set_value((centre + 0.1 * rng.standard_normal(param.shape)).astype("float32"))
    return model


def inputs(model, batch, seed=0):
    rng = np.random.default_rng(seed)
    embed = model.patch_embed
    images = rng.standard_normal([batch, embed.in_chans, *embed.img_size]).astype("float32")
    return images, rng.random([batch, embed.num_patches]).astype("float32")


def state64(model):
    return {k: v.numpy().astype(np.float64) for k, v in model.state_dict().items()}


def reference(model, state, images, noise, ratio):
    return numpy_mae.forward(
        state, images, noise, ratio, patch=model.patch_embed.patch_size, num_heads=3,
        decoder_num_heads=2, norm_pix_loss=model.norm_pix_loss,
    )  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_numbers_equal_the_slow_implementation(case):
    arguments, ratio, batch = CASES[case]
    model = build(**arguments)
    images, noise = inputs(model, batch)
    expected = reference(model, state64(model), images, noise, ratio)
    tensors = paddle.to_tensor(images), paddle.to_tensor(noise)
    loss, pred, mask = model(tensors[0], mask_ratio=ratio, noise=tensors[1])
    latent, _, ids_restore = model.forward_encoder(tensors[0], ratio, tensors[1])
    assert abs(loss.item() - expected["loss"]) < 1e-5
    np.testing.assert_allclose(pred.numpy(), expected["pred"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(latent.numpy(), expected["latent"], atol=1e-4, rtol=0)
    np.testing.assert_array_equal(mask.numpy(), expected["mask"])
    np.testing.assert_array_equal(ids_restore.numpy(), expected["ids_restore"])


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_loss_at_other_mask_ratios(ratio, norm_pix_loss):
    model = build(img_size=16, patch_size=4, norm_pix_loss=norm_pix_loss)
    images, noise = inputs(model, 3, seed=1)
    expected = reference(model, state64(model), images, noise, ratio)["loss"]
    loss, _, _ = model(paddle.to_tensor(images), ratio, paddle.to_tensor(noise))
    assert abs(loss.item() - expected) < 1e-5


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_gradients_equal_finite_differences(norm_pix_loss):
    model = build(img_size=(12, 8), patch_size=4, norm_pix_loss=norm_pix_loss)
    images, noise = inputs(model, 2)
    loss, _, _ = model(paddle.to_tensor(images), 0.5, paddle.to_tensor(noise))
    loss.backward()
    state = state64(model)

    def loss_of(values):
        return reference(model, values, images, noise, 0.5)["loss"]

    for name, param in model.named_parameters():
        if param.stop_gradient:
            assert name in ("pos_embed", "decoder_pos_embed")
            continue
        grad = param.grad.numpy()
        size = np.abs(grad).max()
        # the largest entry, by which the others are measured, and one taken at random
        places = [np.abs(grad).argmax(), np.random.default_rng(1).integers(grad.size)]
        for place in places:
            index = np.unravel_index(place, grad.shape)
            expected = numpy_mae.gradient(loss_of, state, name, index)
            if name.endswith("attn.qkv.bias"):  # keys' biases have no effect: 0 but for rounding
                size = max(size, 1e-3)
            assert abs(grad[index] - expected) <= 1e-4 * size + 1e-9, (name, index)


def test_nothing_removed_is_the_mean_over_all_patches():
    model = build(img_size=16, patch_size=4)
    images, noise = inputs(model, 2)
    loss, pred, mask = model(paddle.to_tensor(images), 0.0, paddle.to_tensor(noise))
    targets = np.array([numpy_mae.to_patches(image, (4, 4)) for image in images])
    assert mask.sum().item() == 0
    assert abs(loss.item() - ((pred.numpy() - targets) ** 2).mean()) < 1e-5


def test_patches_in_the_order_worked_by_hand():
    # 1 x 2 patches of 2 x 2, 2 channels: pixel (channel c, row y, column x) holds 100c + 10y + x
    image = np.fromfunction(lambda c, y, x: 100 * c + 10 * y + x, (2, 2, 4)).astype("float32")
    model = build(img_size=(2, 4), patch_size=2, in_chans=2)
    found = model.patchify(paddle.to_tensor(image[None])).numpy()
    np.testing.assert_array_equal(
        found, [[[0, 100, 1, 101, 10, 110, 11, 111], [2, 102, 3, 103, 12, 112, 13, 113]]]
    )


@pytest.mark.parametrize("case", CASES)
def test_unpatchify_undoes_patchify(case):
    model = build(**CASES[case][0])
    images, _ = inputs(model, 3)
    patches = model.patchify(paddle.to_tensor(images))
    rows, cols = model.patch_embed.grid_size
    assert patches.shape == [3, rows * cols, images[0].size // (rows * cols)]
    np.testing.assert_array_equal(model.unpatchify(patches).numpy(), images)


def test_masking_keeps_the_smallest_noise_and_restores_the_order():
    model = build(img_size=8, patch_size=4)
    tokens = paddle.to_tensor([[[10.0], [20.0], [30.0], [40.0]]])
    noise = paddle.to_tensor([[0.7, 0.1, 0.9, 0.4]])
    kept, mask, ids_restore = model.random_masking(tokens, 0.5, noise)
    assert kept.numpy().tolist() == [[[20.0], [40.0]]]  # in the order of their noise
    assert mask.numpy().tolist() == [[1.0, 0.0, 1.0, 0.0]]
    assert ids_restore.numpy().tolist() == [[2, 0, 3, 1]]


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.6, 0.75, 0.9])
def test_masks_remove_the_same_number_in_every_sample(ratio):
    model = build(img_size=32, patch_size=4)
    tokens = paddle.zeros([7, 64, 1])
    kept, mask, _ = model.random_masking(tokens, ratio)
    assert kept.shape[1] == int(64 * (1 - ratio))
    assert set(mask.sum(axis=1).numpy()) == {64 - int(64 * (1 - ratio))}


def test_masks_are_random_without_noise_and_repeat_with_it():
    model = build(img_size=32, patch_size=4)
    tokens = paddle.zeros([512, 64, 1])
    share = model.random_masking(tokens, 0.75)[1].numpy().mean(axis=0)
    assert abs(share - 0.75).max() < 5 * (0.75 * 0.25 / 512) ** 0.5  # every place alike
    noise = paddle.rand([512, 64])
    first, second = (model.random_masking(tokens, 0.75, noise)[1].numpy() for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert (first != model.random_masking(tokens, 0.75)[1].numpy()).any()


@pytest.mark.parametrize(
    "arguments, match",
    [
        (dict(img_size=30, patch_size=4), "30x30 is not divisible by patch_size 4x4"),
        (dict(img_size=(32, 30), patch_size=4), "32x30 is not divisible"),
        (dict(num_heads=5), "embed_dim 24 is not divisible by num_heads 5"),
        (dict(decoder_num_heads=3), "embed_dim 16 is not divisible by num_heads 3"),
        (dict(img_size=0), "img_size must be a positive int"),
        (dict(patch_size=(4, 4, 4)), "patch_size must be a positive int or a .height, width."),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        MAE_Pretrain(**{**SMALL, **DECODER, "img_size": 32, "patch_size": 4, **arguments})


@pytest.mark.parametrize(
    "ratio, noise, match",
    [
        (1.0, [2, 16], r"mask_ratio must be in \[0, 1\), got 1.0"),
        (-0.1, [2, 16], r"mask_ratio must be in \[0, 1\), got -0.1"),
        (0.99, [2, 16], "mask_ratio 0.99 keeps none of the 16 patches"),
        (0.5, [2, 15], r"noise must be \[B, 16\], got \[2, 15\]"),
        (0.5, [1, 16], r"noise must be \[2, 16\], got \[1, 16\]"),
        (0.5, [2, 16, 1], r"noise must be \[B, 16\], got \[2, 16, 1\]"),
    ],
)
def test_masking_that_cannot_be_is_refused(ratio, noise, match):
    model = build(img_size=16, patch_size=4)
    with pytest.raises(ValueError, match=match):
        model(paddle.zeros([2, 3, 16, 16]), ratio, paddle.rand(noise))


def test_images_of_another_size_are_refused():
    model = build(img_size=16, patch_size=4)
    with pytest.raises(ValueError, match=r"takes images \[B, 3, 16, 16\], got \[2, 3, 16, 20\]"):
        model(paddle.zeros([2, 3, 16, 20]))
    with pytest.raises(ValueError, match=r"takes images \[B, 3, 16, 16\], got \[2, 1, 16, 16\]"):
        model(paddle.zeros([2, 1, 16, 16]))
    with pytest.raises(ValueError, match="images of 16x20 do not fit"):
        model.patchify(paddle.zeros([2, 3, 16, 20]))
    with pytest.raises(ValueError, match="do not fit a grid of 4x4"):
        model.unpatchify(paddle.zeros([2, 15, 48]))


@pytest.mark.parametrize("name, count", [
    ("mae_vit_b_p16_dec512d8b", 111_907_840),
    pytest.param("mae_vit_l_p16_dec512d8b", 329_541_888, marks=pytest.mark.slow),
    pytest.param("mae_vit_h_p14_dec512d8b", 657_074_508, marks=pytest.mark.slow),
])  # fmt: skip
def test_parameter_counts_at_224(name, count):
    model = models.MODELS[name]()
    assert sum(p.size for p in model.parameters()) == count


def test_the_tutorials_model_its_input_and_its_keys():
    model = mae_vit_b_p16_dec512d8b(img_size=32, patch_size=4)
    assert sum(p.size for p in model.parameters()) == 110_816_560
    loss, pred, mask = model(paddle.randn([1, 3, 32, 32]), mask_ratio=0.75)
    assert (loss.size, pred.shape, mask.shape) == (1, [1, 64, 48], [1, 64])
    assert mask.sum().item() == 48
    assert set(model.state_dict()) == tutorial_keys(depth=12, decoder_depth=8)


def tutorial_keys(depth, decoder_depth):
    """The names that follow from the tutorial's constructors."""
    parts = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    layers = ["patch_embed.proj", "norm", "decoder_embed", "decoder_norm", "decoder_pred"]
    layers += [f"blocks.{i}.{part}" for i in range(depth) for part in parts]
    layers += [f"decoder_blocks.{i}.{part}" for i in range(decoder_depth) for part in parts]
    keys = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    return keys | {"cls_token", "pos_embed", "mask_token", "decoder_pos_embed"}


def test_every_parameter_but_the_tables_gets_a_gradient():
    model = MAE_Pretrain(img_size=16, patch_size=4, **SMALL, **DECODER)
    model(paddle.randn([2, 3, 16, 16]))[0].backward()
    for name, param in model.named_parameters():
        if name in ("pos_embed", "decoder_pos_embed"):
            assert param.stop_gradient and param.grad is None
        else:
            grad = param.grad.numpy()
            assert np.isfinite(grad).all() and np.abs(grad).max() > 0, name


def test_initialisation_acts_on_the_parameters():
    paddle.seed(1)
    model = mae_vit_b_p16_dec512d8b(img_size=32, patch_size=4, depth=1, decoder_depth=1)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    # Xavier over [768, 3*4*4]; a convolution's own start would reach 1 / sqrt(48) = 0.144
    assert_uniform(state["patch_embed.proj.weight"], (6 / (48 + 768)) ** 0.5)
    assert_uniform(state["patch_embed.proj.bias"], 48**-0.5)
    assert_uniform(state["blocks.0.attn.qkv.weight"], (6 / (768 + 3 * 768)) ** 0.5)
    assert_uniform(state["decoder_embed.weight"], (6 / (768 + 512)) ** 0.5)
    for name in ("cls_token", "mask_token"):
        assert abs(state[name].std() - 0.02) < 0.003 and abs(state[name].mean()) < 0.003
    for name, value in state.items():
        if name.endswith("bias") and "patch_embed" not in name:
            assert not value.any(), name
        if "norm" in name and name.endswith("weight"):
            assert (value == 1).all(), name
    table = numpy_pos_embed.sincos(768, 8, 8)
    assert not state["pos_embed"][0, 0].any()
    np.testing.assert_allclose(state["pos_embed"][0, 1:], table, atol=1e-6)


def assert_uniform(values, bound):
    assert np.abs(values).max() <= bound * (1 + 1e-6)
    assert np.abs(values).max() > 0.97 * bound
    assert abs(values.std() - bound / 3**0.5) < 0.03 * bound


@pytest.mark.parametrize("rows, cols", [(4, 4), (3, 5), (1, 2)])
def test_position_table_number_by_number(rows, cols):
    found = get_2d_sincos_pos_embed(16, (rows, cols), cls_token=True)
    assert found.shape == (1 + rows * cols, 16) and not found[0].any()
    np.testing.assert_allclose(found[1:], numpy_pos_embed.sincos(16, rows, cols), atol=1e-12)


def test_position_table_refuses_an_odd_width():
    with pytest.raises(ValueError, match="embed_dim % 4 == 0, got 18"):
        get_2d_sincos_pos_embed(18, 4)


def test_fused_attention_equals_the_plain_one(monkeypatch):
    model = build(img_size=16, patch_size=4)
    images, noise = map(paddle.to_tensor, inputs(model, 2))
    plain = model(images, 0.5, noise)
    monkeypatch.setattr(layers, "_has_fused_attention", lambda dtype: True)
    fused = model(images, 0.5, noise)
    np.testing.assert_allclose(fused[1].numpy(), plain[1].numpy(), atol=1e-5)
    assert abs(fused[0].item() - plain[0].item()) < 1e-6


def test_loss_of_bfloat16_predictions_is_computed_in_float32():
    model = build(img_size=16, patch_size=4)
    images, noise = map(paddle.to_tensor, inputs(model, 2))
    _, pred, mask = model(images, 0.5, noise)
    half = pred.astype("bfloat16")
    loss = model.forward_loss(images.astype("bfloat16"), half, mask)
    assert loss.dtype == paddle.float32
    target = model.patchify(images.astype("bfloat16").astype("float32")).numpy()
    error = ((half.astype("float32").numpy() - target) ** 2).mean(-1)
    expected = (error * mask.numpy()).sum() / mask.numpy().sum()
    assert abs(loss.item() - expected) < 1e-6 * expected  # bfloat16 itself keeps 3 digits


def test_normalised_targets_make_no_warning_of_paddles():
    """paddle's `var` prints one about a type promotion, once a process, into every training log."""
    code = (
        "import passl_mae; passl_mae.runtime.import_paddle(); import paddle\n"
        "from passl_mae.models.mae import patch_statistics\n"
        "print(patch_statistics(paddle.to_tensor([[[1.0, 3.0]]]))[1].item())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "promotion" not in run.stderr
    assert float(run.stdout) == pytest.approx((2 + 1e-6) ** 0.5, rel=1e-6)
