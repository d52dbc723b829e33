"""What `Deployment.run` adds to the native call: `python -m benchmarks.overhead`.

On a null session (Paddock alone), on an identity model and on ResNet-50, for each backend. Native and Paddock take
turns in blocks inside one child process of one runtime; figures are medians over all blocks, and the spread is the
interquartile range of the blocks' differences.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from paddock.child import Child
from paddock.errors import PaddockError

from benchmarks.measuring import measure, save_identities
from benchmarks.native import NATIVE

TARGET_US = 20.0


def main() -> int:
    """Prints one table; the exit status is 1 where the null session or an identity is over the target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=41)
    parser.add_argument("--resnet", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    missed = 0
    columns = zip(("native us", "paddock us", "added us", "spread", "ratio"), (11, 11, 9, 8, 7), strict=True)
    print(f"{'model':<10} {'adapter':<16} {' '.join(f'{name:>{width}}' for name, width in columns)}")
    with tempfile.TemporaryDirectory(prefix="paddock-bench-") as scratch:
        identities = save_identities(Path(scratch))
        cases: list[tuple[str, str, Path, tuple[int, ...], int]] = [
            ("null", "none/null", identities["onnx"], (1, 16), 200)
        ]
        for adapter in NATIVE:
            format = "paddle" if adapter in ("cpu/paddle", "cpu/mkldnn") else "onnx"
            cases.append(("identity", adapter, identities[format], (1, 16), 200))
        if arguments.resnet:
            from examples.export import EXPORTS

            resnet = EXPORTS["resnet"](Path(scratch) / "resnet")
            cases += [("resnet50", adapter, resnet, (1, 3, 224, 224), 3) for adapter in NATIVE]
        for label, adapter, model, shape, runs in cases:
            try:
                with Child(f"measuring {adapter}") as child:
                    found = child.call(measure, adapter, model, shape, arguments.blocks, runs, seconds=900)
            except PaddockError as error:
                print(f"{label:<10} {adapter:<16} {error.problem}")
                continue
            ratio = found["paddock"] / found["native"]
            over = label != "resnet50" and found["added"] > TARGET_US
            missed += over
            figures = (
                f"{found['native']:>11.1f} {found['paddock']:>11.1f} {found['added']:>9.1f} {found['spread']:>8.1f}"
            )
            print(f"{label:<10} {adapter:<16} {figures} {ratio:>7.3f}{'  OVER 20 us' if over else ''}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
