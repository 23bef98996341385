"""Compiles the operators of `ops/` into the user's cache, and loads them from there.

The library's name holds a hash of all that it depends on, so a new source, PaddlePaddle or
processor finds none and asks for a build; it is written whole, whoever else builds at once.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import paddle

from passl_mae.files import replacing

SOURCES = Path(__file__).resolve().parent / "ops"
COMMAND = "python tools/build_ops.py"
# -fno-trapping-math lets comparisons be vectorised; NaN and infinity stay what they are.
FLAGS = ["-O3", "-march=native", "-std=c++17", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]
if platform.machine() in ("x86_64", "AMD64"):
    FLAGS.append("-mprefer-vector-width=512")

_COMPILE = """
import sys
from paddle.utils.cpp_extension import load
source, folder, openmp, *flags = sys.argv[1:]
load("passl_mae_ops", [source], extra_cxx_cflags=flags, extra_ldflags=openmp.split("\\n"),
     build_directory=folder, verbose=True)
"""
CHOICES = ("auto", "on", "off")  # of Global.cpu_ops
# One at most: paddle takes an operator's name once a process.
_loaded: list[tuple[Path, ctypes.CDLL]] = []


def library_path() -> Path:
    """Where the library for this source, PaddlePaddle, Python and processor is, or would be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "passl_mae" / "ops" / f"{_key()}.so"


def _key() -> str:
    parts = [paddle.__version__, sys.version, sys.platform, _processor(), _openmp(), *FLAGS]
    digest = hashlib.sha256("\n".join(parts).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """What -march=native looks at: another processor may lack the instructions."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.machine() + platform.processor()
    wanted = ("model name", "flags", "Features")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(wanted))


def _openmp() -> str:
    """How to link OpenMP: the library that paddle's own products run on, where the wheel has it.

    Threads of two such libraries would wait for work on the same cores, and take turns.
    """
    libraries = Path(paddle.__file__).parent / "libs"
    if (libraries / "libiomp5.so").exists():
        return f"-L{libraries}\n-l:libiomp5.so"
    return "-fopenmp"


def build(force: bool = False) -> Path:
    """Compiles the operators where they are not there yet (or `force`); returns the library.

    Raises:
        OSError: the compiler is missing or failed; says what to install, and what it said.
    """
    library = library_path()
    if library.exists() and not force:
        return library
    with tempfile.TemporaryDirectory(prefix="passl_mae_ops_") as folder:
        compiling = subprocess.run(
            [sys.executable, "-c", _COMPILE, str(SOURCES / "ops.cc"), folder, _openmp(), *FLAGS],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        built = sorted(Path(folder).rglob("passl_mae_ops*.so"))
        if compiling.returncode or not built:
            said = (compiling.stdout + compiling.stderr).strip().splitlines()
            errors = [line for line in said if "rror" in line] or said
            raise OSError(
                "the operators could not be compiled; they need g++ 9 or newer, Python's headers "
                "and setuptools (Debian, Ubuntu: apt-get install g++ python3-dev; pip install "
                "setuptools):\n" + "\n".join(errors[-8:])
            )
        code = built[0].read_bytes()
    with replacing(library) as beside:
        beside.write_bytes(code + hashlib.sha256(code).digest())  # ELF ignores what follows it
    return library


def load() -> Path:
    """Makes the operators known to paddle in this process; returns the library.

    Raises:
        FileNotFoundError: they have not been built.
        OSError: the library is damaged or cannot be loaded.
    """
    library = library_path()
    if not library.exists():
        raise FileNotFoundError(f"CPU operators are not built: `{COMMAND}` builds them")
    if _loaded and _loaded[0][0] == library:
        return library
    content = library.read_bytes()
    # The loader of the system may crash, rather than complain, at half a library.
    if hashlib.sha256(content[:-32]).digest() != content[-32:]:
        raise OSError(f"{library} is damaged: build it again with `{COMMAND} --force`")
    if _loaded:
        return _loaded[0][0]
    from paddle.utils.cpp_extension.extension_utils import load_op_meta_info_and_register_op

    try:
        load_op_meta_info_and_register_op(str(library))
        _loaded.append((library, ctypes.CDLL(str(library))))
    except Exception as error:  # paddle's own types, by version
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise OSError(f"{library} cannot be loaded ({reason[0]}): `{COMMAND} --force`") from None
    return library


def try_load(wish: str) -> OSError | None:
    """Loads the library as `Global.cpu_ops` wishes; returns why that cannot be, for "auto".

    Args:
        wish: "auto" or "on".

    Raises:
        ValueError: another wish, or "on" where it cannot be; says why.
    """
    if wish not in ("auto", "on"):
        raise ValueError(f"Global.cpu_ops must be one of {', '.join(CHOICES)}, got {wish!r}")
    try:
        load()
    except OSError as error:
        if wish == "on":
            raise ValueError(f"Global.cpu_ops is on, but: {error}") from None
        return error
    return None


def function(name: str) -> Callable[..., None]:
    """A C function of the library, to be called through ctypes; it gives the GIL away.

    Raises:
        OSError: as `load`.
    """
    if not _loaded:
        load()
    found = getattr(_loaded[0][1], name)
    found.restype = None
    return found
