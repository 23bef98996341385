"""Optimizers by name: decay exemptions, layer-wise rates and clipping, against NumPy."""

import numpy as np
import paddle
import pytest

import passl_mae
from passl_mae.optim.optimizers import make_optimizer


def tiny():
    paddle.seed(0)
    return passl_mae.MAE_FineTune(
        img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=3
    )


def gradients(model, step):
    rng = np.random.default_rng(step)
    return {name: rng.normal(size=p.shape) for name, p in model.named_parameters()}


@pytest.mark.parametrize("clip", [None, 2.0])
@pytest.mark.parametrize("name", ["SGD", "LARS", "AdamW"])
def test_three_steps_equal_numpy(name, clip):
    model = tiny()
    model.patch_embed.proj.weight.stop_gradient = True
    rate, decay, momentum, factor = 0.1, 0.3, 0.8, 0.5
    weights = {n: p.numpy().astype(np.float64) for n, p in model.named_parameters()}
    frozen = "patch_embed.proj.weight"
    learning = [n for n in weights if n != frozen]
    first = {n: np.zeros_like(weights[n]) for n in learning}
    second = {n: np.zeros_like(weights[n]) for n in learning}
    optimizer = make_optimizer(
        name, model, rate, weight_decay=decay, exempt=("cls_token", "pos_embed"),
        layer_decay=factor, clip_grad=clip, beta2=0.95, momentum=momentum,
    )  # fmt: skip
    for step in range(1, 4):
        grads = gradients(model, step)
        loss = sum(
            (p * paddle.to_tensor(grads[n].astype("float32"))).sum()
            for n, p in model.named_parameters()
            if n != frozen
        )
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        norm = np.sqrt(sum((grads[n] ** 2).sum() for n in learning))
        for n in learning:
            weight, grad = weights[n], grads[n] * (min(1.0, clip / norm) if clip else 1.0)
            layer = 0 if n.split(".")[0] in ("patch_embed", "cls_token", "pos_embed") else 3
            if n.startswith("blocks."):
                layer = int(n.split(".")[1]) + 1
            own_rate = rate * factor ** (3 - layer)
            own_decay = decay if n.endswith(".weight") and "norm" not in n else 0.0
            if name == "AdamW":
                weight -= own_rate * own_decay * weight
                first[n] = 0.9 * first[n] + 0.1 * grad
                second[n] = 0.95 * second[n] + 0.05 * grad**2
                mean, square = first[n] / (1 - 0.9**step), second[n] / (1 - 0.95**step)
                weight -= own_rate * mean / (np.sqrt(square) + 1e-8)
                continue
            update = grad + own_decay * weight
            if name == "LARS" and weight.ndim > 1:
                sizes = np.linalg.norm(weight), np.linalg.norm(update)
                update = update * (0.001 * sizes[0] / sizes[1])
            first[n] = momentum * first[n] + update
            weight -= own_rate * first[n]
    for n, param in model.named_parameters():
        np.testing.assert_allclose(param.numpy(), weights[n], rtol=1e-4, atol=2e-6, err_msg=n)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown optimizer 'Adam': choose one of AdamW, LARS"):
        make_optimizer("Adam", tiny(), 0.1)


def test_a_second_optimizer_does_not_inherit_the_decay_of_the_first():
    model = tiny()
    make_optimizer("SGD", model, 0.1, weight_decay=0.5, layer_decay=0.5)
    make_optimizer("AdamW", model, 0.1)
    for param in model.parameters():
        assert param.regularizer is None and param.optimize_attr["learning_rate"] == 1.0


needs_radam = pytest.mark.skipif(
    not hasattr(paddle.optimizer, "RAdam"), reason="this PaddlePaddle has no RAdam"
)


@needs_radam
@pytest.mark.parametrize("clip", [None, 2.0])
def test_radam_equals_numpy_before_and_after_it_adapts(clip):
    """Liu et al. 2019, algorithm 2: with beta2 = 0.9 the rate adapts from step 6 on."""
    model, rate, decay, beta1, beta2 = tiny(), 0.01, 0.3, 0.8, 0.9
    optimizer = make_optimizer(
        "RAdam", model, rate, weight_decay=decay, exempt=("cls_token", "pos_embed"),
        clip_grad=clip, beta1=beta1, beta2=beta2,
    )  # fmt: skip
    weights = {n: p.numpy().astype(np.float64) for n, p in model.named_parameters()}
    first = {n: np.zeros_like(weight) for n, weight in weights.items()}
    second = {n: np.zeros_like(weight) for n, weight in weights.items()}
    adapted = []
    for step in range(1, 11):
        grads = gradients(model, step)
        loss = sum(
            (p * paddle.to_tensor(grads[n].astype("float32"))).sum()
            for n, p in model.named_parameters()
        )
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        norm = np.sqrt(sum((grad**2).sum() for grad in grads.values()))
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * step * beta2**step / (1 - beta2**step)
        adapted.append(length > 5)
        for n, weight in weights.items():
            grad = grads[n] * (min(1.0, clip / norm) if clip else 1.0)
            if n.endswith(".weight") and "norm" not in n:
                grad = grad + decay * weight
            first[n] = beta1 * first[n] + (1 - beta1) * grad
            second[n] = beta2 * second[n] + (1 - beta2) * grad**2
            update = first[n] / (1 - beta1**step)
            if length > 5:
                above = (length - 4) * (length - 2) * longest
                below = (longest - 4) * (longest - 2) * length
                update *= np.sqrt(above / below * (1 - beta2**step)) / (np.sqrt(second[n]) + 1e-8)
            weight -= rate * update
    assert adapted == [False] * 5 + [True] * 5
    for n, param in model.named_parameters():
        np.testing.assert_allclose(param.numpy(), weights[n], rtol=1e-4, atol=1e-5, err_msg=n)


def test_a_paddle_without_radam_says_so(monkeypatch):
    monkeypatch.delattr(paddle.optimizer, "RAdam", raising=False)
    with pytest.raises(ValueError, match=r"has no RAdam: use AdamW .* PaddlePaddle 3\.0 or newer"):
        make_optimizer("RAdam", tiny(), 0.1)
