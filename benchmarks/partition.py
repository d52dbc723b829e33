"""What a border between segments costs: `python -m benchmarks.partition`.

ResNet-50, batch 1, cut by force into 2, 8 and 32 segments on one adapter, each cut behind a relu where one tensor
crosses, so that no fusion is lost at it. Uncut and cut take turns in blocks in one child process of one runtime; a
plain copy of the tensors that cross is timed beside them. The target: under 30 microseconds a border, plus at most one
copy of what crosses it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from paddock.child import Child
from paddock.errors import PaddockError

from benchmarks.cutting import measure

ADAPTERS = ("cpu/onnxruntime", "cpu/openvino", "cpu/mkldnn", "cpu/paddle")
TARGET_US = 30.0


def main() -> int:
    """Prints one table; the exit status is 1 where a border is over the target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=31)
    parser.add_argument("--adapter", action="append", choices=ADAPTERS)
    arguments = parser.parse_args()
    missed = 0
    print(
        f"{'adapter':<16} {'segments':>8} {'ms':>9} {'ratio':>7} {'us a border':>12} {'of it a copy':>13} {'over':>7} "
        f"{'ours':>6}"
    )
    with tempfile.TemporaryDirectory(prefix="paddock-bench-") as scratch:
        from examples.export import EXPORTS

        model = EXPORTS["resnet"](Path(scratch) / "resnet")
        for adapter in arguments.adapter or ADAPTERS:
            try:
                with Child(f"measuring {adapter}") as child:
                    rows = child.call(measure, adapter, model, arguments.blocks, seconds=1200)
            except PaddockError as error:
                print(f"{adapter:<16} {error.problem}")
                missed += 1
                continue
            for row in rows:
                over = row["border"] - row["copy"]
                missed += over > TARGET_US
                print(
                    f"{adapter:<16} {row['segments']:>8.0f} {row['ms']:>9.2f} {row['ratio']:>7.3f} "
                    f"{row['border']:>12.1f} {row['copy']:>13.1f} {over:>7.1f} {row['own']:>6.1f}"
                    f"{'  OVER 30 us' if over > TARGET_US else ''}",
                    flush=True,
                )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
