"""WarmupCosineLR against the formula, the tutorial's numbers by hand, and a resumed run."""

import numpy as np
import numpy_optim
import paddle
import pytest

from passl_mae import WarmupCosineLR

TUTORIAL = dict(
    learning_rate=5e-5, warmup_start_lr=1e-6, end_lr=1e-7, warmup_epochs=6, total_epochs=100
)


def rates(schedule, steps):
    found = []
    for _ in range(steps):
        found.append(schedule.get_lr())
        schedule.step()
    return found


@pytest.mark.parametrize("peak, start, end, warmup, total", [
    (5e-5, 1e-6, 1e-7, 6, 100),
    (5e-4, 1e-5, 1e-6, 3, 10),
    (1e-3, 0.0, 0.0, 0, 7),  # no warm-up
    (1e-3, 1e-4, 1e-5, 5, 5),  # nothing but warm-up
    (1.0, 2.0, 0.5, 4, 9),  # down to the peak
])  # fmt: skip
def test_every_step_equals_the_formula(peak, start, end, warmup, total):
    found = rates(WarmupCosineLR(peak, start, end, warmup, total), total + 5)
    expected = [
        numpy_optim.warmup_cosine(step, peak, start, end, warmup, total)
        for step in range(total + 5)
    ]
    if warmup == total:  # at the last step the peak, then the cosine has no room
        expected[total] = peak
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-18)


def test_the_tutorials_numbers_by_hand():
    found = rates(WarmupCosineLR(**TUTORIAL), 101)
    assert found[0] == 1e-6
    assert found[3] == pytest.approx(2.55e-5)  # half way up: (1e-6 + 5e-5) / 2
    assert found[6] == pytest.approx(5e-5)
    assert found[53] == pytest.approx(2.505e-5)  # half way down: (5e-5 + 1e-7) / 2
    assert found[100] == pytest.approx(1e-7)


# The list that the document on sorting garbage prints: 252 batches, of 250 planned ones.
PRINTED_START = [4e-06, 4.513369e-06]
PRINTED_END = [
    7.281053e-05, 7.0564354e-05, 6.826705e-05, 6.592433e-05, 6.354202e-05, 6.112605e-05,
    5.868241e-05, 5.6217184e-05, 5.3736505e-05, 5.1246534e-05, 4.8753467e-05, 4.6263496e-05,
    4.3782813e-05, 4.131759e-05, 3.8873954e-05, 3.6457976e-05, 3.4075667e-05, 3.173295e-05,
    2.9435645e-05, 2.7189468e-05, 2.5e-05, 2.2872688e-05, 2.0812817e-05, 1.882551e-05,
    1.6915708e-05, 1.5088159e-05, 1.3347407e-05, 1.1697778e-05, 1.0143374e-05, 8.688061e-06,
    7.335456e-06, 6.0889215e-06, 4.9515565e-06, 3.9261895e-06, 3.015369e-06, 2.2213596e-06,
    1.5461356e-06, 9.913756e-07, 5.584587e-07, 2.4846122e-07, 6.215394e-08, 0.0, 0.0,
]  # fmt: skip


def test_the_list_that_the_document_prints():
    schedule = WarmupCosineLR(1e-4, 4e-6, 0.0, warmup_epochs=187, total_epochs=250)
    found = [np.float32(rate) for rate in rates(schedule, 252)]
    assert found[:2] == [np.float32(rate) for rate in PRINTED_START]
    printed = np.array(PRINTED_END, np.float32)
    np.testing.assert_allclose(found[-len(printed) :], printed, rtol=1.2e-7, atol=0)


def documents_formula(step, base, start, total, warmup, hold):
    """`cosine_decay_with_warmup` of the document, its order of choices kept."""
    cosine = (step - warmup - hold) / float(total - warmup - hold)
    rate = 0.5 * base * (1 + np.cos(np.pi * cosine))
    if hold > 0:
        rate = rate if step > warmup + hold else base
    if warmup > 0 and step < warmup:
        rate = (base - start) / warmup * step + start
    return 0.0 if step > total else rate


@pytest.mark.parametrize("warmup, hold", [(187, 0), (100, 50), (0, 30), (5, 244)])
def test_the_hold_is_the_documents(warmup, hold):
    schedule = WarmupCosineLR(1e-4, 4e-6, 0.0, warmup, 250, hold_epochs=hold)
    expected = [documents_formula(step, 1e-4, 4e-6, 250, warmup, hold) for step in range(255)]
    assert rates(schedule, 255) == pytest.approx(expected, rel=1e-9, abs=1e-18)


def test_a_hold_up_to_the_end():
    found = rates(WarmupCosineLR(1.0, 0.0, 0.0, 2, 5, hold_epochs=3), 6)
    assert found == [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]


def test_it_drives_an_optimizer():
    schedule = WarmupCosineLR(1.0, 0.5, 0.0, 1, 3)
    weight = paddle.create_parameter([1], "float32")
    weight.set_value(paddle.zeros([1]))
    optimizer = paddle.optimizer.SGD(schedule, parameters=[weight])
    for _ in range(3):  # steps of 0.5, 1 and 0.5
        weight.sum().backward()
        optimizer.step()
        optimizer.clear_grad()
        schedule.step()
    assert weight.item() == pytest.approx(-2.0)


def test_a_resumed_schedule_goes_on():
    whole = rates(WarmupCosineLR(**TUTORIAL), 40)
    first = WarmupCosineLR(**TUTORIAL)
    rates(first, 17)
    second = WarmupCosineLR(**TUTORIAL)
    second.set_state_dict(first.state_dict())
    assert rates(second, 23) == whole[17:]
    assert WarmupCosineLR(**TUTORIAL, last_epoch=16).get_lr() == whole[17]


@pytest.mark.parametrize("changed, match", [
    (dict(learning_rate=-1.0), "must not be negative, got learning_rate -1.0"),
    (dict(end_lr=-1e-9), "must not be negative"),
    (dict(warmup_epochs=101), "got warmup_epochs 101, total_epochs 100"),
    (dict(warmup_epochs=-1), "0 <= warmup_epochs"),
    (dict(total_epochs=0), "total_epochs > 0"),
    (dict(hold_epochs=-1), "hold_epochs >= 0"),
    (dict(hold_epochs=95), "got hold_epochs 95, warmup_epochs 6, total_epochs 100"),
])  # fmt: skip
def test_schedules_that_cannot_be_are_refused(changed, match):
    with pytest.raises(ValueError, match=match):
        WarmupCosineLR(**{**TUTORIAL, **changed})
