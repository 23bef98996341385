"""Whole models with and without the operators: losses, gradients, training, what falls back."""

import copy
import hashlib

import numpy as np
import paddle
import pytest
from paddle import nn

from passl_mae.attention import attention_probabilities
from passl_mae.fast import accelerate, choose
from passl_mae.fast.bias import ProductBiasLinear
from passl_mae.fast.check import differences, relative_difference, run_both_ways
from passl_mae.fast.layers import FAST, is_accelerated
from passl_mae.models.layers import Attention, Block, Mlp
from passl_mae.models.mae import MAE_Pretrain
from passl_mae.models.vit import MAE_FineTune
from passl_mae.optim.optimizers import make_optimizer

pytestmark = pytest.mark.usefixtures("operators")

SIZES = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3)
DECODER = dict(decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)


def images(batch=4, seed=0):
    return np.random.default_rng(seed).standard_normal((batch, 3, 32, 32)).astype(np.float32)


def pretraining():
    paddle.seed(0)
    return MAE_Pretrain(**SIZES, **DECODER)


def losses_and_gradients(model, compute):
    model.clear_gradients()
    loss = compute(model)
    loss.backward()
    grads = {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
    return float(loss), grads


def assert_same_training_step(model, compute, tolerance=1e-5):
    plain_loss, plain = losses_and_gradients(model, compute)
    loss, fast = losses_and_gradients(accelerate(copy.deepcopy(model)), compute)
    assert abs(loss - plain_loss) <= tolerance * abs(plain_loss)
    assert fast.keys() == plain.keys()
    largest = max(np.abs(g).max() for g in plain.values())
    for name, grad in plain.items():
        # A key's bias has no gradient but rounding: softmax does not see it.
        assert np.abs(fast[name] - grad).max() <= tolerance * largest, name


def test_operators_equal_the_layers():
    assert all(value < 1e-5 for value in differences(tokens=5, dim=48).values())


def test_pretraining_loss_and_all_gradients():
    noise = paddle.to_tensor(np.random.default_rng(1).random((4, 16)).astype(np.float32))
    x = paddle.to_tensor(images())
    assert_same_training_step(pretraining(), lambda model: model(x, 0.75, noise)[0])


@pytest.mark.parametrize("global_pool", [True, False])
def test_classifier_loss_and_all_gradients(global_pool):
    paddle.seed(0)
    model = MAE_FineTune(**SIZES, num_classes=5, global_pool=global_pool)
    x, labels = paddle.to_tensor(images()), paddle.to_tensor([0, 1, 2, 3])
    assert_same_training_step(model, lambda m: nn.functional.cross_entropy(m(x), labels))


def test_twenty_steps_of_training_stay_together():
    def train(model):
        rate = make_optimizer("AdamW", model, 1e-3, weight_decay=0.05)
        found = []
        for step in range(20):
            paddle.seed(step)
            loss = model(paddle.to_tensor(images(8, step)))[0]
            loss.backward()
            rate.step()
            rate.clear_grad()
            found.append(float(loss))
        return np.array(found)

    plain, fast = train(pretraining()), train(accelerate(pretraining()))
    assert np.abs(fast / plain - 1).max() < 1e-4
    assert fast[-1] != fast[0]


def test_keys_names_and_values_stay():
    model = pretraining()
    before = {key: value.numpy().copy() for key, value in model.state_dict().items()}
    names = [p.name for p in model.parameters()]
    assert not is_accelerated(model)
    assert accelerate(model) is model and is_accelerated(model)
    assert [p.name for p in model.parameters()] == names
    after = model.state_dict()
    assert list(after) == list(before)
    assert all((after[key].numpy() == value).all() for key, value in before.items())
    twice = copy.deepcopy(accelerate(model))
    assert [type(layer) for layer in twice.sublayers()] == [type(la) for la in model.sublayers()]


def test_every_type_of_a_block_is_replaced():
    model = accelerate(nn.Sequential(nn.Conv2D(3, 24, 2), Block(24, 3)))
    kinds = {type(layer) for layer in model.sublayers()}
    assert set(FAST.values()) <= kinds and not kinds & set(FAST)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Block(24, 3, qkv_bias=True, norm_layer=lambda d: nn.LayerNorm(d, bias_attr=False)),
        lambda: Block(24, 3, qkv_bias=False),
        lambda: Block(24, 3, act_layer=nn.ReLU),
        lambda: Block(24, 3, act_layer=lambda: nn.GELU(approximate=True)),
        lambda: nn.LayerNorm([5, 24]),
    ],
)
def test_layers_that_the_operators_do_not_fit(make):
    plain = make()
    x = images()[0, 0].reshape(-1)[:240].reshape(2, 5, 24)
    found, expected = run_both_ways(accelerate(copy.deepcopy(plain)), x), run_both_ways(plain, x)
    assert all(relative_difference(found[name], expected[name]) < 1e-5 for name in expected)


@pytest.mark.parametrize(
    "arguments", [dict(drop=0.3), dict(attn_drop=0.3), dict(drop_path=0.5)], ids=str
)
def test_dropout_draws_the_same_in_training_and_nothing_in_evaluation(arguments):
    plain = Block(24, 3, qkv_bias=True, **arguments)
    fast = accelerate(copy.deepcopy(plain))
    x = paddle.to_tensor(images()[0, 0].reshape(-1)[:960].reshape(8, 5, 24))
    outputs = []
    for mode in ("train", "eval"):
        for block in (plain, fast):
            getattr(block, mode)()
            paddle.seed(5)
            outputs.append(block(x).numpy())
    assert relative_difference(outputs[1], outputs[0]) < 1e-5
    assert relative_difference(outputs[3], outputs[2]) < 1e-5
    assert relative_difference(outputs[1], outputs[3]) > 1e-2


def test_float64_and_half_inputs_go_the_plain_way():
    layer = accelerate(nn.Linear(8, 6))
    layer.to(dtype="float64")
    assert layer(paddle.ones([2, 8], "float64")).dtype == paddle.float64


def test_no_grad_and_frozen_parts():
    model = accelerate(pretraining())
    x = paddle.to_tensor(images())
    with paddle.no_grad():
        assert model(x)[0].stop_gradient
    for parameter in model.blocks.parameters():
        parameter.stop_gradient = True
    model(x)[0].backward()
    assert all(p.grad is None for p in model.blocks.parameters())
    assert model.decoder_pred.weight.grad is not None
    assert model.patch_embed.proj.weight.grad is not None


@pytest.mark.skipif(paddle.__version__ < "3", reason="PaddlePaddle 2.6 has no empty products")
def test_no_images():
    model = accelerate(MAE_FineTune(**SIZES, num_classes=5))
    with paddle.no_grad():
        assert model.blocks[0].mlp(paddle.zeros([0, 17, 24])).shape == [0, 17, 24]


def test_hooks_inside_are_called():
    seen = []
    for plain, inner in ((Mlp(24, 48), "fc1"), (Attention(24, 3), "qkv")):
        layer = accelerate(plain)
        getattr(layer, inner).register_forward_post_hook(lambda *_: seen.append(1))
        layer(paddle.ones([2, 5, 24]))
    assert len(seen) == 2


def test_derived_layers_stay():
    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    model = nn.Sequential(Own(4, 4), nn.Linear(4, 4))
    accelerate(model)
    assert type(model[0]) is Own and type(model[1]) is FAST[nn.Linear]


def test_attention_maps():
    paddle.seed(0)
    model = MAE_FineTune(**SIZES)
    plain = attention_probabilities(model, images())
    assert np.abs(attention_probabilities(accelerate(model), images()) - plain).max() < 1e-5


def test_to_static_runs_the_plain_layers():
    paddle.seed(0)
    model = accelerate(MAE_FineTune(**SIZES, num_classes=5))
    model.eval()
    x = paddle.to_tensor(images())
    dynamic = model(x).numpy()
    static = paddle.jit.to_static(model, full_graph=True)
    with paddle.no_grad():
        assert np.abs(static(x).numpy() - dynamic).max() < 1e-5


THREADS = """
import hashlib, sys
sys.path.insert(0, "tests/fast")
import passl_mae
passl_mae.runtime.import_paddle()
import test_layers
print(test_layers.fingerprint())
"""


def fingerprint():
    """A hash of a loss and all gradients of a model that is large enough to use threads."""
    paddle.seed(0)
    sizes = {**SIZES, "patch_size": 4, "embed_dim": 96}
    model = accelerate(MAE_FineTune(**sizes, num_classes=5))
    loss, grads = losses_and_gradients(
        model, lambda m: (m(paddle.to_tensor(images(16))) ** 2).mean()
    )
    own = {n: g for n, g in grads.items() if n.startswith("blocks.1.mlp")}
    return hashlib.sha256(b"".join(g.tobytes() for g in own.values())).hexdigest(), loss


def test_again_and_with_two_threads_the_bits_are_the_same(run_python):
    one, again, two = (run_python(THREADS, threads) for threads in (1, 1, 2))
    assert one == again
    assert one == two


def test_choose(operators, cache, monkeypatch, tmp_path):
    model = pretraining()
    assert choose(model, "off") == (20, "CPU operators: off") and not is_accelerated(model)
    assert not any(type(layer) is ProductBiasLinear for layer in model.sublayers())
    assert choose(model, "auto") == (20, f"CPU operators: {operators}") and is_accelerated(model)
    with pytest.raises(ValueError, match="auto, on, off, got 'yes'"):
        choose(model, "yes")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = pretraining()
    level, line = choose(model, "auto")
    assert level == 20 and "not built; `python tools/build_ops.py`" in line
    assert not is_accelerated(model)
    assert any(type(layer) is ProductBiasLinear for layer in model.sublayers())
    with pytest.raises(ValueError, match=r"cpu_ops is on, but: .*not built.*build_ops"):
        choose(model, "on")
