"""How long `import paddock` and `paddock adapters` take: `python -m benchmarks.startup`.

`import paddock` against numpy, pydantic and pluggy together (target: at most 1.5 times), and `paddock adapters` with
kept probes (target: under 1.5 s). Fresh processes, in turns, medians.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

RATIO = 1.5
SECONDS = 1.5


def seconds(*command: str) -> float:
    """Wall time of one command."""
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begun


def main() -> int:
    """Prints the figures; the exit status is 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
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
    return 1 if ratio > RATIO or medians["paddock adapters"] > SECONDS else 0


if __name__ == "__main__":
    sys.exit(main())
