"""Attention maps against a softmax written out in NumPy from the same weights."""

import numpy as np
import numpy_vit
import paddle
import pytest

import passl_mae
from passl_mae.attention import attention_of, attention_probabilities


@pytest.fixture(scope="module")
def model():
    paddle.seed(0)
    made = passl_mae.MAE_FineTune(
        img_size=(8, 12), patch_size=4, embed_dim=12, depth=3, num_heads=3, num_classes=2,
        attn_drop_rate=0.5, drop_path_rate=0.5,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for param in made.parameters():  # far from uniform attention
        param.set_value((param.numpy() + 0.5 * rng.normal(size=param.shape)).astype("float32"))
    return made


def slow_probabilities(state, image, block):
    """[heads, N, N] of one image: each row of each head by itself."""
    tokens = np.concatenate([state["cls_token"][0], numpy_vit.embed(image, state, (4, 4))])
    x = tokens + state["pos_embed"][0]
    for number in range(block):
        x = numpy_vit.block(x, state, f"blocks.{number}", 3, 1e-6)
    x = numpy_vit.layer_norm(x, state, f"blocks.{block}.norm1", 1e-6)
    qkv = numpy_vit.linear(x, state, f"blocks.{block}.attn.qkv")
    rows = np.zeros((3, len(x), len(x)))
    for head in range(3):
        q, k = qkv[:, 4 * head : 4 * head + 4], qkv[:, 12 + 4 * head : 12 + 4 * head + 4]
        for i in range(len(x)):
            scores = np.exp([q[i] @ k[j] / 2 for j in range(len(x))])  # 2: the root of 4
            rows[head, i] = scores / scores.sum()
    return rows


@pytest.mark.parametrize("block", [0, 1, -1])
def test_probabilities_equal_the_slow_ones_and_leave_the_model_alone(model, block):
    images = np.random.default_rng(1).normal(size=(2, 3, 8, 12)).astype(np.float32)
    model.train()
    result = attention_probabilities(model, images, block)
    assert model.training and not model.blocks[block % 3].attn._forward_pre_hooks
    state = {k: v.numpy().astype(np.float64) for k, v in model.state_dict().items()}
    expected = [slow_probabilities(state, image.astype(np.float64), block % 3) for image in images]
    np.testing.assert_allclose(result, expected, atol=2e-5)
    np.testing.assert_allclose(result.sum(-1), 1.0, atol=1e-5)
    assert np.ptp(result) > 0.3  # not the uniform attention that hides mistakes


def test_a_block_that_is_not_there(model):
    with pytest.raises(ValueError, match="block 3: the model has blocks 0 to 2"):
        attention_probabilities(model, np.zeros((1, 3, 8, 12), np.float32), 3)


def test_the_map_of_a_token():
    probabilities = np.arange(2 * 3 * 7 * 7).reshape(2, 3, 7, 7)
    of_class = attention_of(probabilities, (2, 3))
    assert of_class[0, 0].tolist() == [[1, 2, 3], [4, 5, 6]]  # row 0 without itself
    of_patch = attention_of(probabilities, (2, 3), (1, 0))  # patch 3, token 4: 28 = 4 * 7
    assert of_patch[0, 0].tolist() == [[29, 30, 31], [32, 33, 34]]
    assert of_patch[1, 2].min() == (1 * 3 + 2) * 49 + 29
    with pytest.raises(ValueError, match="patch 2,0 lies outside the grid of 2 rows and 3 columns"):
        attention_of(probabilities, (2, 3), (2, 0))
