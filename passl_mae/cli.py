"""What the commands in `tools/` share: the -c and -o options, and errors in one line."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from passl_mae.terminal import paint


def make_parser(description: str, *, config: bool = False) -> argparse.ArgumentParser:
    """A parser with --debug, and with -c/--config and -o/--override where `config` is set."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if config:
        parser.add_argument("-c", "--config", required=True, help="the YAML file of the run")
        parser.add_argument(
            "-o",
            "--override",
            action="extend",
            nargs="+",
            default=[],
            metavar="Key.sub=value",
            help="settings that override the file's, e.g. -o Global.seed=1 Optimizer.blr=1e-3",
        )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_probe_options(parser: argparse.ArgumentParser) -> None:
    """What the commands that rate a frozen encoder by its features have in common."""
    parser.add_argument("--random", action="store_true", help="compare with a random encoder")
    parser.add_argument("--json", help="file for the first encoder's figures, for other programs")
    parser.add_argument("--cache", help="folder that keeps features")


def run(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> None:
    """Parses the command line and runs `main`; a user's mistake ends in one line and exit code 2.

    Errors that say what to change (ValueError, files that are missing or not readable, a package
    that is not installed) are printed without a traceback unless --debug is given. What was raised
    inside paddle is not such an error and keeps its traceback.
    """
    args = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a path in Chinese on a console that cannot show it
            stream.reconfigure(errors="replace")
    try:
        main(args)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if args.debug or _raised_in_paddle(error):
            raise
        print(f"{paint('error:', 'red', sys.stderr)} {_one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # before or after training, which has its own way to stop
        if args.debug:
            raise
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _one_line(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _raised_in_paddle(error: BaseException) -> bool:
    """Whether paddle's Python raised it, or its C++ (which names its own source)."""
    paddle = sys.modules.get("paddle")
    frames = traceback.extract_tb(error.__traceback__)
    if paddle is None or not frames:
        return False
    inside = Path(frames[-1].filename).is_relative_to(Path(paddle.__file__).parent)
    return inside or "(at /paddle/" in str(error)
