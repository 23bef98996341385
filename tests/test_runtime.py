"""Process settings: only where the user has set nothing, only where they help, before paddle."""

import os
import subprocess
import sys

import paddle
import pytest

from passl_mae import runtime

SETTINGS = ("OMP_NUM_THREADS", "MKL_DEBUG_CPU_TYPE", "FLAGS_use_stride_kernel", runtime.SWITCH)


@pytest.fixture
def clean(monkeypatch):
    """An environment without the settings, in a process that has not imported paddle."""
    for name in (*SETTINGS, "PADDLE_LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "paddle")
    monkeypatch.setattr(runtime, "available_cores", lambda: 8)
    monkeypatch.setattr(runtime, "cpu_vendor", lambda: "AuthenticAMD")
    monkeypatch.setattr(runtime, "gpu_present", lambda: False)
    return monkeypatch


def test_an_amd_machine_without_a_gpu(clean):
    wanted = {
        "OMP_NUM_THREADS": "8",
        "MKL_DEBUG_CPU_TYPE": "5",
        "FLAGS_use_stride_kernel": "0",
    }
    assert runtime.apply_cpu_settings() == wanted
    assert {name: os.environ[name] for name in wanted} == wanted


def test_the_mkl_setting_is_for_amd_and_the_stride_setting_for_the_cpu(clean):
    clean.setattr(runtime, "cpu_vendor", lambda: "GenuineIntel")
    clean.setattr(runtime, "gpu_present", lambda: True)
    assert runtime.apply_cpu_settings() == {"OMP_NUM_THREADS": "8"}


def test_the_cores_are_shared_by_the_ranks_of_the_machine(clean):
    clean.setenv("PADDLE_LOCAL_SIZE", "4")
    assert runtime.apply_cpu_settings()["OMP_NUM_THREADS"] == "2"
    clean.delenv("OMP_NUM_THREADS")
    clean.setenv("PADDLE_LOCAL_SIZE", "16")
    assert runtime.apply_cpu_settings()["OMP_NUM_THREADS"] == "1"


def test_what_the_user_set_stays(clean):
    clean.setenv("OMP_NUM_THREADS", "3")
    clean.setenv("FLAGS_use_stride_kernel", "1")
    assert runtime.apply_cpu_settings() == {"MKL_DEBUG_CPU_TYPE": "5"}
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_one_variable_turns_it_off(clean):
    clean.setenv(runtime.SWITCH, "0")
    assert runtime.apply_cpu_settings() == {}
    assert "OMP_NUM_THREADS" not in os.environ


def test_importing_the_package_sets_them_and_does_not_import_paddle():
    code = (
        "import os, sys, passl_mae; "
        "print(os.environ['OMP_NUM_THREADS'], 'paddle' in sys.modules, 'numpy' in sys.modules)"
    )
    env = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    run = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == [str(runtime.available_cores()), "False", "False"]


def test_paddle_is_imported_without_its_noise_and_a_public_name_does_it():
    code = "import passl_mae; print(passl_mae.MAE_Pretrain.__name__)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "MAE_Pretrain\n"
    assert "OMP_NUM_THREADS" not in run.stderr and "ccache" not in run.stderr


def test_every_public_name_is_there():
    import passl_mae

    for name in passl_mae.__all__:
        assert getattr(passl_mae, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'MAE_Pretrian'"):
        _ = passl_mae.MAE_Pretrian


def test_the_seed_is_a_function_of_the_whole_key():
    def draw(*key):
        runtime.seed_everything(*key)
        return paddle.rand([4]).numpy().tolist()

    draws = [draw(0, 1, 0), draw(0, 0, 1), draw(1, 0, 0), draw(0, 1, 1)]
    assert draw(0, 1, 0) == draws[0]
    assert all(a != b for i, a in enumerate(draws) for b in draws[:i])


@pytest.mark.skipif(paddle.is_compiled_with_cuda(), reason="for CPU builds")
def test_devices():
    assert runtime.select_device("auto") == "cpu"
    assert runtime.select_device("cpu") == "cpu"
    with pytest.raises(ValueError, match=r"is a CPU build: set Global\.device=cpu"):
        runtime.select_device("gpu:0")
    with pytest.raises(ValueError, match="must be auto, cpu, gpu or gpu:N, got 'tpu'"):
        runtime.select_device("tpu")


def test_on_gpu_asks_for_the_device_that_is_set(monkeypatch):
    for device, is_one in (("cpu", False), ("gpu:0", True), ("xpu:0", False)):
        monkeypatch.setattr(paddle.device, "get_device", lambda device=device: device)
        assert runtime.on_gpu() is is_one
