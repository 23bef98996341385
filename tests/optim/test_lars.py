"""LARS against float64 NumPy, step by step, and as a citizen among paddle's optimizers."""

import numpy as np
import numpy_optim
import paddle
import pytest
from paddle import nn
from paddle.utils import unique_name

from passl_mae import WarmupCosineLR
from passl_mae.optim.lars import LARS

SETTINGS = dict(momentum=0.9, weight_decay=0.1, trust_coefficient=0.02)
SHAPES = [[4, 5], [5], [2, 3, 2, 2], [3, 3], [3]]


def make_parameters(dtype="float32"):
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(shape) for shape in SHAPES]
    values[3][:] = 0  # a weight of norm 0 is not scaled
    parameters = []
    for value in values:
        parameter = paddle.create_parameter(list(value.shape), "float32")
        parameter.set_value(value.astype("float32"))
        parameters.append(parameter)
    if dtype != "float32":
        nn.ParameterList(parameters).to(dtype=dtype)
    return parameters


def gradients(step):
    rng = np.random.default_rng(100 + step)
    values = [rng.standard_normal(shape) for shape in SHAPES]
    if step == 1:
        values[0][:] = 0
    return values


def run(optimizer, parameters, steps, schedule=None):
    for step in steps:
        loss = sum(
            (p.astype("float32") * paddle.to_tensor(g.astype("float32"))).sum()
            for p, g in zip(parameters, gradients(step))
        )
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        if schedule:
            schedule.step()


def expected(steps, rate, decay=0.1, scale=1.0, clip=None):
    weights = [p.numpy().astype(np.float64) for p in make_parameters()]
    velocities = [np.zeros_like(weight) for weight in weights]
    for step in range(steps):
        grads = gradients(step)
        if clip:
            norm = np.sqrt(sum((g**2).sum() for g in grads))
            grads = [g * clip / max(norm, clip) for g in grads]
        current = rate(step) if callable(rate) else rate
        numpy_optim.lars_step(weights, grads, velocities, current * scale, 0.9, decay, 0.02)
    return weights


def assert_close(parameters, weights, rtol=1e-5):
    for parameter, weight in zip(parameters, weights):
        found = parameter.astype("float32").numpy()
        np.testing.assert_allclose(found, weight, rtol=rtol, atol=rtol * np.abs(weight).max())


def test_steps_equal_the_slow_implementation():
    parameters = make_parameters()
    run(LARS(0.5, parameters, **SETTINGS), parameters, range(6))
    assert_close(parameters, expected(6, 0.5))


def test_one_step_by_hand():
    # |w| = 5, |g + wd w| = |(3, 4) + (0.3, 0.4)| = 5.5: scaled to 0.01 * 5 / 5.5 * (3.3, 4.4)
    weight = paddle.create_parameter([1, 2], "float32")
    weight.set_value(paddle.to_tensor([[3.0, 4.0]]))
    bias = paddle.create_parameter([2], "float32")
    bias.set_value(paddle.to_tensor([1.0, 1.0]))
    optimizer = LARS(1.0, [weight, bias], weight_decay=0.1, trust_coefficient=0.01)
    ((weight * paddle.to_tensor([[3.0, 4.0]])).sum() + 2 * bias.sum()).backward()
    optimizer.step()
    np.testing.assert_allclose(weight.numpy(), [[3 - 0.03, 4 - 0.04]], rtol=1e-6)
    np.testing.assert_allclose(bias.numpy(), [-1.0, -1.0])  # 1 axis: plain SGD, no decay


def test_the_references_defaults():
    optimizer = LARS(parameters=make_parameters())
    assert (optimizer._momentum, optimizer._weight_decay) == (0.9, 0.0)
    assert optimizer._trust_coefficient == 0.001


def test_with_a_schedule():
    schedule = WarmupCosineLR(1.0, 0.1, 0.0, 2, 6)
    parameters = make_parameters()
    run(LARS(schedule, parameters, **SETTINGS), parameters, range(6), schedule)
    assert_close(
        parameters, expected(6, lambda t: numpy_optim.warmup_cosine(t, 1.0, 0.1, 0.0, 2, 6))
    )


def test_with_clipping():
    parameters = make_parameters()
    run(LARS(0.5, parameters, grad_clip=nn.ClipGradByGlobalNorm(0.1), **SETTINGS),
        parameters, range(4))  # fmt: skip
    assert_close(parameters, expected(4, 0.5, clip=0.1))


def test_groups_have_their_own_rate_and_decay():
    parameters = make_parameters()
    groups = [
        {"params": parameters[:2], "learning_rate": 0.5, "weight_decay": 0.4},
        {"params": parameters[2:]},
    ]
    run(LARS(0.5, groups, **SETTINGS), parameters, range(4))
    assert_close(parameters[:2], expected(4, 0.5, decay=0.4, scale=0.5)[:2])
    assert_close(parameters[2:], expected(4, 0.5)[2:])


def test_frozen_parameters_and_those_without_gradient_stay():
    parameters = make_parameters()
    parameters[0].stop_gradient = True
    before = [p.numpy() for p in parameters]
    optimizer = LARS(0.5, parameters, **SETTINGS)
    (parameters[2].sum() * 3).backward()
    optimizer.step()
    changed = [bool((p.numpy() != b).any()) for p, b in zip(parameters, before)]
    assert changed == [False, False, True, False, False]


def test_a_resumed_run_is_bit_identical(tmp_path):
    def fresh():
        schedule = WarmupCosineLR(1.0, 0.1, 0.0, 2, 6)
        parameters = make_parameters()
        return LARS(schedule, parameters, **SETTINGS), parameters, schedule

    with unique_name.guard():
        optimizer, whole, schedule = fresh()
        run(optimizer, whole, range(6), schedule)
    with unique_name.guard():
        optimizer, half, schedule = fresh()
        run(optimizer, half, range(3), schedule)
        paddle.save(optimizer.state_dict(), str(tmp_path / "o.pdopt"))
    with unique_name.guard():
        optimizer, again, schedule = fresh()
        for parameter, value in zip(again, half):
            parameter.set_value(value)
        optimizer.set_state_dict(paddle.load(str(tmp_path / "o.pdopt")))
        assert schedule.last_epoch == 3
        run(optimizer, again, range(3, 6), schedule)
    for parameter, value in zip(again, whole):
        np.testing.assert_array_equal(parameter.numpy(), value.numpy())


def test_with_a_grad_scaler():
    # On the CPU the scaler hands gradients and steps through; what it says to an optimizer on
    # overflow is said here by hand.
    parameters = make_parameters()
    optimizer = LARS(0.5, parameters, **SETTINGS)
    scaler = paddle.amp.GradScaler(init_loss_scaling=1024.0)
    for step in range(3):
        loss = sum(
            (p * paddle.to_tensor(g.astype("float32"))).sum()
            for p, g in zip(parameters, gradients(step))
        )
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.clear_grad()
    assert_close(parameters, expected(3, 0.5))
    before = [p.numpy() for p in parameters]
    sum(p.sum() for p in parameters).backward()
    optimizer._set_auxiliary_var("found_inf", paddle.to_tensor([True]))
    optimizer.step()
    assert all((p.numpy() == b).all() for p, b in zip(parameters, before))


def test_bfloat16_weights_are_updated_in_float32():
    parameters = make_parameters("bfloat16")
    start = [p.astype("float32").numpy().astype(np.float64) for p in parameters]
    optimizer = LARS(0.01, parameters, **SETTINGS)
    run(optimizer, parameters, range(5))
    velocities = [np.zeros_like(weight) for weight in start]
    for step in range(5):
        # the gradients reach a bfloat16 weight rounded to bfloat16
        grads = [paddle.to_tensor(g.astype("float32")).astype("bfloat16").astype("float32")
                 .numpy().astype(np.float64) for g in gradients(step)]  # fmt: skip
        numpy_optim.lars_step(start, grads, velocities, 0.01, 0.9, 0.1, 0.02)
    masters = optimizer.state_dict()["master_weights"]
    assert_close([masters[p.name] for p in parameters], start)
    for parameter in parameters:
        assert parameter.dtype == paddle.bfloat16
        rounded = masters[parameter.name].astype("bfloat16").astype("float32").numpy()
        np.testing.assert_array_equal(parameter.astype("float32").numpy(), rounded)


@pytest.mark.parametrize("changed, match", [
    (dict(parameters=None), "LARS needs parameters"),
    (dict(learning_rate=-0.1), "learning_rate must not be negative, got -0.1"),
    (dict(weight_decay=-1.0), "must not be negative, got -1.0 and 0.001"),
    (dict(momentum=1.0), r"momentum must be in \[0, 1\), got 1.0"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(changed, match):
    with pytest.raises(ValueError, match=match):
        LARS(**{"parameters": make_parameters(), **changed})
