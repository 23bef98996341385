"""What the benchmarks share: the machine in a line, interleaved repeats, tables, memory."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import passl_mae  # noqa: E402, F401 - its settings, before anyone imports paddle


def machine() -> str:
    """Processor, cores, versions and the load: what a figure depends on."""
    cpu = "unknown processor"
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    from importlib.metadata import version

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return (
        f"{cpu}, {os.cpu_count()} cores, load {load:.2f} before; {time.strftime('%Y-%m-%d')}; "
        f"Python {platform.python_version()}, PaddlePaddle {version('paddlepaddle')}, "
        f"NumPy {version('numpy')}"
    )


def interleaved(
    variants: Mapping[str, Callable[[], float]], repeats: int
) -> dict[str, list[float]]:
    """Every variant once a round, so that a slow minute of the machine hits all of them."""
    results: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(repeats):
        for name, measure in variants.items():
            results[name].append(measure())
            print(f"  round {number + 1}/{repeats}: {name}: {results[name][-1]:.4g}", flush=True)
    return results


def ratio(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """(median, least, most) of first / second, round by round."""
    ratios = [a / b for a, b in zip(first, second)]
    return statistics.median(ratios), min(ratios), max(ratios)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown; the first row is the head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """ "median (least to most)"."""
    median = statistics.median(values)
    return f"{median:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def environment(threads: int, **others: str) -> dict[str, str]:
    """The user's environment with a number of threads, and without what a parent process set."""
    ours = ("OMP_NUM_THREADS", "MKL_DEBUG_CPU_TYPE", "FLAGS_use_stride_kernel", "PASSL_MAE_TUNE")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return {**kept, "OMP_NUM_THREADS": str(threads), **others}


class Finished:
    """A command that has ended: its output, and the most memory it and its children held."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]):
        process = subprocess.Popen(
            command,
            env=dict(env),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.peak_bytes = 0
        watcher = threading.Thread(target=self._watch, args=(process,), daemon=True)
        watcher.start()
        self.output, errors = process.communicate()
        watcher.join()
        if process.returncode != 0:
            sys.exit(
                f"{' '.join(command)}\nended with {process.returncode}\n{self.output}\n{errors}"
            )

    def _watch(self, process: subprocess.Popen) -> None:
        while process.poll() is None:
            self.peak_bytes = max(self.peak_bytes, sum(map(private_bytes, tree(process.pid))))
            time.sleep(0.1)


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found.extend(map(int, task.read_text().split()))
            except OSError:
                continue  # it ended while we looked
    return found


def private_bytes(pid: int) -> int:
    """Memory of a process, what it shares with others divided between them (PSS)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
