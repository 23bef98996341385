"""The weight average against its formula, and which parameters a frozen classifier trains."""

import numpy as np
import paddle
import pytest

import passl_mae
from passl_mae.models import MODELS
from passl_mae.optim.ema import ModelEMA
from passl_mae.optim.freeze import freeze


def test_the_average_follows_the_formula_with_its_warm_up():
    model = paddle.nn.Linear(2, 3)
    ema = ModelEMA(model, decay=0.5)
    expected = {
        name: value.numpy().astype(np.float64) for name, value in model.state_dict().items()
    }
    rng = np.random.default_rng(0)
    for step in range(1, 8):
        for value in model.state_dict().values():
            value.set_value(rng.normal(size=value.shape).astype(np.float32))
        ema.update(step)
        keep = min(0.5, (1 + step) / (10 + step))  # 2/11, 3/12, ... 8/17
        for name, value in model.state_dict().items():
            expected[name] = keep * expected[name] + (1 - keep) * value.numpy()
    for name, value in ema.state_dict().items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6)


def test_the_model_wears_the_average_only_inside_the_block():
    model = paddle.nn.Linear(2, 3)
    ema = ModelEMA(model, decay=0.9)
    averaged = model.weight.numpy().copy()
    model.weight.set_value(np.full([2, 3], 7.0, np.float32))
    with pytest.raises(RuntimeError), ema.applied():
        np.testing.assert_array_equal(model.weight.numpy(), averaged)
        raise RuntimeError
    np.testing.assert_array_equal(model.weight.numpy(), 7.0)


def test_a_wrong_decay_or_another_model_is_refused():
    with pytest.raises(ValueError, match=r"ema_decay must be in \[0, 1\), got 1\.0"):
        ModelEMA(paddle.nn.Linear(2, 3), decay=1.0)
    ema = ModelEMA(paddle.nn.Linear(2, 3), decay=0.9)
    with pytest.raises(ValueError, match="of another model: gamma differs"):
        ema.load_state_dict({**ema.state_dict(), "gamma": np.zeros(1)})


def classifier():
    return passl_mae.MAE_FineTune(
        img_size=8, patch_size=4, num_classes=3, embed_dim=8, depth=3, num_heads=2
    )


BEHIND = {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("how", "free_blocks"), [("encoder", 0), ("all-but-last-1", 1), ("all-but-last-3", 3)]
)
def test_only_the_named_part_learns(how, free_blocks):
    model = classifier()
    frozen = set(freeze(model, how))
    learning = {name for name, _ in model.named_parameters()} - frozen
    blocks = {f"blocks.{number}." for number in range(3 - free_blocks, 3)}
    expected = {
        name
        for name, _ in model.named_parameters()
        if name in BEHIND or any(name.startswith(block) for block in blocks)
    }
    assert learning == expected
    before = {name: param.numpy().copy() for name, param in model.named_parameters()}
    optimizer = paddle.optimizer.SGD(1.0, [p for p in model.parameters() if not p.stop_gradient])
    paddle.nn.functional.cross_entropy(
        model(paddle.randn([4, 3, 8, 8])), paddle.to_tensor([0, 1, 2, 0])
    ).backward()
    optimizer.step()
    moved = {
        name for name, param in model.named_parameters() if (param.numpy() != before[name]).any()
    }
    assert moved <= learning and moved >= BEHIND


@pytest.mark.parametrize(
    ("how", "statistics", "kept"),
    [
        ("encoder", None, True),
        ("encoder", False, False),
        ("none", True, True),
        ("none", None, False),
    ],
)
def test_batch_norm_keeps_its_statistics_where_it_is_asked_to(how, statistics, kept):
    """Those of the head, a linear probe's, always learn."""
    model = MODELS["efficientnet_b0"](img_size=32, num_classes=3, head_bn=True)
    freeze(model, how, statistics)
    before = {k: v.numpy().copy() for k, v in model.state_dict().items() if k.endswith("_mean")}
    model.train()
    model(paddle.randn([4, 3, 32, 32]))
    moved = {k for k in before if (model.state_dict()[k].numpy() != before[k]).any()}
    assert "head.0._mean" in moved and (moved == {"head.0._mean"}) == kept
    learning = {name for name, p in model.named_parameters() if not p.stop_gradient}
    assert (learning == {"head.1.weight", "head.1.bias"}) == (how == "encoder")


def test_freeze_none_and_mistakes():
    assert freeze(classifier(), "none") == []
    with pytest.raises(ValueError, match="freeze must be none, encoder or all-but-last-K, got 'al"):
        freeze(classifier(), "all-but-last")
    with pytest.raises(ValueError, match="freeze is all-but-last-4 and MAE_FineTune has 3 blocks"):
        freeze(classifier(), "all-but-last-4")
    with pytest.raises(ValueError, match="Linear has 0 blocks"):
        freeze(paddle.nn.Linear(2, 2), "encoder")
    with pytest.raises(ValueError, match="MAE_FineTune has no BatchNorm to freeze"):
        freeze(classifier(), "none", statistics=True)
