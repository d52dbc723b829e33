"""Deploys two Paddle models with every config in adapters_json/, and prints one table.

Each row has an expected verdict, stated before anything runs (`expected`); the exit status is 0 when all rows have
theirs. Latencies are measured interleaved, each config in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from paddock.bench import Entry, bench
from paddock.errors import AccuracyRefused, NotAvailable, PaddockError
from paddock.machine import cpu
from paddock_ascend import simulator
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from examples.export import EXPORTS

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("deepseek", "resnet")
NO_WORKAROUNDS = "cpu-mkldnn-no-workarounds"
REPAIRED = "cpu-mkldnn-repaired"
ABSENT_HARDWARE = ("gpu-", "npu-")
ASCEND, QUALCOMM = "npu-ascend-simulated", "npu-qualcomm-simulated"
"""`npu-ascend` where Paddle's library for it is the simulated NPU, `npu-qualcomm` on Qualcomm's backend for x86."""
BF16_FLAG = "avx512f"

LEGEND = """\
verified     agrees with the fp32 reference (Paddle Inference without oneDNN) within the budget; its error stands beside
refused      would have answered wrongly: deploy() raised, with the error, and nothing was served
unavailable  the hardware, the plugin or the precision is not on this host: deploy() said what is missing

Expected: every fp32 config on the CPU is verified. cpu-mkldnn-no-workarounds switches off Paddock's mend of a defect of
Paddle 3.3 with oneDNN, which corrupts rotary embeddings without a word: the decoder must be refused; ResNet-50 has no
such embedding and is verified. cpu-mkldnn-repaired adds "repair": true and a fallback: the few nodes to blame are
searched for and moved to plain Paddle, and all the others stay on oneDNN (column nodes). bf16 is unavailable on a CPU
without AVX-512; on one with it, verified or refused by its own error (a routed decoder may flip experts), and only with
--bf16, since what has to stay in fp32 is searched, with up to 96 deployments of each model on each of two adapters.
gpu-tensorrt, npu-ascend and npu-qualcomm wait for their hardware. npu-ascend-simulated is npu/ascend on the
Paddock simulated NPU: C++ loops in the host's memory behind Paddle's interface for devices. It shows that nodes are
placed, run and checked there (column nodes; others go to the fallback that the config names), and nothing of an Ascend.
npu-qualcomm-simulated, where onnxruntime-qnn is installed, runs rotary embeddings on Qualcomm's own backend as it is on
x86: what it takes and computes is real, its speed says nothing about an NPU."""


def expected(model: str, config: str) -> frozenset[str]:
    """The verdicts that a row may have on this host."""
    if config in (ASCEND, QUALCOMM):
        return frozenset({"verified"})
    if config.startswith(ABSENT_HARDWARE):
        return frozenset({"unavailable"})
    if config == NO_WORKAROUNDS:
        return frozenset({"refused"}) if model == "deepseek" else frozenset({"verified"})
    if config.endswith("-bf16"):
        return frozenset({"verified", "refused"}) if BF16_FLAG in cpu()[1] else frozenset({"unavailable"})
    return frozenset({"verified"})


def verdict(entry: Entry) -> str:
    """`verified`, `refused`, `unavailable`, or `failed` for anything else."""
    if entry.measured is not None:
        return "verified" if entry.measured.report.outcome == "passed" else entry.measured.report.outcome.value
    if isinstance(entry.error, AccuracyRefused):
        return "refused"
    return "unavailable" if isinstance(entry.error, NotAvailable) else "failed"


def configs(searched: bool) -> Mapping[str, str]:
    """The ready configs by name, and the demo's own; those that are searched for long only where they are asked for."""
    ready = [path for path in sorted((ROOT / "adapters_json").glob("*.json")) if "schema" not in path.name]
    if not searched and BF16_FLAG in cpu()[1]:
        ready = [path for path in ready if not path.stem.startswith("cpu-") or not path.stem.endswith("-bf16")]
    own = [Path(__file__).with_name(f"{name}.json") for name in (NO_WORKAROUNDS, REPAIRED)]
    return {path.stem: str(path) for path in (*ready, *own)}


@contextmanager
def ascend(tell: Callable[[str], None]) -> Iterator[Mapping[str, str]]:
    """The config for the simulated NPU, while children of this process find that; nothing where it cannot be built."""
    try:
        tell("building the simulated NPU")
        place = simulator.build()
    except PaddockError as error:
        tell(f"no simulated NPU: {error.problem}")
        yield {}
        return
    before = os.environ.get(simulator.ROOT)
    os.environ[simulator.ROOT] = str(place)
    try:
        yield {ASCEND: str(Path(__file__).with_name(f"{ASCEND}.json"))}
    finally:
        if before is None:
            del os.environ[simulator.ROOT]
        else:
            os.environ[simulator.ROOT] = before


def qualcomm() -> Mapping[str, str]:
    """The config for Qualcomm's simulated NPU by its name, where its package is here.

    It has a model of its own: the decoder does not compile whole there in fp32, an image takes ResNet-50 minutes.
    """
    if importlib.util.find_spec("onnxruntime_qnn") is None:
        return {}
    return {QUALCOMM: str(Path(__file__).with_name(f"{QUALCOMM}.json"))}


def rows(model: str, entries: Sequence[Entry]) -> list[tuple[str, ...]]:
    """The table's rows for one model; the last cell tells whether the verdict is an expected one."""
    made: list[tuple[str, ...]] = []
    for entry in entries:
        found = verdict(entry)
        as_expected = found in expected(model, entry.label)
        mark = "as expected" if as_expected else f"EXPECTED {' or '.join(sorted(expected(model, entry.label)))}"
        measured = entry.measured
        if measured is not None:
            detail = f"error {measured.report.error:.1e}"
            time = (
                "-" if entry.label in (ASCEND, QUALCOMM) else f"{measured.p50:.2f}"
            )  # a simulator's speed is nobody's
            cells = (measured.adapter, measured.precision, found, detail, measured.placed, time)
        else:
            assert entry.error is not None
            hardware, _, rest = entry.label.partition("-")
            backend, _, precision = rest.partition("-")
            precision = precision if precision in ("bf16", "fp16") else "fp32"
            cells = (f"{hardware}/{backend}", precision, found, entry.error.problem, "-", "-")
        made.append((model, entry.label, *cells, mark))
    return made


def main() -> int:
    """Runs the demo; the exit status is 0 when every row has an expected verdict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=ROOT / "out" / "models", help="where the models are exported to")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each config is measured")
    parser.add_argument("--bf16", action="store_true", help="bf16 on a CPU that computes in it: half an hour of search")
    arguments = parser.parse_args()
    errors = Console(stderr=True)
    found: list[tuple[str, ...]] = []
    with errors.status("exporting the models with paddle.jit.save") as status:
        for model in MODELS:
            tell = _teller(status, model)
            path = EXPORTS[model](arguments.models / model)
            entries = bench(path, configs(arguments.bf16), seconds=arguments.seconds, progress=tell)
            with ascend(tell) as chosen:
                if chosen:  # by itself: it would take the cores from the others
                    entries += bench(path, chosen, seconds=arguments.seconds, progress=tell)
            found += rows(model, entries)
        if chosen := qualcomm():
            path = EXPORTS["rotary"](arguments.models / "rotary")
            entries = bench(path, chosen, seconds=arguments.seconds, progress=_teller(status, "rotary"))
            found += rows("rotary", entries)
    show(found)
    unexpected = [row for row in found if row[-1] != "as expected"]
    print(f"{len(found) - len(unexpected)} of {len(found)} rows have their expected verdict")
    return 1 if unexpected else 0


def show(found: Sequence[tuple[str, ...]]) -> None:
    """Prints the table and its legend."""
    width = None if sys.stdout.isatty() else 180
    console = Console(width=width, highlight=False)
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    for name in ("model", "config", "adapter", "precision", "verdict", "error, or reason", "nodes", "p50 ms", ""):
        table.add_column(name, overflow="fold")
    colors = {"verified": "green", "refused": "red", "unavailable": "yellow"}
    for row in found:
        color = colors.get(row[4], "magenta")
        cells = [escape(cell) for cell in row]
        cells[4] = f"[{color}]{cells[4]}[/{color}]"
        table.add_row(*cells)
    console.print(table)
    console.print(f"\n{escape(LEGEND)}\n", soft_wrap=True)


def _teller(status: Status, model: str) -> Callable[[str], None]:
    return lambda message: status.update(f"{model}: {message}")


if __name__ == "__main__":
    sys.exit(main())
