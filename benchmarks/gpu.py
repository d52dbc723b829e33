"""GPUs beside the runtimes' own APIs: `python -m benchmarks.gpu` (`make bench-gpu`).

For each model, adapter and precision, at batch 1 to 64: what one `Deployment.run` takes, and one call of the runtime's
own API on the very file that Paddock's session got, in turns inside one child process; the error against the reference,
and against that API's answers; what is left allocated on the device when the deployment is closed. One that a first
small deployment left in the process (a context, libraries) does not count.

Without a GPU it says so in one line and ends with status 2. `--adapter cpu/onnxruntime` tries the harness without one.
Models are written with onnx alone and need no network; `--models DIR` takes ONNX files whose axis 0 is open instead.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paddock.child import Child
from paddock.errors import NotAvailable, PaddockError
from paddock.registry import Registry

from benchmarks.gpu_measuring import GPUS, Row, measure
from benchmarks.gpu_models import MODELS
from benchmarks.gpu_native import NATIVE

BATCHES = (1, 2, 4, 8, 16, 32, 64)
TARGET_US = 20.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table, and writes it as JSON where asked; 2 without a GPU, 1 where anything failed or may be left."""
    asked = _parser().parse_args(arguments)
    here, missing = available(asked.adapter or GPUS)
    if not here:
        print(f"no GPU to measure: {'; '.join(f'{name}: {why}' for name, why in missing.items())}")
        return 2
    for name, why in missing.items():
        print(f"{name} is left out: {why}")
    rows, failed = list[Row](), False
    with tempfile.TemporaryDirectory(prefix="paddock-gpu-") as folder:
        models = _models(asked.models, asked.model, Path(folder))
        print(heading())
        for label, path in models.items():
            for adapter in here:
                for precision in asked.precision or here[adapter]:
                    if precision not in here[adapter]:
                        print(f"{label:<10} {adapter:<15} {precision:<5} not computed in on this device")
                        continue
                    try:
                        with Child(f"measuring {adapter}") as child:
                            found = child.call(measure, label, path, adapter, precision, asked.batch, seconds=1800)
                    except PaddockError as error:
                        print(f"{label:<10} {adapter:<15} {precision:<5} {error.problem}", flush=True)
                        failed = True
                        continue
                    rows += found
                    print("\n".join(map(line, found)), flush=True)
    if asked.json is not None:
        asked.json.write_text(json.dumps({**facts(here), "rows": [asdict(row) for row in rows]}, indent=1))
    return int(failed or not rows or any(row.left or (row.left is None and row.adapter in GPUS) for row in rows))


def available(names: Sequence[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The adapters that run here with the precisions of their first device; and why the others do not."""
    registry = Registry.discover()
    here, missing = dict[str, list[str]](), dict[str, str]()
    for name in names:
        try:
            registered = registry.get(name)
            probe = registry.probe(registered)
            devices = registry.devices(registered, probe)
            if not devices.verdict.usable:
                raise NotAvailable(devices.verdict.reason)
            here[name] = [str(p) for p, v in sorted(devices.devices[0].precisions.items()) if v.usable and p != "int8"]
        except PaddockError as error:
            missing[name] = error.problem
    return here, missing


def heading() -> str:
    """The table's head."""
    return (
        f"{'model':<10} {'adapter':<15} {'prec':<5} {'batch':>5} {'native us':>11} {'paddock us':>11} {'added us':>9} "
        f"{'spread':>8} {'ratio':>6} {'error':>8} {'apart':>8} {'left':>9}"
    )


def line(row: Row) -> str:
    """One row of the table."""
    over = "  OVER 20 us" if row.added is not None and row.added > TARGET_US and row.ratio and row.ratio > 1.02 else ""
    return (
        f"{row.model:<10} {row.adapter:<15} {row.precision:<5} {row.batch:>5} {_shown(row.native, 11, 1)} "
        f"{_shown(row.paddock, 11, 1)} {_shown(row.added, 9, 1)} {_shown(row.spread, 8, 1)} {_shown(row.ratio, 6, 3)} "
        f"{_small(row.error)} {_small(row.apart)} {'?' if row.left is None else row.left:>9}{over}"
        + (f"  {row.note}" if row.note else "")
    )


def facts(here: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What the figures belong to: date, host, versions, devices."""
    registry = Registry.discover()
    found: dict[str, Any] = {"date": datetime.date.today().isoformat(), "machine": platform.machine()}
    for name in here:
        registered = registry.get(name)
        probe = registry.probe(registered)
        devices = registry.devices(registered, probe)
        found[name] = {"versions": dict(probe.versions), "devices": [d.name for d in devices.devices]}
    return found


def _models(folder: Path | None, chosen: Sequence[str], work: Path) -> dict[str, Path]:
    if folder is not None:
        return {path.stem: path for path in sorted(folder.glob("*.onnx")) if not chosen or path.stem in chosen}
    return {name: write(work / f"{name}.onnx") for name, write in MODELS.items() if not chosen or name in chosen}


def _shown(number: float | None, width: int, digits: int) -> str:
    return f"{'-' if number is None else f'{number:.{digits}f}':>{width}}"


def _small(number: float | None) -> str:
    return f"{'-' if number is None else f'{number:.1e}':>8}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", action="append", choices=sorted(NATIVE), help="by default both of NVIDIA's")
    parser.add_argument("--model", action="append", default=[], help="by name; all by default")
    parser.add_argument("--models", type=Path, help="a folder of ONNX files whose axis 0 is open")
    parser.add_argument(
        "--precision", action="append", choices=("fp32", "fp16", "bf16"), help="all that run by default"
    )
    parser.add_argument("--batch", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--json", type=Path, help="a file for the figures, with date, versions and device")
    return parser


if __name__ == "__main__":
    sys.exit(main())
