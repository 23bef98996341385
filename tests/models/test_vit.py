"""MAE_FineTune and the building blocks, against float64 NumPy and by hand."""

import numpy as np
import numpy_vit
import paddle
import pytest

from passl_mae import Attention, Block, DropPath, Identity, MAE_FineTune, Mlp, mae_vit_b_p16, models

SMALL = dict(embed_dim=24, depth=2, num_heads=3, mlp_ratio=2.0, num_classes=5)
SIZES = {
    "square": dict(img_size=16, patch_size=4),
    "tall": dict(img_size=(24, 16), patch_size=(8, 4), in_chans=1),
}


def build(**overrides):
    model = MAE_FineTune(**{**SMALL, "img_size": 16, "patch_size": 4, **overrides})
    rng = np.random.default_rng(0)
    for name, param in model.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        param.set_value((centre + 0.1 * rng.standard_normal(param.shape)).astype("float32"))
    model.eval()
    return model


def images_for(model, batch=3):
    shape = [batch, model.patch_embed.in_chans, *model.patch_embed.img_size]
    return np.random.default_rng(1).standard_normal(shape).astype("float32")


def state64(model):
    return {k: v.numpy().astype(np.float64) for k, v in model.state_dict().items()}


@pytest.mark.parametrize("pool", ["mean", "token"])
@pytest.mark.parametrize("size", SIZES)
def test_logits_equal_the_slow_implementation(size, pool):
    model = build(**SIZES[size], global_pool=pool == "mean")
    images = images_for(model)
    patch = model.patch_embed.patch_size
    expected = numpy_vit.classify(state64(model), images, patch, num_heads=3, pool=pool)
    np.testing.assert_allclose(model(paddle.to_tensor(images)).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("pool", ["mean", "token"])
def test_gradients_equal_finite_differences(pool):
    model = build(global_pool=pool == "mean", qkv_bias=False)
    images = images_for(model, batch=2)
    weight = np.random.default_rng(2).standard_normal([2, 5])
    (model(paddle.to_tensor(images)) * paddle.to_tensor(weight.astype("float32"))).sum().backward()
    state = state64(model)

    def loss():
        return (numpy_vit.classify(state, images, (4, 4), 3, pool=pool) * weight).sum()

    for name, param in model.named_parameters():
        grad = param.grad.numpy()
        index = np.unravel_index(np.abs(grad).argmax(), grad.shape)
        kept = state[name][index]
        values = []
        for step in (1e-5, -1e-5):
            state[name][index] = kept + step
            values.append(loss())
        state[name][index] = kept
        expected = (values[0] - values[1]) / 2e-5
        assert abs(grad[index] - expected) <= 1e-4 * abs(expected), name


def test_the_tutorials_classifier():
    model = mae_vit_b_p16(img_size=32, patch_size=4, num_classes=10)
    assert model(paddle.randn([2, 3, 32, 32])).shape == [2, 10]
    assert isinstance(model.fc_norm, paddle.nn.LayerNorm) and model.fc_norm._epsilon == 1e-6
    assert set(model.state_dict()) == classifier_keys(depth=12)


def classifier_keys(depth, norm="fc_norm"):
    parts = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    layers = ["patch_embed.proj", norm, "head"]
    layers += [f"blocks.{i}.{part}" for i in range(depth) for part in parts]
    keys = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    return keys | {"cls_token", "pos_embed"}


def test_class_token_pooling_holds_norm_instead_of_fc_norm():
    assert set(build(global_pool=False).state_dict()) == classifier_keys(2, norm="norm")


def test_no_classes_gives_features():
    model = build(num_classes=0)
    assert model(paddle.zeros([2, 3, 16, 16])).shape == [2, 24]
    assert not any(key.startswith("head") for key in model.state_dict())


# The reference's classifiers at 224 px with 1000 classes, counted from their shapes.
@pytest.mark.parametrize("name, width, depth, tokens, patch", [
    ("mae_vit_b_p16", 768, 12, 197, 16),
    pytest.param("mae_vit_l_p16", 1024, 24, 197, 16, marks=pytest.mark.slow),
    pytest.param("mae_vit_h_p14", 1280, 32, 257, 14, marks=pytest.mark.slow),
])  # fmt: skip
def test_parameter_counts_at_224(name, width, depth, tokens, patch):
    block = 4 * width + (width * 3 * width + 3 * width) + (width * width + width)
    block += (width * 4 * width + 4 * width) + (4 * width * width + width)
    count = depth * block + (3 * patch * patch * width + width) + width + tokens * width
    count += 2 * width + 1000 * width + 1000
    assert sum(p.size for p in models.MODELS[name]().parameters()) == count


def test_every_parameter_gets_a_gradient():
    model = MAE_FineTune(**SMALL, img_size=16, patch_size=4)
    model(paddle.randn([2, 3, 16, 16])).square().sum().backward()
    for name, param in model.named_parameters():
        grad = param.grad.numpy()
        assert np.isfinite(grad).all() and np.abs(grad).max() > 0, name


def test_initialisation():
    paddle.seed(3)
    state = MAE_FineTune(
        img_size=32, patch_size=4, embed_dim=192, depth=1, num_heads=3, num_classes=1000
    ).state_dict()
    for name in ("blocks.0.attn.qkv.weight", "head.weight", "cls_token", "pos_embed"):
        values = state[name].numpy()
        tolerance = 5 * 0.02 / values.size**0.5
        assert abs(values.mean()) < tolerance and abs(values.std() - 0.02) < tolerance, name
    assert not state["head.bias"].numpy().any()
    projection = np.abs(state["patch_embed.proj.weight"].numpy())
    assert 0.97 * 48**-0.5 < projection.max() <= 48**-0.5 * (1 + 1e-6)


def test_drop_path_grows_linearly_over_the_blocks():
    model = build(depth=4, drop_path_rate=0.3)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in model.blocks]
    np.testing.assert_allclose(rates, [0.0, 0.1, 0.2, 0.3])
    assert isinstance(model.blocks[0].drop_path, Identity)


def test_drop_path_drops_whole_samples_and_scales_the_rest():
    paddle.seed(0)
    layer = DropPath(0.3)
    layer.train()
    out = layer(paddle.ones([4000, 2, 3])).numpy()
    assert set(np.unique(out.round(5))) == {0.0, np.float32(1 / 0.7).round(5)}
    assert (out == out[:, :1, :1]).all()  # all of a sample, or none
    kept = (out[:, 0, 0] > 0).mean()
    assert abs(kept - 0.7) < 5 * (0.3 * 0.7 / 4000) ** 0.5
    layer.eval()
    assert (layer(paddle.ones([50, 2, 3])).numpy() == 1).all()


@pytest.mark.parametrize("rate", [None, 0.0])
def test_drop_path_of_nothing_is_the_identity(rate):
    layer = DropPath(rate)
    layer.train()
    x = paddle.randn([5, 2])
    assert (layer(x).numpy() == x.numpy()).all()


@pytest.mark.parametrize("rate", [1.0, -0.1])
def test_drop_path_refuses_a_rate_that_is_no_probability(rate):
    with pytest.raises(ValueError, match=r"drop_prob must be in \[0, 1\)"):
        DropPath(rate)


def test_block_attention_and_mlp_take_the_tutorials_arguments():
    x = paddle.randn([2, 5, 8])
    assert Block(8, 2, mlp_ratio=3.0, qkv_bias=True, drop=0.1, attn_drop=0.1)(x).shape == [2, 5, 8]
    assert Mlp(8, hidden_features=12, out_features=6)(x).shape == [2, 5, 6]
    attention = Attention(8, num_heads=2, qkv_bias=False)
    assert "qkv.bias" not in attention.state_dict() and attention(x).shape == [2, 5, 8]


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="17x17 is not divisible by patch_size 4x4"):
        build(img_size=17)
    with pytest.raises(ValueError, match="embed_dim 24 is not divisible by num_heads 7"):
        build(num_heads=7)
