"""What a terminal gets, and a file, a pipe or a notebook does not: progress bars and colour."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

from passl_mae import distributed

Item = TypeVar("Item")
_CODES = {"red": "31", "yellow": "33"}


def watched() -> bool:
    """Whether a person watches this process: rank 0, with both streams on a terminal.

    Bars go to the error stream and lines to the other; with one of them in a file or a pipe,
    neither could be kept out of the other's way.
    """
    return distributed.is_main() and _can_draw(sys.stdout) and _can_draw(sys.stderr)


def bar(total: int | None, desc: str, unit: str, initial: int = 0) -> tqdm:
    """A progress bar with the time left, which is gone when it is done; only where one watches."""
    how: dict[str, Any] = {"disable": True}
    if watched():
        # Some terminals (a container's, say) give no width, and tqdm would draw nothing.
        known = os.get_terminal_size(sys.stderr.fileno()).columns > 0
        how = {"dynamic_ncols": True} if known else {"ncols": 80}
    return tqdm(
        total=total,
        desc=desc,
        unit=unit,
        unit_scale=unit == "B",
        unit_divisor=1024 if unit == "B" else 1000,
        initial=initial,
        leave=False,
        **how,
    )


def shown(items: Iterable[Item], desc: str, unit: str = "batch") -> Iterator[Item]:
    """The items, with a bar that counts those that were dealt with."""
    total = len(items) if hasattr(items, "__len__") else None
    with bar(total, desc, unit) as progress:
        for item in items:
            yield item
            progress.update()


def write_line(text: str, stream: TextIO) -> None:
    """A line above the bars that are drawn now."""
    tqdm.write(text, file=stream)


def paint(text: str, colour: str, stream: TextIO) -> str:
    """The text in red or yellow where the stream shows colour and NO_COLOR is not set."""
    if os.environ.get("NO_COLOR") or os.name == "nt" or not _can_draw(stream):
        return text
    return f"\033[{_CODES[colour]}m{text}\033[0m"


def _can_draw(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
