"""Whole models and single operators: what the adapter claims, it computes right; what it refuses, it says.

One check for each operator and each model, so that one that crashes takes no other with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from paddock.errors import UsageError
from paddock.plan import Answer, Precision, Verdict
from paddock.samples import Sample
from paddock.spi import Session
from paddock.testing.bench import Bench, Outputs, Serving
from paddock.testing.cases import node_cases
from paddock.testing.judging import BUDGET, apart, same_bits
from paddock.testing.known import unexpected
from paddock.testing.nodes import Outcome as Way
from paddock.testing.nodes import Settings, run_nodes
from paddock.testing.outcomes import Area
from paddock.testing.singles import SINGLES, Grade, Single
from paddock.testing.table import SECONDS, Broken, Check, Evidence, Refused, Skipped, Table
from paddock.workshop import UNSAID

MODELS = Table(Area.MODELS)
OPERATORS = Table(Area.OPERATORS)
WRITTEN_OUT, MERGED = 1000, 4
"""At most so many nodes of a backend's for one of the model's, as of a recurrence that is unrolled; and at most so many
nodes of the model's in each of a backend's, or it is told: some merge all into one."""


def operator_checks() -> list[Check]:
    """A check for each operator of `SINGLES`."""
    return [
        Check(
            f"operators.{name}", Area.OPERATORS, f"{name}, where it is claimed, runs there and is right", _single(name)
        )
        for name in SINGLES
    ]


def model_checks(bench_names: tuple[str, ...]) -> list[Check]:
    """A check for each whole model of these names."""
    return [
        Check(
            f"models.{name}",
            Area.MODELS,
            f"{name} is right at every shape, again, and row by row",
            _whole(name),
            seconds=2 * SECONDS,
        )
        for name in bench_names
    ]


@MODELS.check("any", "at least one whole model of the kit is served")
def _any(bench: Bench) -> Evidence:
    precision, format = bench.precision, bench.format  # where there is no device or no model, nothing can be served
    try:
        served = f"{bench.plain.stem} ({format}) in {precision}"
        return Evidence(served, () if bench.takes_batches else ("batches of more than 1: they are refused",))
    except Skipped as error:
        raise Broken(error.problem) from error


def _single(name: str) -> Callable[[Bench], Evidence | None]:
    def action(bench: Bench) -> Evidence:
        single = SINGLES[name]
        with bench.serving(bench.single(name)) as serving:
            verdict = serving.prepared.parts[0].verdicts[0]
            session = serving.load()
            samples = [_placed(serving, seed, single) for seed in (0, 1)]
            for sample, wanted in zip(samples, serving.expected(*samples), strict=True):
                try:
                    found = serving.answer(session, sample)
                except UsageError as error:
                    raise Refused(error.problem) from error  # these numbers, by name: that is no wrong answer
                if (why := apart(wanted, found, serving.precision, single.grade)) is not None:
                    raise Broken(f"{name} is claimed ({_said(verdict)}) and wrong: {why}")
            # What only moves numbers may be left out of what runs, or be a part of the copy at the border.
            unproven = _counted(serving, session, least=0 if single.grade is Grade.EXACT else 1)
            return Evidence(f"{single.grade} in {serving.precision}; {_said(verdict)}", unproven)

    return action


def _placed(serving: Serving, seed: int, single: Single) -> Sample:
    """Numbers where the operator is to be tried, as far as the precision holds them."""
    if single.offset and serving.precision is not Precision.FP32:
        raise Skipped(f"{serving.precision} does not hold numbers that far from zero")
    if single.scale != 1 and serving.precision is Precision.INT8:
        raise Skipped("int8 holds the numbers only that it was calibrated on")
    far = 0 if serving.precision is Precision.INT8 else seed  # int8 saturates beyond what it was calibrated on
    return {name: serving.rounded(single.placed(array, far)) for name, array in serving.sample(seed).items()}


def _counted(serving: Serving, session: Session, least: int = 1) -> tuple[str, ...]:
    """What a session that has run counts, against what was claimed: gives what that leaves unproven.

    Backends merge nodes, and write one out as several; so only a count that no merging and no writing out explains is
    refuted.
    """
    claimed = sum(verdict.usable for verdict in serving.prepared.parts[0].verdicts)
    nodes: object = session.observed().nodes
    if nodes is None:
        return ("that it runs there: observed() counts no nodes",)
    if not isinstance(nodes, int) or isinstance(nodes, bool) or nodes < 0:
        raise Broken(f"observed() counts {nodes!r} nodes, which is no number of them")
    if nodes < min(least, claimed):
        raise Broken(f"{claimed} nodes are claimed, there are answers, and observed() says that none ran there")
    if nodes > WRITTEN_OUT * claimed:
        raise Broken(f"observed() counts {nodes} nodes where the model has {claimed}")
    if nodes * MERGED < claimed:
        return (f"that all runs there: observed() counts {nodes} where {claimed} nodes are claimed",)
    return ()


def _said(verdict: Verdict) -> str:
    return f"{verdict.answer}: {verdict.reason}" if verdict.reason else verdict.answer.value


def _whole(name: str) -> Callable[[Bench], Evidence | None]:
    def action(bench: Bench) -> Evidence:
        path = bench.model(name)
        most = 3 if bench.takes_batches else 1
        shapes = [{"batch": 1, "other": 5}, {"batch": most, "other": 7}] if bench.static else [{}]
        seen = 0
        for extents in shapes:
            with bench.serving(path, extents) as serving:
                session = serving.load()
                samples = [serving.sample(seed, e) for seed, e in enumerate(serving.extents())]
                wanted = serving.expected(*samples)
                answers = [serving.answer(session, sample) for sample in samples]
                for sample, should, found in zip(samples, wanted, answers, strict=True):
                    if (why := apart(should, found, serving.precision)) is not None:
                        at = ", ".join(f"{n} {list(a.shape)}" for n, a in sample.items())
                        raise Broken(f"with {at}: {why}")
                # The other way round: nothing may be left over from the shapes before.
                for sample, should in zip(reversed(samples), reversed(wanted), strict=True):
                    if (why := apart(should, serving.answer(session, sample), serving.precision)) is not None:
                        raise Broken(f"in another order of shapes: {why}")
                _rows(serving, samples[-1], answers[-1])
                seen += len(samples)
                unproven = _counted(serving, session)
        return Evidence(f"{seen} shapes", unproven)

    return action


def _rows(serving: Serving, sample: Sample, found: Outputs) -> None:
    """What stands beside a row changes it by nothing but rounding: the batch turned round shows it."""
    graph = serving.bench.read(serving.path).graph
    border = [v for v in (*graph.input_values, *graph.output_values) if v.shape and "batch" in v.shape]
    axes = {v.name: v.shape.index("batch") for v in border if v.shape}
    if not all(name in axes for name in (*sample, *found)):
        return  # not every input and output has rows
    turned = {name: np.ascontiguousarray(np.flip(array, axes[name])) for name, array in sample.items()}
    again = serving.answer(serving.load(), turned)
    back = {name: np.flip(array, axes[name]) for name, array in again.items()}
    if (why := apart(found, back, serving.precision)) is not None:
        raise Broken(f"rows of a batch depend on each other: with the rows turned round, {why}")


@MODELS.check("repeats", "the same input gives the same bits again, in the same session")
def _repeats(bench: Bench) -> None:
    with bench.serving(bench.plain) as serving:
        session = serving.load()
        one, other = serving.sample(0), serving.sample(1)
        first = serving.answer(session, one)
        serving.answer(session, other)
        for _ in range(5):
            if not same_bits(first, serving.answer(session, one)):
                raise Broken("the same input gives other bits when it is run again")


@OPERATORS.check(
    "onnx_cases", "ONNX's own node tests come out right or are refused with a reason", long=True, seconds=5400
)
def _onnx_cases(bench: Bench) -> Evidence:
    """Every case of the standard, in workers of their own; in the widest precision that the adapter has.

    What Paddock's own verification refuses is an answer that the adapter gave: wrong where the standard says so too.
    """
    if "onnx" not in bench.adapter.formats:
        raise Skipped("it takes no ONNX models")
    tolerance = 0.0 if bench.precision is Precision.FP32 else BUDGET[bench.precision]
    ranked = [entry.adapter.name() for entry in bench.registry.references("onnx")]
    helper = tuple(name for name in ranked if name != bench.name)[:1]
    settings = Settings(helper, repair=False, precision=bench.precision, tolerance=tolerance, unverified=True)
    results = run_nodes(node_cases(), (bench.name,), settings, tested=bench.adapter)
    matrix: dict[str, dict[str, int]] = {}
    for result in results:
        ways = matrix.setdefault(result.operator, {})
        ways[result.outcome.value] = ways.get(result.outcome.value, 0) + 1
    gone = [r for r in results if r.outcome in (Way.CRASHED, Way.HUNG)]
    wrong = [*unexpected(results), *gone]
    totals = Counter(r.outcome for r in results)
    counts = ", ".join(f"{totals[o]} {o}" for o in Way if totals[o])
    if wrong:
        listed = "; ".join(f"{r.case}: {r.outcome}: {r.reason}" for r in wrong[:8])
        broken = Broken(f"{counts}; {len(wrong)} are not as the standard says: {listed}")
        broken.matrix = matrix
        raise broken
    return Evidence(f"{counts}; helped by {', '.join(helper) or 'nobody'}", matrix=matrix)


@OPERATORS.check("unknown", "an operator that nobody knows is refused with a reason, not tried")
def _unknown(bench: Bench) -> Evidence:
    from onnx import TensorProto, helper, save

    if bench.format != "onnx":
        raise Skipped(f"it takes {bench.format} models, and this one is ONNX")
    path = bench.folder / "unknown.onnx"
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [3, 4]) for n in "xy")
    node = helper.make_node("Frobnicate", ["x"], ["y"], domain="example.nowhere")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("example.nowhere", 1)]
    save(helper.make_model(helper.make_graph([node], "unknown", [x], [y]), opset_imports=opsets, ir_version=8), path)
    try:
        with bench.serving(path) as serving:
            answer = serving.prepared.parts[0].verdicts[0].answer
            if answer is Answer.YES:
                raise Broken("select_operators() says yes to an operator that does not exist")
            serving.load()
    except Refused as error:
        if UNSAID in error.problem:
            raise Broken(f"select_operators() says no without a reason: {error.problem}") from error
        return Evidence(error.problem)
    raise Broken("an operator that does not exist was compiled and loaded")
