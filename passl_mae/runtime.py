"""Process settings for speed, seeding and the choice of device; the first module to be imported.

PaddlePaddle reads some settings only once, so `apply_cpu_settings` runs when `passl_mae` is
imported and has to come before `import paddle`. It never overrides what the user has set, and
`PASSL_MAE_TUNE=0` turns it off.

| variable                | value         | when               | why                         |
|-------------------------|---------------|--------------------|-----------------------------|
| OMP_NUM_THREADS         | cores / ranks | always             | paddle would use one thread |
| MKL_DEBUG_CPU_TYPE      | 5             | AMD processors     | MKL is slow on AMD without  |
| FLAGS_use_stride_kernel | 0             | running on the CPU | lazy transposes copy slowly |
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import types
import warnings
from pathlib import Path

SWITCH = "PASSL_MAE_TUNE"


def apply_cpu_settings() -> dict[str, str]:
    """Sets the variables of the table above where the user has not; returns those it set."""
    if os.environ.get(SWITCH, "1") == "0":
        return {}
    wanted = {"OMP_NUM_THREADS": str(max(1, available_cores() // ranks_on_this_machine()))}
    if cpu_vendor() == "AuthenticAMD":
        wanted["MKL_DEBUG_CPU_TYPE"] = "5"
    if not gpu_present():
        wanted["FLAGS_use_stride_kernel"] = "0"
    applied = {name: value for name, value in wanted.items() if name not in os.environ}
    if "paddle" in sys.modules:
        # Too late for the threads (paddle has set them itself), in time for MKL, which reads its
        # variable at the first product, and for the flag, which can be set at any time.
        applied.pop("OMP_NUM_THREADS", None)
        if "FLAGS_use_stride_kernel" in applied:
            sys.modules["paddle"].set_flags({"FLAGS_use_stride_kernel": False})
    os.environ.update(applied)
    return applied


def available_cores() -> int:
    """Cores this process may use (an affinity mask or a container's CPU set counts)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ranks_on_this_machine() -> int:
    """Processes that paddle's launcher started here; 1 when there is no launcher."""
    return max(1, int(os.environ.get("PADDLE_LOCAL_SIZE", "1")))


def cpu_vendor() -> str:
    """The processor's vendor string, e.g. "AuthenticAMD"; "" where it cannot be read."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return ""
    for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("vendor_id"):
            return line.split(":", 1)[1].strip()
    return ""


def gpu_present() -> bool:
    """Whether the machine shows an NVIDIA device that is not hidden; paddle is not asked."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        return False
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()  # dxg: WSL


def import_paddle() -> types.ModuleType:
    """Imports paddle without its two start-up lines that are wrong or useless here.

    The warning about OMP_NUM_THREADS is for OpenBLAS builds (the wheels have MKL), and ccache only
    matters to those who compile operators. Everything else it prints is passed on.

    Raises:
        ModuleNotFoundError: paddle is not installed; says what to install.
    """
    if "paddle" in sys.modules:
        return sys.modules["paddle"]
    # Pillow first: libpaddle 2.6 exports zlib symbols of its own, and a Pillow that is loaded
    # after it resolves to them and crashes when it writes a PNG.
    importlib.import_module("PIL.Image")
    captured = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(captured):
            warnings.filterwarnings("ignore", message="No ccache found")
            return importlib.import_module("paddle")
    except ModuleNotFoundError as error:
        if error.name != "paddle":
            raise
        raise ModuleNotFoundError(
            "PaddlePaddle is not installed: `pip install paddlepaddle` (CPU), or the GPU build "
            "that fits your CUDA from https://www.paddlepaddle.org.cn/install/quick",
            name="paddle",
        ) from None
    finally:
        for line in captured.getvalue().splitlines():
            if "OMP_NUM_THREADS" not in line:
                print(line, file=sys.stderr)


def select_device(device: str) -> str:
    """Sets paddle's device from "auto", "cpu", "gpu" or "gpu:N"; returns the name in use.

    "auto" takes a GPU where paddle was built for one and sees one. Under the launcher "gpu" is
    the GPU that the launcher gave to this rank.

    Raises:
        ValueError: another name, or a GPU that is not there.
    """
    paddle = import_paddle()
    has_gpu = paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    if device == "auto":
        device = "gpu" if has_gpu else "cpu"
    if device != "cpu" and device.partition(":")[0] != "gpu":
        raise ValueError(f"Global.device must be auto, cpu, gpu or gpu:N, got {device!r}")
    if device.startswith("gpu") and not has_gpu:
        built = "sees none" if paddle.is_compiled_with_cuda() else "is a CPU build"
        raise ValueError(
            f"Global.device is {device!r}, but the installed PaddlePaddle {built}: set "
            "Global.device=cpu, or install the paddlepaddle-gpu build that fits your driver"
        )
    given = os.environ.get("FLAGS_selected_gpus", "")  # noqa: SIM112 - paddle's name for it
    if device == "gpu" and given:
        device = "gpu:" + given.split(",")[0]
    if device == "cpu" and "FLAGS_use_stride_kernel" not in os.environ and _tuning():
        paddle.set_flags({"FLAGS_use_stride_kernel": False})
    return paddle.set_device(device) and paddle.device.get_device()


def on_gpu() -> bool:
    """Whether paddle's device, as it is set now, is a GPU."""
    import paddle  # plainly: `to_static` reads this function, which a model's forward calls

    return paddle.device.get_device().startswith("gpu")


def _tuning() -> bool:
    return os.environ.get(SWITCH, "1") != "0"


def seed_everything(*key: int) -> None:
    """Seeds paddle's generators from a key of non-negative ints, e.g. (seed, step, rank).

    Called before each step, so that a step's random numbers follow from its number alone and a
    resumed run has nothing to restore (paddle 2.6 cannot save the state of its CPU generator).
    """
    import numpy as np

    words = np.random.SeedSequence(key).generate_state(2, np.uint32)
    # 2**31 - 1: paddle's GPU kernels take a signed 32-bit seed
    import_paddle().seed(int(words[0]) % (2**31 - 1))
