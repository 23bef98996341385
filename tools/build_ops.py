"""Compile the optional C++ operators: training on the CPU about twice as fast, input on any device.

    python tools/build_ops.py [--force]

It takes half a minute and a C++ compiler (Debian, Ubuntu: apt-get install g++ python3-dev). Runs
find the result by themselves: Global.cpu_ops is auto, on or off. After an update of passl_mae or
PaddlePaddle, run it again.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from passl_mae import cli, runtime

TOLERANCE = 1e-5


def main(args: argparse.Namespace) -> None:
    runtime.import_paddle().set_device("cpu")
    from passl_mae.fast import build, library_path
    from passl_mae.fast.check import differences

    there, start = library_path().exists(), time.perf_counter()
    library = build(args.force)
    if there and not args.force:
        print(f"{library} is there already (--force builds it again)")
    else:
        print(f"built {library} in {time.perf_counter() - start:.0f} s")
    found = differences()
    print("largest relative difference from the plain layers and transforms, gradients included:")
    for name, difference in found.items():
        print(f"  {name:12} {difference:.1e}")
    if not all(difference < TOLERANCE for difference in found.values()):
        library.unlink()
        raise ValueError(f"more than {TOLERANCE:g}: this compiler's result is not used (deleted)")


if __name__ == "__main__":
    parser = cli.make_parser(__doc__)
    parser.add_argument("--force", action="store_true", help="build even if it is there")
    cli.run(main, parser)
