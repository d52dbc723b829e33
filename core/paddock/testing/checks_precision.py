"""The precision claimed is the one computed in, and what a precision need not lose is not lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from paddock.metrics import relative_error
from paddock.plan import Means, Precision
from paddock.testing.bench import Bench, Serving
from paddock.testing.judging import BUDGET, apart
from paddock.testing.outcomes import Area
from paddock.testing.singles import IR, OPSET, SINGLES, Grade
from paddock.testing.table import Broken, Evidence, Refused, Skipped, Table

TABLE = Table(Area.PRECISION)

FLOOR = {Precision.FP16: 2e-5, Precision.BF16: 2e-4, Precision.INT8: 2e-4}
"""The error below which an answer was not computed in the precision: a tenth of what rounding the operands makes."""


def _usable(bench: Bench, precision: Precision) -> None:
    if precision not in bench.adapter.precisions:
        raise Skipped(f"the adapter does not declare {precision}")
    if precision not in bench.precisions:
        verdict = bench.device.precisions.get(precision)
        raise Skipped(
            f"the device does not compute in {precision}: {verdict.reason if verdict else 'it has no verdict'}"
        )


def _identity(bench: Bench, size: int = 12) -> Path:
    """x times the unit matrix: exactly x, in whatever order it is summed, unless x itself is cut short."""
    from onnx import TensorProto, helper, numpy_helper, save

    if bench.format != "onnx":
        raise Skipped(f"it takes {bench.format} models, and this one is ONNX")
    path = bench.folder / "unit.onnx"
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", size]) for n in "xy")
    unit = numpy_helper.from_array(np.eye(size, dtype=np.float32), "unit")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "unit"], ["y"])], "unit", [x], [y], [unit])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR), path)
    return path


def _keeps_bits(precision: Precision) -> Callable[[Bench], Evidence]:
    def action(bench: Bench) -> Evidence:
        _usable(bench, precision)
        with bench.serving(_identity(bench), precision=precision) as serving:
            session, sample = serving.load(), serving.sample()
            found = serving.answer(session, sample)
            if (why := apart({"y": sample["x"]}, found, precision, Grade.EXACT)) is not None:
                raise Broken(f"x times the unit matrix is not x: operands are narrower than {precision}: {why}")
            return Evidence("x times the unit matrix is x")

    return action


def _exact(precision: Precision) -> Callable[[Bench], Evidence]:
    def action(bench: Bench) -> Evidence:
        _usable(bench, precision)
        names = [n for n, single in SINGLES.items() if single.grade is not Grade.CLOSE]
        chosen = [n for n in names if n in _COMMON] if bench.quick else names
        tried, refused = [], []
        for name in chosen:
            try:
                with bench.serving(bench.single(name), precision=precision) as serving:
                    _check_exact(serving, name)
                    tried.append(name)
            except Refused:
                refused.append(name)
        if not tried:
            raise Skipped("it runs none of the operators that round at most once")
        return Evidence(f"{len(tried)} operators", (f"{', '.join(refused)}: refused",) if refused else ())

    return action


_COMMON = ("Relu", "Max", "Transpose", "Concat", "MaxPool", "Add", "Mul")


def _check_exact(serving: Serving, name: str) -> None:
    single, session = SINGLES[name], serving.load()
    sample = dict(serving.sample(11))
    if single.positive:
        sample = {n: serving.rounded(np.abs(a) + np.float32(0.5)) for n, a in sample.items()}
    (wanted,) = serving.expected(sample)
    if (why := apart(wanted, serving.answer(session, sample), serving.precision, single.grade)) is not None:
        raise Broken(f"{name} in {serving.precision}: {why}")


def _computed(precision: Precision) -> Callable[[Bench], Evidence]:
    def action(bench: Bench) -> Evidence:
        _usable(bench, precision)
        refused: list[str] = []
        for name in bench.names:
            try:
                with bench.serving(bench.model(name), precision=precision) as serving:
                    return _judged(serving, name, precision)
            except Refused as error:
                refused.append(f"{name}: {error.problem}")
        raise Broken(f"{precision} is declared, and every whole model refused: {'; '.join(refused)[:500]}")

    return action


def _judged(serving: Serving, name: str, precision: Precision) -> Evidence:
    session = serving.load()
    samples = [serving.sample(seed) for seed in (0, 1)]
    largest = 0.0
    for sample, wanted in zip(samples, serving.expected(*samples), strict=True):
        found = serving.answer(session, sample)
        if (why := apart(wanted, found, precision)) is not None:
            raise Broken(f"{name} in {precision}: {why}")
        floats = [n for n, a in wanted.items() if a.dtype.kind == "f"]
        largest = max(largest, *(relative_error(wanted[n], found[n])[0] for n in floats), 0.0)
    settings: Any = session.observed().settings
    told = settings.get("precision")
    if told is not None and told != precision.value:
        raise Broken(f"{precision} was asked for, and observed() says {told}")
    if precision in FLOOR and largest < FLOOR[precision]:
        raise Broken(
            f"{name} in {precision} has an error of {largest:.1g}, as fp32 has: it is not computed in {precision}"
        )
    means = serving.prepared.plan.precision.means
    unproven = []
    if told is None and means is not Means.NONE:
        unproven.append("what is accumulated in: observed() tells no precision")
    return Evidence(f"{name}: error {largest:.1g} of {BUDGET[precision]:g} admitted, by {means}", tuple(unproven))


for _precision in Precision:
    TABLE.check(
        f"computed.{_precision}",
        f"{_precision}, where declared, is what is computed in, and no worse than it must be",
        seconds=600,  # quantisers take their time
    )(_computed(_precision))
for _precision in (Precision.FP32, Precision.FP16):
    TABLE.check(f"keeps_bits.{_precision}", f"no operand is narrower than {_precision}")(_keeps_bits(_precision))
    TABLE.check(f"exact.{_precision}", f"operators that round at most once are exact in {_precision}")(
        _exact(_precision)
    )
