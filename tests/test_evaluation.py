"""Accuracy and means against cases worked by hand."""

import json

import numpy as np
import pytest

from passl_mae.evaluation import WeightedMean, top_k_accuracy


def test_top_k_by_hand():
    logits = np.array([[0.1, 0.9, 0.0], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.4, 0.5, 0.1]])
    labels = np.array([1, 1, 0, 2])  # places: 1st, 2nd, 3rd, 3rd
    assert top_k_accuracy(logits, labels, (1, 2, 3)) == {"top1": 0.25, "top2": 0.5, "top3": 1.0}


def test_top_k_against_sorting():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(200, 10)), rng.integers(0, 10, 200)
    ranked = np.argsort(-logits, axis=1)
    for k in (1, 5):
        expected = np.mean([label in row[:k] for row, label in zip(ranked, labels)])
        assert top_k_accuracy(logits, labels, (k,))[f"top{k}"] == pytest.approx(expected)


def test_a_constant_or_nan_output_scores_nothing():
    labels = np.zeros(4, np.int64)
    assert top_k_accuracy(np.ones((4, 3)), labels, (1, 2)) == {"top1": 0.0, "top2": 0.0}
    assert top_k_accuracy(np.full((4, 3), np.nan), labels, (1,)) == {"top1": 0.0}


def test_means_are_weighted_by_samples():
    mean = WeightedMean(["loss", "top1"])
    mean.update({"loss": 1.0, "top1": 0.0}, 3)
    mean.update({"loss": 5.0, "top1": 1.0}, 1)
    assert mean.compute() == {"loss": 2.0, "top1": 0.25}


def test_means_go_on_where_they_were_saved():
    whole, first, second = (WeightedMean(["loss"]) for _ in range(3))
    values = [(0.1, 3), (0.7, 2), (1 / 3, 5)]
    for value, count in values:
        whole.update({"loss": value}, count)
    for value, count in values[:2]:
        first.update({"loss": value}, count)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second.update({"loss": values[2][0]}, values[2][1])
    assert second.compute() == whole.compute()  # to the last bit, through JSON
    # saved by two ranks, gone on with by one
    shared = {"names": ["loss"], "sums": [[2.0, 1.0], [4.0, 2.0]]}
    second.load_state_dict(shared)
    assert second.compute() == {"loss": 2.0}
