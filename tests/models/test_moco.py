"""MoCo against plain NumPy, and what it refuses."""

import numpy as np
import paddle
import pytest
from numpy_moco import LinearMoCo
from paddle import nn

from passl_mae.engine.contrast import MoCoTask
from passl_mae.models.moco import ENCODERS, MoCo, moco
from passl_mae.models.weights import extract_encoder, extract_query_encoder
from passl_mae.optim.optimizers import make_optimizer
from passl_mae.optim.state import parameters_that_stay

B, DIM, PIXELS = 4, 5, 3 * 2 * 2


class Linear(nn.Layer):
    """The simplest encoder: pixels, then a linear head."""

    def __init__(self, num_classes):
        super().__init__()
        self.num_features = PIXELS
        self.head = nn.Linear(PIXELS, num_classes)

    def forward_features(self, x):
        return x.flatten(1)

    def forward(self, x):
        return self.head(self.forward_features(x))


def linear_moco(queue_size, symmetric=False, **kwargs):
    paddle.seed(7)
    model = MoCo(Linear, DIM, queue_size, 0.9, 0.2, symmetric=symmetric, **kwargs)
    model.train()
    return model


def two_views(seed):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((B, 3, 2, 2)).astype(np.float32) for _ in range(2))


@pytest.mark.parametrize("symmetric", [False, True])
def test_three_steps_are_those_of_plain_numpy(symmetric):
    """Loss, logits, queue, pointer, query and key weights; the queue goes round."""
    size = 2 * B * (1 + symmetric)
    model = linear_moco(size, symmetric)
    task = MoCoTask(shuffle=False, symmetric=symmetric)
    optimizer = make_optimizer("SGD", model, 0.3, weight_decay=0.01, momentum=0.9)
    head = model.encoder_q.head
    plain = LinearMoCo(
        head.weight.numpy(), head.bias.numpy(), model.queue.numpy(), 0.9, 0.2, 0.3, 0.9, 0.01
    )
    pointers, seen = [], []
    model.register_forward_post_hook(lambda layer, x, output: seen.append(output))
    for number in range(3):
        x1, x2 = two_views(number)
        values = task.training_step(
            model, {"query": paddle.to_tensor(x1), "key": paddle.to_tensor(x2)}
        )
        values["loss"].backward()
        optimizer.step()
        optimizer.clear_grad()
        loss, logits = plain.step(x1.reshape(B, -1), x2.reshape(B, -1), symmetric)
        assert float(values["loss"]) == pytest.approx(loss, rel=1e-5)
        first = (logits[:, 0] > logits[:, 1:].max(axis=1)).mean()
        assert float(values["contrast_top1"]) == pytest.approx(first)
        found, labels = seen[-1]
        assert found.shape == [B * (1 + symmetric), 1 + size] and not labels.numpy().any()
        np.testing.assert_allclose(found.numpy(), logits, atol=2e-5)
        np.testing.assert_allclose(model.queue.numpy(), plain.queue, atol=1e-6)
        assert model.queue_ptr.item() == plain.pointer
        pointers.append(plain.pointer)
        for encoder, own in ((model.encoder_q, plain.query), (model.encoder_k, plain.key)):
            np.testing.assert_allclose(encoder.head.weight.numpy(), own[0], atol=2e-6)
            np.testing.assert_allclose(encoder.head.bias.numpy(), own[1], atol=2e-6)
    assert pointers == [size // 2, 0, size // 2]


def test_the_key_encoder_has_no_gradient_and_no_place_in_the_optimizer():
    model = linear_moco(2 * B)
    optimizer = make_optimizer("SGD", model, 0.1)
    x1, x2 = map(paddle.to_tensor, two_views(0))
    logits, _ = model(x1, x2)
    logits.sum().backward()
    assert all(p.grad is None for p in model.encoder_k.parameters())
    assert model.queue.grad is None
    learning = {p.name for p in optimizer._parameter_list}
    assert learning == {p.name for p in model.encoder_q.parameters()}


def test_the_key_encoder_begins_as_the_query_encoder_and_queue_columns_are_unit():
    paddle.seed(0)
    model = moco("resnet18", dim=8, queue_size=16, width=4, stem="cifar", img_size=16)
    state = model.state_dict()
    for name in state:
        if name.startswith("encoder_q."):
            other = state[name.replace("encoder_q.", "encoder_k.")]
            np.testing.assert_array_equal(state[name].numpy(), other.numpy(), err_msg=name)
    np.testing.assert_allclose(np.linalg.norm(model.queue.numpy(), axis=0), 1, atol=1e-6)
    assert model.queue.shape == [8, 16] and model.img_size == (16, 16)


def test_statistics_of_batch_norm_are_each_encoders_own():
    """To paddle they are parameters: the momentum update has to leave them alone."""
    paddle.seed(2)
    model = moco("resnet18", dim=6, queue_size=8, img_size=8, width=4, stem="cifar")
    model.train()
    rng = np.random.default_rng(0)
    x_q, x_k = (paddle.to_tensor(rng.random((4, 3, 8, 8), np.float32) * s) for s in (1, 9))
    model(x_q, x_k)
    for encoder, x in ((model.encoder_q, x_q), (model.encoder_k, x_k)):
        seen = encoder.conv1(x).numpy()
        expected = 0.1 * seen.mean(axis=(0, 2, 3))
        np.testing.assert_allclose(encoder.bn1._mean.numpy(), expected, rtol=1e-3, atol=1e-5)
    assert model.encoder_q.bn1._mean.stop_gradient
    assert not any("_mean" in name for name in parameters_that_stay(model))


def test_evaluation_moves_nothing():
    model = linear_moco(2 * B)
    model.encoder_q.head.bias.set_value(np.ones(DIM, np.float32))
    model.eval()
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    x1, x2 = map(paddle.to_tensor, two_views(0))
    model(x1, x2)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name], err_msg=name)


def test_keys_that_are_not_finite_move_nothing():
    model = linear_moco(2 * B)
    model.encoder_q.head.bias.set_value(np.ones(DIM, np.float32))
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    for wrong in (0, 1):
        views = list(two_views(0))
        views[wrong][1] = np.nan
        logits, _ = model(*map(paddle.to_tensor, views))
        assert not np.isfinite(logits.numpy()).all()
        for name, value in model.state_dict().items():
            np.testing.assert_array_equal(value.numpy(), before[name], err_msg=name)


def test_the_mlp_head_is_a_hidden_layer_before_the_last():
    model = linear_moco(B, mlp=True)
    for encoder in (model.encoder_q, model.encoder_k):
        hidden, relu, last = encoder.head
        assert hidden.weight.shape == [PIXELS, PIXELS] and last.weight.shape == [PIXELS, DIM]
        assert isinstance(relu, nn.ReLU)
    x = next(two_views(3))
    w = {name: value.numpy() for name, value in model.encoder_q.head.state_dict().items()}
    h = np.maximum(x.reshape(B, -1) @ w["0.weight"] + w["0.bias"], 0)
    expected = h @ w["2.weight"] + w["2.bias"]
    found = model.encoder_q(paddle.to_tensor(x)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "mae_vit_t_p4"])
def test_a_permutation_of_the_keys_is_undone(name):
    """In evaluation nothing depends on the neighbours, so shuffled keys come back as they were."""
    paddle.seed(1)
    small = {"resnet18": {"width": 4, "stem": "cifar"}}
    vit = {"embed_dim": 12, "depth": 1, "num_heads": 2, "patch_size": 8}
    model = moco(name, dim=6, queue_size=8, img_size=16, **small.get(name, vit))
    model.eval()
    assert model.has_batch_norm == (name == "resnet18")
    images = paddle.to_tensor(np.random.default_rng(0).random((8, 3, 16, 16), np.float32))
    order = np.random.default_rng(1).permutation(8)
    shuffled = model.keys(images, *map(paddle.to_tensor, (order, np.argsort(order)))).numpy()
    np.testing.assert_allclose(shuffled, model.keys(images).numpy(), atol=1e-5)


def test_groups_of_batch_norm_see_other_neighbours_when_shuffled():
    """A key's group holds other images than its query's: the statistics differ, the order not."""
    paddle.seed(1)
    model = moco("resnet18", dim=6, queue_size=16, img_size=16, width=4, stem="cifar", bn_groups=2)
    model.train()
    images = np.random.default_rng(0).random((8, 3, 16, 16), np.float32)
    order = np.array([0, 1, 3, 2, 5, 4, 6, 7])  # group 0 gets 0, 3, 5, 6
    keys = model.keys(*map(paddle.to_tensor, (images, order, np.argsort(order)))).numpy()
    for group in ([0, 3, 5, 6], [1, 2, 4, 7]):
        plain = moco("resnet18", dim=6, queue_size=16, img_size=16, width=4, stem="cifar")
        plain.set_state_dict(model.state_dict())
        plain.train()
        alone = plain.keys(paddle.to_tensor(images[group])).numpy()
        np.testing.assert_allclose(keys[group], alone, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"momentum": 1.5}, "momentum must lie in 0..1, got 1.5"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"dim": 0}, "dim and queue_size must be positive, got 0 and 65536"),
    ],
)
def test_arguments_out_of_bounds(arguments, message):
    with pytest.raises(ValueError, match=message):
        MoCo(Linear, **arguments)


def test_a_queue_that_does_not_fit_names_both_numbers():
    x1, x2 = map(paddle.to_tensor, two_views(0))
    with pytest.raises(ValueError, match="queue_size 10 is not a multiple of the 4 keys"):
        linear_moco(10)(x1, x2)
    with pytest.raises(ValueError, match=r"queue_size 4 is not a multiple of the 8 keys .*of 4 im"):
        linear_moco(4, symmetric=True)(x1, x2)
    with pytest.raises(ValueError, match=r"two views of the same images, got \[4, 3, 2, 2\] and"):
        linear_moco(8)(x1, x2[:2])


def test_encoders_of_mae_and_moco_are_told_apart():
    paddle.seed(0)
    vit = {"embed_dim": 12, "depth": 1, "num_heads": 2, "patch_size": 8, "img_size": 16}
    state = moco("mae_vit_t_p4", dim=6, queue_size=8, mlp=True, **vit).state_dict()
    taken, report = extract_query_encoder(state)
    classifier = ENCODERS["mae_vit_t_p4"](num_classes=3, **vit).state_dict()
    assert set(classifier) - set(taken) == {"head.weight", "head.bias"}
    assert set(taken) <= set(classifier) and "fc_norm.weight" in taken
    assert "encoder_q.head.0.weight" in report.dropped and "queue" in report.dropped
    np.testing.assert_array_equal(taken["cls_token"].numpy(), state["encoder_q.cls_token"].numpy())
    with pytest.raises(ValueError, match="these are MoCo's weights, not MAE's"):
        extract_encoder(state)
    with pytest.raises(ValueError, match="no MoCo query encoder in these weights, which have cls"):
        extract_query_encoder(taken)
