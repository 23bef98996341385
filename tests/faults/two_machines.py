"""Two "machines" (network namespaces joined by a cable) train together; then the cable is cut.

    python tests/faults/two_machines.py          # as root, on Linux with iproute2 and util-linux

Each machine has its own address, host name and /etc/hosts, and runs the launcher with `--nnodes 2
--master`; the output folder is shared. A first run is left alone, a second one loses its cable in
the middle: both machines have to end with an error that says so within `SECONDS_TO_END`, and the
same commands have to go on to the same weights once the cable is whole.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (2, 1)]

from real_processes import ROOT, SETTINGS, wait_for  # noqa: E402

from passl_mae.models.weights import load_file  # noqa: E402

# gloo waits for 30 s, then the launcher needs its 3 s.
SECONDS_TO_END = 60.0
ADDRESSES = {"passl-a": "10.77.31.1", "passl-b": "10.77.31.2"}
MASTER = f"{ADDRESSES['passl-a']}:29777"


def why_not() -> str:
    """What is missing to run this; "" where nothing is."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    for command, package in (("ip", "iproute2"), ("unshare", "util-linux")):
        if shutil.which(command) is None:
            return f"there is no `{command}` (package {package})"
    try:
        _sh("ip netns add passl-probe")
        _sh("ip netns del passl-probe")
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not allowed here: {error.stderr.strip()}"
    return ""


def _sh(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True, text=True)


@contextlib.contextmanager
def two_machines():
    """Namespaces with a veth pair between them."""
    first, second = ADDRESSES
    try:
        for name in ADDRESSES:
            _sh(f"ip netns add {name}")
        _sh(f"ip link add cable netns {first} type veth peer name cable netns {second}")
        for name, address in ADDRESSES.items():
            _sh(f"ip -n {name} addr add {address}/24 dev cable")
            _sh(f"ip -n {name} link set lo up")
            _sh(f"ip -n {name} link set cable up")
        yield
    finally:
        for name in ADDRESSES:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def set_cable(state: str) -> None:
    _sh(f"ip -n {next(iter(ADDRESSES))} link set cable {state}")


def start_both(config: Path) -> list[subprocess.Popen]:
    """The same command on both machines; what each says is appended to `<config>.<machine>`."""
    hosts = config.with_suffix(".hosts")
    lines = [f"{address} {name}" for name, address in ADDRESSES.items()]
    hosts.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
    machine = f'hostname "$0"; mount --bind {hosts} /etc/hosts; exec "$@"'
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    processes = []
    for name in ADDRESSES:
        command = ["ip", "netns", "exec", name, "unshare", "--uts", "--mount", "sh", "-ec", machine]
        command += [name, sys.executable, "-m", "paddle.distributed.launch", "--nnodes", "2"]
        command += ["--master", MASTER, "--nproc_per_node", "1"]
        command += ["--log_dir", str(config.with_suffix(f".{name}.ranks"))]
        command += [str(ROOT / "tools/train_pretrain.py"), "-c", str(config)]
        command += ["-o", "Global.checkpoints=latest"]
        with config.with_suffix(f".{name}").open("a") as out:
            processes.append(subprocess.Popen(command, stdout=out, stderr=out, env=env, cwd=ROOT))
    return processes


def finish_both(processes: list[subprocess.Popen], seconds: float) -> list[int]:
    end = time.monotonic() + seconds
    try:
        return [process.wait(max(0.0, end - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()


def cut_the_cable(folder: Path) -> float:
    """Seconds from the cut until both machines had ended; AssertionError where it goes wrong."""
    configs = {}
    for name in ("whole", "cut"):
        settings = {**SETTINGS["Global"], "output_dir": str(folder / name), "save_steps": 3}
        configs[name] = folder / f"{name}.yaml"
        configs[name].write_text(yaml.safe_dump({**SETTINGS, "Global": settings}))
    with two_machines():
        assert finish_both(start_both(configs["whole"]), 300) == [0, 0]
        processes = start_both(configs["cut"])
        wait_for(processes[0], folder / "cut/train.log", r"Epoch 1/2\]\[Iter 5/20\]")
        set_cable("down")
        cut = time.monotonic()
        codes = finish_both(processes, 300)
        seconds = time.monotonic() - cut
        assert codes == [2, 2], codes
        for rank, name in enumerate(ADDRESSES):
            said = (folder / f"cut.{name}.ranks/workerlog.0").read_text()
            assert f"error: rank {rank} of 2 lost another rank" in said, said[-2000:]
            assert "Traceback" not in said, said[-2000:]
        set_cable("up")
        assert finish_both(start_both(configs["cut"]), 300) == [0, 0]
    whole, again = (load_file(folder / run / "mae_pretrain.pdparams") for run in ("whole", "cut"))
    assert whole.keys() == again.keys()
    assert all(np.array_equal(whole[name], again[name]) for name in whole)
    return seconds


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    missing = why_not()
    if missing:
        sys.exit(f"error: {missing}")
    with tempfile.TemporaryDirectory(prefix="two_machines_") as folder:
        seconds = cut_the_cable(Path(folder))
    print(f"both machines ended {seconds:.1f} s after the cut; resumed bit-identical")
    sys.exit(seconds > SECONDS_TO_END)


if __name__ == "__main__":
    main()
