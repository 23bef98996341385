"""A file from the network: whole, checked, and with a progress bar on a terminal."""

from __future__ import annotations

import hashlib
import shutil
import sys
import urllib.request
from pathlib import Path

from passl_mae.files import hash_file, replacing
from passl_mae.terminal import bar, write_line

_CHUNK = 1 << 16
_TIMEOUT = 60  # seconds without a byte


def fetch(url: str, file: Path, md5: str) -> Path:
    """Downloads `url` to `file`, unless the file is there and its MD5 is right; returns the file.

    Raises:
        OSError: no connection, a cut one, a full disk, or what came is not the file that was meant.
    """
    if file.exists() and hash_file(file, hashlib.md5()) == md5:
        return file
    write_line(f"downloading {url} to {file}", sys.stderr)
    done = 0
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer, replacing(file) as beside:
        length = int(answer.headers.get("Content-Length") or 0)
        free = shutil.disk_usage(file.parent).free
        if length > free:
            raise OSError(f"{file.parent}: {length >> 20} MiB are needed, {free >> 20} are free")
        with bar(length or None, file.name, "B") as progress, beside.open("wb") as stream:
            while chunk := answer.read(_CHUNK):
                stream.write(chunk)
                done += len(chunk)
                progress.update(len(chunk))
        if done < length:
            raise OSError(f"the connection ended after {done} of {length} bytes")
        if (came := hash_file(beside, hashlib.md5())) != md5:
            raise OSError(f"what came is damaged: MD5 {came}, expected {md5}")
    return file
