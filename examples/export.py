"""Export the example models by name: `python -m examples.export FOLDER [NAME ...]`."""

import argparse
from collections.abc import Callable
from pathlib import Path

from examples.deepseek.export import export as deepseek
from examples.encoder.export import export as encoder
from examples.linear.export import export as linear
from examples.mobilenet.export import export as mobilenet
from examples.resnet.export import export as resnet
from examples.rotary.export import export as rotary

EXPORTS: dict[str, Callable[[Path], Path]] = {
    "deepseek": deepseek,
    "resnet": resnet,
    "rotary": rotary,
}
"""What the tests and the demo run on."""

TASKS: dict[str, Callable[[Path], Path]] = {
    "encoder": encoder,
    "linear": linear,
    "mobilenet": mobilenet,
}
"""More, for the benchmarks: too large or too plain for every test to export them."""

ALL = EXPORTS | TASKS

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Export example models, print the .json paths.")
    parser.add_argument("folder", type=Path, help="where the .json and .pdiparams files go")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(ALL)} (default: all)")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(ALL):
        parser.error(f"no example {', '.join(sorted(unknown))}; there are {', '.join(ALL)}")
    for name in arguments.names or ALL:
        print(ALL[name](arguments.folder))
