"""Features, neighbours and probes of a frozen encoder, against slow NumPy and cases by hand."""

import numpy as np
import numpy_vit
import paddle
import pytest

import passl_mae
from passl_mae import knn
from passl_mae.data.in_memory import InMemoryDataset
from passl_mae.data.loader import EvalLoader
from passl_mae.data.random import keyed_generator
from passl_mae.features import Features, extract_features, pca, tsne
from passl_mae.knn import knn_accuracy, nearest, weighted_votes
from passl_mae.probe import probe_accuracy, train_probe


def state64(model):
    return {k: v.numpy().astype(np.float64) for k, v in model.state_dict().items()}


@pytest.mark.parametrize("pool", ["mean", "token"])
def test_features_are_those_before_the_head_in_order(pool):
    model = passl_mae.MAE_FineTune(
        img_size=8, patch_size=4, embed_dim=12, depth=1, num_heads=3, num_classes=12,
        drop_rate=0.5, global_pool=pool == "mean",
    )  # fmt: skip
    model.train()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
    labels = np.array([3, 0, 1, 1, 2, 3, 0])
    dataset = InMemoryDataset(images, labels, list("abcd"), [0.5] * 3, [0.5] * 3)

    def transform(batch, random):
        return (batch.transpose(0, 3, 1, 2) / 255).astype(np.float32)

    result = extract_features(model, EvalLoader(dataset, transform, batch_size=3))
    # the slow classifier with a head that changes nothing
    state = {**state64(model), "head.weight": np.eye(12), "head.bias": np.zeros(12)}
    expected = numpy_vit.classify(state, transform(images, None), (4, 4), num_heads=3, pool=pool)
    np.testing.assert_allclose(result.features, expected, atol=1e-5)
    np.testing.assert_array_equal(result.labels, labels)
    assert model.training and result.features.dtype == np.float32


def slow_votes(query, bank, labels, k, num_classes, temperature):
    """One sample at a time, all sums written out."""
    similar = []
    for index, row in enumerate(bank):
        cosine = sum(query * row) / (sum(query**2) ** 0.5 * sum(row**2) ** 0.5)
        similar.append((-cosine, index))
    votes = np.zeros(num_classes)
    for negative, index in sorted(similar)[:k]:
        votes[labels[index]] += np.exp(-negative / temperature)
    return votes


@pytest.mark.parametrize("cells", [1, 1 << 20])
def test_neighbours_and_votes_equal_the_slow_ones(monkeypatch, cells):
    monkeypatch.setattr(knn, "CELLS", cells)  # one query at a time, or all at once
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(60, 5)), rng.normal(size=(23, 5))
    labels, truth = rng.integers(0, 6, 60), rng.integers(0, 6, 23)
    train, test = Features(bank, labels), Features(queries, truth)
    result = knn_accuracy(train, test, 6, ks=(1, 9, 60), temperature=0.1)
    for k in (1, 9, 60):
        similarities, indices = nearest(queries, bank, k)
        votes = weighted_votes(similarities, labels[indices], 6, 0.1)
        expected = np.array([slow_votes(query, bank, labels, k, 6, 0.1) for query in queries])
        ratio = votes.sum(1, keepdims=True) / expected.sum(1, keepdims=True)
        np.testing.assert_allclose(votes, expected * ratio, rtol=1e-4)
        assert result[k]["top1"] == (expected.argmax(1) == truth).mean()


def test_votes_by_hand():
    """Cosines 1, 0.8, 0.6 with temperature 0.2: weights 1, e^-1, e^-2."""
    bank = np.array([[0.6, 0.8], [5.0, 0.0], [-1.0, 0.0], [8.0, 6.0]])
    similarities, indices = nearest(np.array([[2.0, 0.0]]), bank, 3)
    assert indices.tolist() == [[1, 3, 0]]
    np.testing.assert_allclose(similarities, [[1.0, 0.8, 0.6]], atol=1e-6)
    votes = weighted_votes(similarities, np.array([[2, 0, 0]]), 4, 0.2)
    np.testing.assert_allclose(votes, [[np.exp(-1) + np.exp(-2), 0, 1, 0]], rtol=1e-5)
    # hotter: two weak neighbours outweigh a strong one
    assert weighted_votes(similarities, np.array([[2, 0, 0]]), 4, 10.0).argmax() == 0


def test_ties_go_to_the_lower_index():
    bank = np.tile([[1.0, 0.0]], (6, 1))
    bank[2] = [0.0, 1.0]
    assert nearest(np.array([[3.0, 0.0]]), bank, 4)[1].tolist() == [[0, 1, 3, 4]]


def test_neighbours_refuse_what_cannot_be():
    bank = np.ones((4, 2))
    with pytest.raises(ValueError, match="k must be between 1 and the 4 training images, got 5"):
        nearest(bank, bank, 5)
    with pytest.raises(ValueError, match="the features are not finite"):
        nearest(np.full((1, 2), np.nan), bank, 1)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        weighted_votes(np.ones((1, 1)), np.zeros((1, 1), int), 2, 0.0)
    assert nearest(np.zeros((1, 2)), bank, 1)[0] == 0.0  # a row of zeros


def numpy_probe(features, labels, weight, epochs, batch, peak, warmup, seed):
    """BatchNorm, a linear layer, softmax, SGD with momentum 0.9: all derivatives by hand."""
    weight, bias = weight.copy(), np.zeros(weight.shape[1])
    velocities = [np.zeros_like(weight), np.zeros_like(bias)]
    running = [np.zeros(features.shape[1]), np.ones(features.shape[1])]
    steps = len(labels) // batch
    step, total = 0, epochs * steps
    for epoch in range(epochs):
        order = keyed_generator((seed, epoch, 3)).permutation(len(labels))
        for number in range(steps):
            rows = order[number * batch : (number + 1) * batch]
            x = features[rows]
            mean, var = x.mean(0), x.var(0)
            running = [0.9 * running[0] + 0.1 * mean, 0.9 * running[1] + 0.1 * var]
            x = (x - mean) / np.sqrt(var + 1e-6)
            logits = x @ weight + bias
            probs = np.exp(logits - logits.max(1, keepdims=True))
            probs /= probs.sum(1, keepdims=True)
            error = (probs - np.eye(weight.shape[1])[labels[rows]]) / batch
            if step < warmup:
                rate = peak * step / warmup
            else:
                rate = peak * (1 + np.cos(np.pi * (step - warmup) / (total - warmup))) / 2
            for value, grad, velocity in zip(
                [weight, bias], [x.T @ error, error.sum(0)], velocities
            ):
                velocity[...] = 0.9 * velocity + grad
                value -= rate * velocity
            step += 1
    return weight, bias, running


def test_the_probe_equals_one_in_numpy():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(26, 5)) * [1, 2, 3, 4, 5] + 7
    labels = rng.integers(0, 3, 26)
    data = Features(features.astype(np.float32), labels)
    settings = dict(optimizer="SGD", batch_size=8, seed=5)
    start = train_probe(data, 3, blr=0.0, epochs=1, warmup_epochs=0, **settings)
    head = train_probe(data, 3, blr=16.0, epochs=4, warmup_epochs=1, **settings)
    weight, bias, (mean, var) = numpy_probe(
        features, labels, start[1].weight.numpy().astype(np.float64),
        epochs=4, batch=8, peak=16 * 8 / 256, warmup=3, seed=5,
    )  # fmt: skip
    np.testing.assert_allclose(head[1].weight.numpy(), weight, atol=1e-5)
    np.testing.assert_allclose(head[1].bias.numpy(), bias, atol=1e-5)
    state = head.state_dict()
    np.testing.assert_allclose(state["0._mean"].numpy(), mean, rtol=1e-5)
    np.testing.assert_allclose(state["0._variance"].numpy(), var, rtol=1e-5)
    logits = (features - mean) / np.sqrt(var + 1e-6) @ weight + bias
    expected = (logits.argmax(1) == labels).mean()
    assert probe_accuracy(head, data)["top1"] == pytest.approx(expected)


@pytest.mark.parametrize(("optimizer", "blr"), [("LARS", 50.0), ("SGD", 1.0), ("AdamW", 0.1)])
def test_every_optimizer_separates_what_a_line_can(optimizer, blr):
    rng = np.random.default_rng(2)
    labels = np.arange(120) % 3
    centres = np.array([[1e-3, 5.0], [2e-3, 5.0], [3e-3, 9.0]])  # small beside large: BatchNorm
    features = centres[labels] + rng.normal(size=(120, 2)) * [5e-5, 0.2]
    data = Features(features.astype(np.float32), labels)
    head = train_probe(data, 3, optimizer=optimizer, blr=blr, epochs=100, batch_size=30)
    assert probe_accuracy(head, data)["top1"] == 1.0


def test_the_probe_refuses_a_batch_that_is_too_large():
    data = Features(np.zeros((4, 2), np.float32), np.zeros(4, np.int64))
    with pytest.raises(ValueError, match="a batch of 5 of 4 training images: lower --batch-size"):
        train_probe(data, 2, batch_size=5)
    with pytest.raises(ValueError, match="unknown optimizer 'Adam': choose one of AdamW, LARS"):
        train_probe(data, 2, batch_size=2, optimizer="Adam")


def test_principal_components_against_the_covariance():
    rng = np.random.default_rng(3)
    features = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4)) + 3
    points, shares = pca(features, 2)
    values, vectors = np.linalg.eigh(np.cov(features.T))
    for column in range(2):
        vector = vectors[:, -1 - column] * np.sign(
            vectors[np.abs(vectors[:, -1 - column]).argmax(), -1 - column]
        )
        expected = (features - features.mean(0)) @ vector
        np.testing.assert_allclose(points[:, column], expected, atol=1e-8)
        assert shares[column] == pytest.approx(values[-1 - column] / values.sum())
    with pytest.raises(ValueError, match=r"5 components of features \[50, 4\]"):
        pca(features, 5)


def test_tsne_keeps_clusters_together():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(4)
    labels = np.arange(60) % 3
    features = 20 * np.eye(3, 8)[labels] + rng.normal(size=(60, 8))
    points = tsne(features, perplexity=10)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert (labels[distances.argmin(1)] == labels).all()
    with pytest.raises(ValueError, match="perplexity 60 must be below the 60 images"):
        tsne(features, perplexity=60)


def test_probe_head_in_a_model():
    model = passl_mae.MAE_FineTune(
        img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3, head_bn=True
    )
    heads = {key for key in model.state_dict() if key.startswith("head")}
    assert heads == {"head.0._mean", "head.0._variance", "head.1.weight", "head.1.bias"}
    model.train()
    x = paddle.randn([16, 3, 8, 8])
    features, logits = model.forward_features(x).numpy(), model(x).numpy()
    normed = (features - features.mean(0)) / np.sqrt(features.var(0) + 1e-6)
    weight = model.head[1].weight.numpy()
    np.testing.assert_allclose(logits, normed @ weight, atol=1e-5)
    assert abs(weight.std() - 0.01) < 5 * 0.01 / 24**0.5
