"""SIGTERM and SIGINT: finish the step, save, and exit with the code that says so."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

from passl_mae.logger import get_logger


class StopSignals:
    """While the block runs, the first SIGTERM or SIGINT only asks to stop; a second one kills.

    `received` is the signal's number, or 0. Outside the main thread (some notebooks) Python allows
    no handlers, and the signals keep their usual meaning.

    Args:
        repeated_for: seconds in which further signals count as the first one. Paddle's launcher
            sends each SIGTERM three times, 0.2 s apart, without waiting for the step to end.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, repeated_for: float = 0.0) -> None:
        self.received = 0
        self.repeated_for = repeated_for
        self._first = 0.0  # when it came
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            # None: the handler was not Python's (paddle installs its own); the default takes over
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            if time.monotonic() - self._first < self.repeated_for:
                return
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received, self._first = number, time.monotonic()
        name = signal.Signals(number).name
        get_logger().warning(f"{name}: finishing the step and saving; once more exits at once")
