"""WarmupCosineLR against the formula, the tutorial's numbers by hand, and a resumed run."""

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
])  # fmt: skip
def test_schedules_that_cannot_be_are_refused(changed, match):
    with pytest.raises(ValueError, match=match):
        WarmupCosineLR(**{**TUTORIAL, **changed})
