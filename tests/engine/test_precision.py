"""What only a GPU does, with stand-ins: the loss scale's state, and O2's float32 masters."""

import json

import numpy as np
import paddle
import pytest

from passl_mae.engine.precision import Precision
from passl_mae.models import layers
from passl_mae.optim.state import float32_weights


class Scaler:
    """Stands for an enabled GradScaler: its state as paddle gives it, the scale an array of one."""

    def __init__(self):
        self.loaded = None

    def is_enable(self):
        return True

    def state_dict(self):
        return {"scale": np.array([1024.0], np.float32), "incr_ratio": 2.0, "incr_count": 7}

    def load_state_dict(self, state):
        self.loaded = state


def test_the_scalers_state_goes_through_json_and_back():
    precision = Precision("off", "float16", 65536.0)
    assert precision.state_dict() == {}
    precision.scaler = Scaler()
    state = json.loads(json.dumps(precision.state_dict()))
    assert state == {"scale": 1024.0, "incr_ratio": 2.0, "incr_count": 7.0}
    precision.load_state_dict(state)
    loaded = precision.scaler.loaded
    assert loaded["scale"].tolist() == [1024.0] and loaded["scale"].dtype == np.float32
    assert loaded["incr_count"] == 7 and isinstance(loaded["incr_count"], int)


def test_weights_come_from_masters_and_from_what_was_kept_exact():
    """At O2 the parameters are rounded to bfloat16; what is saved is not."""
    model = paddle.nn.Linear(2, 2)
    exact = {"bias": np.array([1 / 3, 2 / 3], np.float32)}
    master = paddle.to_tensor(np.array([[0.1, 0.2], [0.3, 0.7]], np.float32))
    own = {"master_weights": {model.weight.name: master}}
    state = float32_weights(own, model, exact)
    np.testing.assert_array_equal(state["weight"], master.numpy())
    np.testing.assert_array_equal(state["bias"], exact["bias"])


@pytest.mark.parametrize(
    ("device", "dtype", "capability", "fused"),
    [
        ("cpu", paddle.float32, (8, 0), False),
        ("gpu:0", paddle.float32, (8, 0), False),
        ("gpu:0", paddle.float16, (7, 0), False),  # the tutorial's V100
        ("gpu:0", paddle.float16, (8, 0), True),
        ("gpu:0", paddle.bfloat16, (9, 0), True),
    ],
)
def test_flash_attention_is_for_half_precision_on_ampere(
    monkeypatch, device, dtype, capability, fused
):
    monkeypatch.setattr(paddle.device, "get_device", lambda: device)
    monkeypatch.setattr(paddle.device.cuda, "get_device_capability", lambda: capability)
    assert layers._has_fused_attention(dtype) is fused
