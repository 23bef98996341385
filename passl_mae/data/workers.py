"""Processes that read image files beside the one that trains."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

# Tasks in hand a process: enough to keep it busy, few enough to bound what waits in memory.
_AHEAD = 3


class Workers:
    """Calls functions in `count` processes, in the order of the items; 0 calls them right here.

    The processes are spawned, not forked: the process that trains runs threads (paddle, OpenMP),
    which a fork would copy in the middle of whatever they hold. They begin with the first call and
    end with this process, however it ends. Signals to its group (Ctrl-C) do not reach them, so a
    run that is asked to stop can finish its step.
    """

    def __init__(self, count: int) -> None:
        if count < 0:
            raise ValueError(f"the number of worker processes must be 0 or more, got {count}")
        self.count = count
        self._executor: ProcessPoolExecutor | None = None
        self._lock = threading.Lock()

    def map(self, function: Callable, items: Iterable[tuple]) -> Iterator:
        """`function(*item)` of each item, in order; function and items must be picklable.

        Raises:
            ChildProcessError: a process died.
        """
        if self.count == 0:
            for item in items:
                yield function(*item)
            return
        executor = self._start()
        waiting: deque[Future] = deque()
        folder = _current_folder()
        try:
            for item in items:
                waiting.append(executor.submit(_call_in, folder, function, *item))
                if len(waiting) > _AHEAD * self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            with self._lock:
                self._executor = None
            raise ChildProcessError(
                "a process that reads images died (out of memory, or killed?): lower "
                "Data.num_workers, or set it to 0 to read without; a script of your own must "
                "start its work below if __name__ == '__main__'"
            ) from None
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """Ends the processes; the next call starts others."""
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(cancel_futures=True)

    def _start(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._executor is None:
                context = multiprocessing.get_context("spawn")
                self._executor = ProcessPoolExecutor(self.count, context, _begin)
            return self._executor


_shared: dict[int, Workers] = {}


def shared_workers(count: int) -> Workers:
    """The one `Workers` of so many processes: all data sets of a run read through it."""
    return _shared.setdefault(count, Workers(count))


def _current_folder() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # deleted under us
        return None


def _call_in(folder: str | None, function: Callable, *args: object) -> object:
    """`function(*args)`, with relative paths as the caller means them: it may have gone elsewhere
    since this process began."""
    if folder is not None and folder != _current_folder():
        os.chdir(folder)
    return function(*args)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(AttributeError, OSError):  # not on Windows
        os.setpgid(0, 0)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed could not tell: without this its workers would wait for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)
