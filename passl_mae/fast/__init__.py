"""Optional C++ operators for training on the CPU, the layers that call them, and the input."""

from passl_mae.fast.input import fuse
from passl_mae.fast.layers import accelerate, choose
from passl_mae.fast.library import build, library_path, load

__all__ = ["accelerate", "build", "choose", "fuse", "library_path", "load"]
