"""Export the example models by name: `python -m examples.export FOLDER [NAME ...]`."""

import argparse
from collections.abc import Callable
from pathlib import Path

from examples.deepseek.export import export as deepseek
from examples.resnet.export import export as resnet
from examples.rotary.export import export as rotary

EXPORTS: dict[str, Callable[[Path], Path]] = {
    "deepseek": deepseek,
    "resnet": resnet,
    "rotary": rotary,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Export example models, print the .json paths.")
    parser.add_argument("folder", type=Path, help="where the .json and .pdiparams files go")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(EXPORTS)} (default: all)")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(EXPORTS):
        parser.error(f"no example {', '.join(sorted(unknown))}; there are {', '.join(EXPORTS)}")
    for name in arguments.names or EXPORTS:
        print(EXPORTS[name](arguments.folder))
