"""Whether memory grows with runs and shapes: `python -m benchmarks.growth`.

A deployment with two or more axes free answers `--runs` requests whose shapes are drawn from `--shapes` random ones,
into arrays of the caller's, in a child process of its own for each adapter. The resident size is taken a hundred times.
It has reached a plateau where the second half's highest is at most 2 % above the first half's.
The decoder gets a fifth of the runs, and as many of its 488 shapes as there are.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from paddock.child import Child
from paddock.errors import PaddockError

from benchmarks.growing import MODELS, SAMPLES, measure, save

ADAPTERS = ("cpu/onnxruntime", "cpu/openvino", "cpu/mkldnn", "cpu/paddle")
PLATEAU = 0.02


def main() -> int:
    """Prints a row for each adapter and model; the exit status is 1 where one grows on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--shapes", type=int, default=1_000)
    parser.add_argument("--adapter", action="append", choices=ADAPTERS)
    parser.add_argument("--model", action="append", choices=MODELS)
    arguments = parser.parse_args()
    if arguments.runs < 5 * SAMPLES:
        parser.error(f"--runs takes at least {5 * SAMPLES}")
    failed = 0
    print("resident MB after a share of the runs; growth is the second half's highest over the first half's")
    print(
        f"{'adapter':<16} {'model':<10} {'runs':>6} {'shapes':>6} {'first':>7} {'10 %':>7} {'50 %':>7} {'75 %':>7} "
        f"{'100 %':>7} {'growth':>7} {'':>7} plateau"
    )
    with tempfile.TemporaryDirectory(prefix="paddock-bench-") as scratch:
        with Child("exporting the models") as child:
            models = {name: child.call(save, name, Path(scratch)) for name in arguments.model or MODELS}
        for adapter in arguments.adapter or ADAPTERS:
            for name, path in models.items():
                runs = arguments.runs if name == "attention" else arguments.runs // 5
                try:
                    with Child(f"measuring {adapter}") as child:
                        shapes, sizes = child.call(measure, adapter, path, name, runs, arguments.shapes, seconds=3600)
                except PaddockError as error:
                    print(f"{adapter:<16} {name:<10} {error.problem}")
                    failed += 1
                    continue
                halves = max(sizes[: SAMPLES // 2 + 1]), max(sizes[SAMPLES // 2 + 1 :])
                growth = halves[1] - halves[0]
                stays = growth <= PLATEAU * halves[0]
                failed += not stays
                shown = " ".join(f"{sizes[SAMPLES * share // 100]:>7.1f}" for share in (0, 10, 50, 75, 100))
                print(
                    f"{adapter:<16} {name:<10} {runs:>6} {shapes:>6} {shown} {growth:>+7.1f} "
                    f"{growth / halves[0]:>+7.1%} {'yes' if stays else 'NO'}",
                    flush=True,
                )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
