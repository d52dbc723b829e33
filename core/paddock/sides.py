"""One side of a diff: what can be told of a model under a config, whatever of its hardware is here.

Three answers, the best that is to be had: the plan; the plan for a device that is only assumed, as its adapter declares
it; an outline, of what the model and the config tell by themselves. Nothing is built for any of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from paddock.checks import refusals, with_known_memory
from paddock.child import Children
from paddock.config import HardwareConfig
from paddock.contract import parse_options, unknown_options
from paddock.devices import memory_kind
from paddock.errors import ConfigError, MemoryRefused, ModelError, NotAvailable, PaddockError, UsageError, did_you_mean
from paddock.graph import BITS, Graph
from paddock.jsontext import json_path
from paddock.lowering import checked_means
from paddock.memory_plan import MemoryPlan, SegmentMemory
from paddock.model import Model
from paddock.plan import (
    Means,
    NodePlacement,
    Placement,
    Plan,
    Precision,
    PrecisionPlan,
    Segment,
    Verdict,
)
from paddock.planning.casts import WIDE
from paddock.planning.operators import matching
from paddock.planning.precision import NARROW, asked_to_keep
from paddock.planning.shapes import apply_shapes, describe_shape
from paddock.precision_search import as_deployed
from paddock.prepare import ModelSource, Prepared, Progress, prepare
from paddock.reading import open_model
from paddock.registry import Registered, Registry
from paddock.spi import Shapes
from paddock.verify import describe_budget
from paddock.wellknown import well_known

UNKNOWN = "?"
"""The dtype of a node of which nobody can tell from here what it would compute in."""

_LEFT_OUT = re.compile(r"(?:^|: )\$\.(threads|calibration|storage|io_dtype|batch_size)$")
"""Places of errors about what one adapter or precision has no use for: left out, the rest can still be told."""
_FLOATS = ("float64", WIDE, "float16", "bfloat16")


@dataclass(frozen=True)
class Side:
    """What is known of one config: the plan, how far it can be trusted, and what would refuse its deployment.

    `verdict` says what `plan` is. Yes: what would be deployed here. Provisional: a plan for a device that is assumed,
    with what is missing. No: an outline, with the reason; of it `memory.least`, `shapes`, `format` (where not ""),
    `budget`, `verify`, `reference` and the nodes with a no are meant, and nothing else.
    """

    config: HardwareConfig
    """As read."""
    planned: HardwareConfig
    """Without what was left out, to tell the rest; see `refused`."""
    plan: Plan
    verdict: Verdict
    refused: tuple[PaddockError, ...]
    """Why a deployment of the config as read would be refused, as far as that is known."""
    dtypes: tuple[str, ...]
    """What each node computes in: "" where it has no floats, `UNKNOWN` where nobody can tell."""
    means: Means | None
    """By whose doing it comes into its precision; None where nobody can tell."""
    options: Mapping[str, Any] | None
    """All options of the adapter with their values, defaults included; None where its plugin is not installed."""
    shapes: Shapes | None
    """Which shapes the adapter takes; None alike."""
    largest: int | None = None
    """The largest batch that is sure to fit, where the config states a batch and a bound is known."""


def side(
    model: ModelSource, config: HardwareConfig, registry: Registry, children: Children, free: int, tell: Progress
) -> Side:
    """What can be told of `model` under `config`.

    Args:
        model: A model's path.
        config: As read.
        registry: The plugins to choose from.
        children: Where SDKs are asked.
        free: Bytes of the host's memory that can be taken: told by the caller, so that two sides are told the same.
        tell: Told in a few words what is being done.

    Raises `ConfigError`, `UsageError` and `ModelError` for what is malformed whatever the hardware; `NotAvailable` for
    an adapter that nobody knows.
    """
    try:
        with config.named():
            registry.check_names(config)
            registered = registry.get(config.adapter)
    except NotAvailable as absent:
        if registry.canonical(config.adapter) not in well_known():
            raise
        return _outline(model, config, config, (absent,), None, registry, children)
    planned, refused = _fitting(config, registered, registry)
    while True:
        try:
            found = _planned(model, planned, registered, registry, children, free, tell)
            return replace(found, config=config, refused=(*refused, *found.refused))
        except PaddockError as error:
            key = _useless(error, planned)
            malformed = isinstance(error, ConfigError | UsageError | ModelError)
            if malformed and not key and not _wants_samples(error, planned):
                raise
            missing, error.besides = error.besides, ()  # on a side each refusal stands by itself
            if not key:
                refused = (*missing, *refused, error)
                return _outline(model, config, planned, refused, registered, registry, children)
            planned, refused = planned.model_copy(update={key: None}), (*refused, error)


def _fitting(
    config: HardwareConfig, registered: Registered, registry: Registry
) -> tuple[HardwareConfig, tuple[PaddockError, ...]]:
    """The config without what only another adapter has a use for, and the errors that this would be."""
    adapter, errors = registered.adapter, []
    known = sorted(adapter.Options.model_fields)
    unknown = unknown_options(adapter, config.options)
    for name in unknown:
        errors.append(
            ConfigError(
                f"{adapter.name()} has no such option", where=json_path(("options", name)),
                candidates=known or ["(it has no options)"], remedy=did_you_mean(name, known),
            )
        )  # fmt: skip
    own = [name for name in config.fallback if registry.canonical(name) == adapter.name()]
    for name in own:
        where = json_path(("fallback", config.fallback.index(name)))
        errors.append(ConfigError("has no effect: it is the adapter that the config asks for", where=where))
    for error in errors:
        error.where = f"{config.source}: {error.where}"
    changes: dict[str, Any] = {
        "options": {name: value for name, value in config.options.items() if name not in unknown},
        "fallback": tuple(name for name in config.fallback if name not in own),
    }
    return (config.model_copy(update=changes) if errors else config), tuple(errors)


def _useless(error: PaddockError, config: HardwareConfig) -> str:
    """The key that an error is about, where the rest can be told without it; else ""."""
    match = _LEFT_OUT.search(error.where or "")
    key = match[1] if match else ""
    if key == "batch_size":
        largest = isinstance(error, NotAvailable | MemoryRefused) and config.batch_size == "max"
        return key if largest else ""
    return key if key and getattr(config, key) is not None else ""


def _wants_samples(error: PaddockError, config: HardwareConfig) -> bool:
    """Whether it says that the precision needs samples, where the config names none."""
    match = _LEFT_OUT.search(error.where or "")
    return match is not None and match[1] == "calibration" and config.calibration is None


def _planned(
    model: ModelSource,
    config: HardwareConfig,
    registered: Registered,
    registry: Registry,
    children: Children,
    free: int,
    tell: Progress,
) -> Side:
    prepared = prepare(model, config, registry=registry, children=children, progress=tell, assume=True)
    try:
        if not prepared.assumed:
            prepared = with_known_memory(as_deployed(prepared))
        refused = refusals(prepared)
        budget = _budget(prepared, free)
        stated = config.batch_size is not None and budget is not None
        largest = prepared.budgeter.largest(budget) if stated and budget is not None else None
    finally:
        prepared.discard()
    plan = prepared.plan
    if config.candidates:
        note = f"candidates are left aside: this is about {plan.adapter}"
        plan = replace(plan, notes=(*plan.notes, note))
    verdict = Verdict.provisional(prepared.assumed, "the adapter's declaration") if prepared.assumed else Verdict.yes()
    with config.named():
        options = parse_options(plan.adapter, registered.adapter, config).model_dump(mode="json")
    dtypes = _dtypes(plan.precision, prepared.origin.graph)
    shapes = registered.adapter.shapes
    return Side(config, config, plan, verdict, refused, dtypes, plan.precision.means, options, shapes, largest)


def _budget(prepared: Prepared, free: int) -> int | None:
    """The bytes that a deployment must stay within; None where they are not known."""
    device, limit = prepared.budgeter.device, prepared.plan.memory.limit
    host = device.memory_kind == "host" and not prepared.assumed
    known = [size for size in (limit, device.memory, free if host else None) if size is not None]
    return min(known, default=None)


def _dtypes(precision: PrecisionPlan, graph: Graph) -> tuple[str, ...]:
    """What each node computes in: as planned or, where the model is run as it is, as it says."""
    if precision.nodes:
        return tuple(node.dtype for node in precision.nodes)
    return tuple(_float(graph, (*node.outputs, *node.inputs)) for node in graph.nodes)


def _float(graph: Graph, values: tuple[int | None, ...]) -> str:
    found = (graph.values[v].dtype for v in values if v is not None)
    return next((dtype for dtype in found if dtype in _FLOATS), "")


def _outline(
    model: ModelSource,
    config: HardwareConfig,
    planned: HardwareConfig,
    refused: tuple[PaddockError, ...],
    registered: Registered | None,
    registry: Registry,
    children: Children,
) -> Side:
    """What the model and the config tell by themselves; `refused` ends with why no plan could be made."""
    error = refused[-1]
    if planned.batch_size == "max":
        planned = planned.model_copy(update={"batch_size": None})
    whole = open_model(model, registry, children)
    with config.named():
        origin = whole.with_graph(apply_shapes(whole.graph, planned))
        _check_patterns(origin, planned)
        options = None
        if registered is not None:
            options = parse_options(config.adapter, registered.adapter, planned).model_dump(mode="json")
    graph, precision = origin.graph, config.precision
    as_it_is = precision is Precision.FP32 and planned.storage is None
    name = registry.canonical(config.adapter)
    reference = [] if config.accuracy.verify in ("off", "golden") else registry.references(origin.format)
    plan = Plan(
        model=origin.fingerprint,
        format=_format(origin, registered, registry),
        adapter=name,
        device="",
        precision=PrecisionPlan(precision),
        placement=_placement(origin, name, error),
        memory=_least(graph, planned, name, registered),
        shapes={value.name: describe_shape(graph, value) for value in graph.input_values},
        verify=config.accuracy.verify,
        reference=tuple(entry.adapter.name() for entry in reference),
        budget=describe_budget(config) if config.accuracy.verify != "off" else "not verified",
    )
    dtypes = _dtypes(PrecisionPlan(precision), graph)
    if not as_it_is:
        dtypes = tuple(UNKNOWN if dtype else "" for dtype in dtypes)
    shapes = None if registered is None else registered.adapter.shapes
    means = _means(planned, registered, registry)
    return Side(config, planned, plan, Verdict.no(error.problem), refused, dtypes, means, options, shapes)


def _check_patterns(origin: Model, config: HardwareConfig) -> None:
    """Raises `ConfigError` where the config names nodes that the model does not have."""
    exclude = config.operators.exclude
    if isinstance(exclude, Mapping):
        for name, patterns in exclude.items():
            matching(origin, patterns, f'$.operators.exclude["{name}"]')
    else:
        matching(origin, exclude, "$.operators.exclude")
    asked_to_keep(origin, config)


def _placement(origin: Model, adapter: str, error: PaddockError) -> Placement:
    """The nodes that are refused, with the reasons; all others are open."""
    graph = origin.graph
    reasons = dict(zip(error.nodes, error.reasons, strict=True)) if isinstance(error, NotAvailable) else {}
    opened = Verdict.provisional("no plan could be made")
    nodes = tuple(
        NodePlacement(n.index, n.type, adapter, Verdict.no(reasons[n.index]) if n.index in reasons else opened)
        for n in graph.nodes
    )
    whole = Segment(0, adapter, tuple(node.index for node in graph.nodes), graph.inputs, graph.outputs)
    return Placement(nodes, (whole,))


def _format(model: Model, registered: Registered | None, registry: Registry) -> str:
    """What the adapter would be given; "" where it is not known, or there is no way there."""
    if registered is None:
        return ""
    formats, ways = registered.adapter.formats, registry.formats[model.format].converts_to
    return model.format if model.format in formats else next((name for name in formats if name in ways), "")


def _means(config: HardwareConfig, registered: Registered | None, registry: Registry) -> Means | None:
    if config.precision is Precision.FP32:
        return Means.NONE if config.storage is None else Means.CAST
    try:
        asked = None if registered is None else registry.consider(config.adapter, config, assume=True)
        return None if asked is None else checked_means(asked, config.precision)
    except PaddockError:
        return None  # why not, the outline's own reason tells


def _least(graph: Graph, config: HardwareConfig, adapter: str, registered: Registered | None) -> MemoryPlan:
    """Weights, inputs and outputs: no backend takes less, even where it narrows every weight that it may."""
    border = [graph.nbytes(value) for value in dict.fromkeys((*graph.inputs, *graph.outputs))]
    kind = memory_kind(config.hardware)
    shared = registered is None or registered.adapter.concurrency.shares_weights
    segment = SegmentMemory(
        adapter=adapter,
        kind=kind,
        nodes=len(graph.nodes),
        weights=_narrowed(graph, NARROW.get(Precision(config.storage or config.precision), WIDE)),
        io=sum(size for size in border if size is not None),
        unknown=border.count(None),
        instances=config.instances,
        shares_weights=shared,
    )
    return MemoryPlan((segment,), 0, config.instances, kind, config.memory.limit)


def _narrowed(graph: Graph, narrow: str) -> int:
    """The bytes of all constants if every float32 one were stored in the dtype `narrow`."""
    total = sum(
        size if graph.values[value].dtype != WIDE else size * BITS[narrow] // BITS[WIDE]
        for value, size in graph.initializers.items()
    )
    return total + sum(_narrowed(body, narrow) for node in graph.nodes for body in node.subgraphs)
