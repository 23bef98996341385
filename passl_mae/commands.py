"""Running the other commands of `tools/` from one: each is printed, its progress shown."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

LOG_LINE = re.compile(r"\[[^]]+\] passl_mae ([A-Z]+): (.*)")
ALSO_OF_THE_EPOCH = re.compile(r"\[Iter (\d+)/\1\]")  # its last step; the epoch's line follows
SHOWN = ("[Train]", "[Eval]", "[Test]", "resumed", "finished")  # of a run's log; not its settings


def run_command(
    command: Sequence[str], root: Path, *, trains: bool, ranks: int = 1, log_dir: Path | None = None
) -> float:
    """Runs `python <command>` in the folder `root`; returns its seconds.

    Args:
        command: the script and its arguments.
        trains: whether it writes a run's log, of which only the progress is shown.
        ranks: processes, under paddle's launcher if more than one; their logs go to `log_dir`.

    Raises:
        ValueError: it failed; the script, its exit code and its own message.
        KeyboardInterrupt: Ctrl-C; the command got it too and has ended.
        SystemExit: a SIGTERM; the command got it from here and has ended.
    """
    launcher = []
    if ranks > 1:
        launcher = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(ranks)]
        launcher += ["--log_dir", str(log_dir)]
    print(f"  $ python {shlex.join([*launcher, *command])}", flush=True)
    begin = time.perf_counter()
    # stderr goes into the same pipe: two pipes would lose the order of the lines
    with subprocess.Popen(
        [sys.executable, *launcher, *command],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as process:
        hidden: list[str] = []
        before = signal.signal(signal.SIGTERM, _raise_terminated)
        try:
            for line in process.stdout:
                _show(line.rstrip(), trains, hidden)
        except KeyboardInterrupt:  # the command got the signal too, and saves before it ends
            process.communicate()
            raise
        except _Terminated:  # of this process alone: pass it on, and wait while the command saves
            process.terminate()
            process.communicate()
            raise SystemExit(128 + signal.SIGTERM) from None
        finally:
            signal.signal(signal.SIGTERM, before)
    if process.returncode:
        raise ValueError(_failure(command[0], process.returncode, hidden))
    return time.perf_counter() - begin


class _Terminated(BaseException):
    """A SIGTERM came."""


def _raise_terminated(number: int, frame: object) -> None:
    raise _Terminated


def _show(line: str, is_log: bool, hidden: list[str]) -> None:
    """Prints a line of a command if it tells of progress, and keeps it in `hidden` if not."""
    found = LOG_LINE.fullmatch(line)
    level, text = found.groups() if found else ("", line)
    if is_log:
        shown = text.startswith(SHOWN) and not ALSO_OF_THE_EPOCH.search(text)
    else:
        shown = not text.startswith((" ", "error: "))  # the names of all weights are indented
    if shown or level in ("WARNING", "ERROR"):
        print(f"  {text}", flush=True)
    else:
        hidden.append(line)


def _failure(script: str, code: int, hidden: list[str]) -> str:
    if any(line.startswith("Traceback") for line in hidden):
        print("\n".join(hidden[-30:]), file=sys.stderr)
    errors = [line for line in hidden if line.startswith("error: ")]  # the launcher writes on
    message = (errors or hidden or [""])[-1].removeprefix("error: ")
    return f"{script} ended with exit code {code}: {message}"
