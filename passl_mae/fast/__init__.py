"""Optional C++ operators for training on the CPU, and the layers that call them."""

from passl_mae.fast.accelerate import accelerate, choose
from passl_mae.fast.build import build, library_path, load

__all__ = ["accelerate", "build", "choose", "library_path", "load"]
