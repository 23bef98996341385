"""Optional C++ operators for training on the CPU, and the layers that call them."""

from passl_mae.fast.layers import accelerate, choose
from passl_mae.fast.library import build, library_path, load

__all__ = ["accelerate", "build", "choose", "library_path", "load"]
