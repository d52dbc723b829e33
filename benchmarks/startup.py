"""How long starting takes: `python -m benchmarks.startup`. Fresh processes, in turns, medians.

`import paddock` against numpy, pydantic and pluggy together (target: at most 1.5 times), `paddock adapters` with kept
probes (target: under 1.5 s), and the second start of ResNet-50 from `deploy` to the first answer, beside the runtime's
own API on the same model and on the form that the runtime itself keeps (target: at most 1.2 times the faster one).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from paddock import deploy

RATIO = 1.5
SECONDS = 1.5
SECOND_START = 1.2
ADAPTERS = ("cpu/onnxruntime", "cpu/openvino", "cpu/mkldnn", "cpu/paddle")


def seconds(*command: str) -> float:
    """Wall time of one command."""
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begun


def imports(repeats: int) -> bool:
    """Whether importing Paddock and listing adapters are within their targets."""
    commands = {
        "nothing": (sys.executable, "-c", ""),
        "numpy, pydantic, pluggy": (sys.executable, "-c", "import numpy, pydantic, pluggy; pydantic.BaseModel"),
        "paddock": (sys.executable, "-c", "import paddock"),
        "paddock.deploy at hand": (sys.executable, "-c", "import paddock; paddock.deploy"),
        "paddock adapters": (sys.executable, "-m", "paddock.cli", "adapters"),
    }
    for command in commands.values():
        seconds(*command)  # byte code, file cache, kept probes
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            times[name].append(seconds(*command))
    medians = {name: statistics.median(found) for name, found in times.items()}
    bare = medians["nothing"]
    ratio = (medians["paddock"] - bare) / (medians["numpy, pydantic, pluggy"] - bare)
    for name, median in medians.items():
        print(f"{name:<26} {median * 1e3:7.0f} ms  (interpreter alone {bare * 1e3:.0f} ms included)")
    print(f"import paddock takes {ratio:.2f} times what numpy, pydantic and pluggy take (target {RATIO})")
    print(f"paddock adapters takes {medians['paddock adapters']:.2f} s (target {SECONDS})")
    return ratio <= RATIO and medians["paddock adapters"] <= SECONDS


def second_starts(model: str, adapters: list[str], repeats: int) -> bool:
    """Whether the second start of a model is within its target on each adapter; prints a row for each."""
    within = True
    print(f"{'second start':<16} {'paddock':>9} {'native':>9} {'own form':>9}   ratio to the faster")
    for adapter in adapters:
        hardware, _, backend = adapter.partition("/")
        with deploy(model, {"hardware": hardware, "backend": backend, "threads": 2}) as deployment:
            given = {role: str(path) for role, path in deployment.lowered[1].items()}
            kept = {role: str(path) for role, path in deployment.artifacts[0].files.items()}
        starts = {"paddock": given, "native": given, **({"own": kept} if kept != given else {})}
        commands = {
            how: (sys.executable, "-m", "benchmarks.first_answer", how, adapter, model, json.dumps(files))
            for how, files in starts.items()
        }
        times: dict[str, list[float]] = {how: [] for how in commands}
        for turn in range(repeats + 1):
            for how, command in commands.items():
                found = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
                if turn:  # the first of each warms the file cache
                    times[how].append(found)
        medians = {how: statistics.median(found) for how, found in times.items()}
        fastest = min(median for how, median in medians.items() if how != "paddock")
        ratio = medians["paddock"] / fastest
        within &= ratio <= SECOND_START
        own = f"{medians['own'] * 1e3:6.0f} ms" if "own" in medians else "        -"
        print(
            f"{adapter:<16} {medians['paddock'] * 1e3:6.0f} ms {medians['native'] * 1e3:6.0f} ms {own}   {ratio:.2f}"
            f" (target {SECOND_START}), to native {medians['paddock'] / medians['native']:.2f}"
        )
    return within


def main() -> int:
    """Prints the figures; the exit status is 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--model", help="instead of ResNet-50, exported anew: a model of one image")
    parser.add_argument("--adapter", action="append", help="only these, for the second start")
    parser.add_argument("--only", choices=("imports", "second"))
    asked = parser.parse_args()
    within = imports(asked.repeats) if asked.only != "second" else True
    if asked.only != "imports":
        with tempfile.TemporaryDirectory() as folder:
            os.environ.setdefault("PADDOCK_CACHE", str(Path(folder) / "cache"))
            model = asked.model
            if model is None:
                from examples.resnet.export import export

                model = str(export(Path(folder)))
            within &= second_starts(model, asked.adapter or list(ADAPTERS), asked.repeats)
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
