"""What a run says: console and file log, one JSON line an epoch, VisualDL. Silent off rank 0."""

from __future__ import annotations

import json
import logging
import os
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from passl_mae import distributed
from passl_mae.files import fsync, naming, replacing
from passl_mae.terminal import paint, watched, write_line

LOGGER_NAME = "passl_mae"
LINE_FORMAT = "[%(asctime)s] passl_mae %(levelname)s: %(message)s"
DATE_FORMAT = "%Y/%m/%d %H:%M:%S"


def setup(log_file: Path | None = None) -> logging.Logger:
    """The run's logger: to the console and, where given, appended to a file; rank 0 only.

    On a terminal, lines marked `extra={"quiet": True}` (the step lines) go to the file alone: a
    progress bar shows the same there.
    """
    logger = logging.getLogger(LOGGER_NAME)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    if not distributed.is_main():
        logger.addHandler(logging.NullHandler())
        return logger
    formatter = logging.Formatter(LINE_FORMAT, DATE_FORMAT)
    console = _ConsoleHandler(sys.stdout)
    console.setFormatter(formatter)
    if watched():
        console.addFilter(lambda record: not getattr(record, "quiet", False))
    logger.addHandler(console)
    if log_file is not None:
        file_handler = _FileHandler(log_file, encoding="utf-8")
        file_handler.setFormatter(formatter)
        logger.addHandler(file_handler)
    return logger


def get_logger() -> logging.Logger:
    return logging.getLogger(LOGGER_NAME)


class _ConsoleHandler(logging.StreamHandler):
    """Prints above a progress bar instead of through it; warnings in colour, where there is any."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno < logging.WARNING:
            return text
        return paint(text, "red" if record.levelno > logging.WARNING else "yellow", self.stream)

    def emit(self, record: logging.LogRecord) -> None:
        if watched():
            write_line(self.format(record), self.stream)
        else:
            super().emit(record)


class _FileHandler(logging.FileHandler):
    """Raises what keeps it from writing, a full disk say, instead of printing tracebacks."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        with naming(self.baseFilename):
            raise


class MetricsFile:
    """`metrics.jsonl`: one JSON object an epoch, in order, none twice."""

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """All rows; a last line cut short by a crash is left out."""
        if not self.path.exists():
            return []
        rows = []
        lines = self.path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, 1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                if number < len(lines):
                    raise ValueError(f"{self.path}, line {number}: not a JSON object") from None
        return rows

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes a row to the disk before it returns."""
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def keep_until(self, epoch: int) -> None:
        """Drops the rows of later epochs, which a resumed run makes anew."""
        kept = [row for row in self.read() if row["epoch"] <= epoch]
        with replacing(self.path) as beside:
            beside.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


class VisualDLWriter:
    """Scalars, pictures and hyper-parameters for `visualdl --logdir`.

    Where VisualDL cannot be imported, it warns once and training goes on without.
    """

    def __init__(self, folder: Path, enabled: bool = True):
        self.folder = folder
        self._enabled = enabled and distributed.is_main()
        self._writer = None

    def open(self) -> None:
        """Begins a file, which from now on is the one that VisualDL shows of the folder."""
        if not self._enabled:
            return
        try:
            from visualdl import LogWriter
        except Exception as error:  # it is optional, and fails in many ways: protobuf, numpy, cv2
            get_logger().warning(
                "VisualDL cannot be used (%s: %s); training goes on without it. "
                "`pip install visualdl`, or Global.use_visualdl=false to silence this.",
                type(error).__name__,
                str(error).split("\n")[0],
            )
            return
        # The newest name is what VisualDL shows; its own, in seconds, can be taken already.
        self._writer = LogWriter(
            logdir=str(self.folder), file_name=f"vdlrecords.{time.time_ns()}.log", display_name=""
        )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        if self._writer:
            for tag, value in values.items():
                self._writer.add_scalar(tag, float(value), step)

    def image(self, tag: str, pixels: np.ndarray, step: int) -> None:
        """`pixels`: uint8 [H, W, 3]."""
        if self._writer:
            self._writer.add_image(tag, pixels, step)

    def hparams(self, values: Mapping[str, Any], metrics: list[str]) -> None:
        """The run's settings beside the names of the scalars that compare runs."""
        if self._writer:
            # VisualDL takes numbers and text; a bool is no int to it. Its table shows nothing under
            # a name with a dot.
            plain = {
                key.replace(".", "/"): value if type(value) in (int, float) else str(value)
                for key, value in values.items()
            }
            self._writer.add_hparams(plain, metrics)

    def flush(self) -> None:
        """What was written so far is in the file when this returns."""
        if self._writer:
            self._writer.flush()
            fsync(Path(self._writer.file_name))

    def keep_until(self, step: int) -> None:
        """Takes over what earlier sessions wrote up to `step`, and removes their files.

        VisualDL shows only the newest file of a folder: without this a resumed run's curves would
        begin at the resumption, and after a crash some steps would be drawn twice.
        """
        if not self._writer:
            return
        from visualdl.proto.record_pb2 import Record

        own = Path(self._writer.file_name)
        others = sorted(p for p in own.parent.glob("*vdlrecords*") if p.name != own.name)
        seen = set()
        for file in others:
            for content in _vdl_records(file):
                record = Record.FromString(content)
                keys = {(v.tag, v.id) for v in record.values if not v.HasField("hparam")}
                # The end of a run, tested anew: nothing that two sessions write is shown twice.
                if any(tag.startswith("Test/") for tag, _ in keys):
                    continue
                # An earlier session's file may hold what a crash kept it from removing.
                if keys and keys.isdisjoint(seen) and all(number <= step for _, number in keys):
                    seen |= keys
                    self._writer._get_file_writer().add_record(record)
        self.flush()
        for file in others:
            file.unlink()

    def close(self) -> None:
        if self._writer:
            self._writer.close()


def _vdl_records(file: Path) -> Iterator[bytes]:
    """The whole records of a VisualDL file (length, content); a last one cut short is left out."""
    with file.open("rb") as stream:
        while len(header := stream.read(8)) == 8:
            (length,) = struct.unpack("<Q", header)
            content = stream.read(length)
            if len(content) < length:
                return
            yield content
