"""The whole contract between Paddock and a hardware vendor, on one page.

A plugin is a pip distribution with an entry point in the group `paddock` that names a module with these hooks. A
vendor declares `hardware`, `backend`, `spi_version`, `formats` and `precisions`, and writes `select_operators`,
`compile` and `load`; all else has a safe default. Nodes are known by their index in the graph, never by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pluggy
from pydantic import BaseModel, ConfigDict

from paddock.config import HardwareConfig
from paddock.errors import NotAvailable, OtherShape
from paddock.formats import CastModel, Format
from paddock.graph import Range
from paddock.memory_plan import Footprint, SegmentMemory
from paddock.model import Files, Model
from paddock.plan import Means, Precision, PrecisionPlan, Remedy, Segment, Verdict
from paddock.planning.aliasing import Aliasing
from paddock.planning.classes import OperatorClasses, standard_classes

__all__ = [
    "SPI_VERSION", "Adapter", "Aliasing", "Arrays", "Artifact", "CastModel", "Concurrency", "Context", "Device",
    "Devices", "Event", "Footprint", "Format", "NoOptions", "Observed", "OperatorClasses", "Probe", "Process",
    "Quantizer", "ReferenceRole", "ResolvedConfig", "SegmentMemory", "SegmentPlan", "Selection", "Session", "Shapes",
    "Threading", "hookimpl", "hookspec", "other_shape",
]  # fmt: skip

SPI_VERSION = 1
"""The version of this page. A plugin states the one it was written against; a newer one is a verdict, not a crash."""

hookspec = pluggy.HookspecMarker("paddock")
hookimpl = pluggy.HookimplMarker("paddock")

Arrays = Mapping[str, np.ndarray[Any, Any]]
"""Tensors by name: NumPy arrays, dense and row-major, in the dtype that the graph states."""


class Shapes(StrEnum):
    """Which input shapes one compiled artifact serves."""

    STATIC = "static"
    BOUNDED = "bounded"
    DYNAMIC = "dynamic"


class Process(StrEnum):
    """Whether a backend may share its process with others."""

    SHARED = "shared"
    EXCLUSIVE = "exclusive"


class Threading(StrEnum):
    """From which threads a session may be run."""

    REENTRANT = "reentrant"
    """Any number at once."""
    SERIAL = "serial"
    """Any thread, one at a time."""
    HOME = "home"
    """Any thread, one at a time, but each new thread costs much; the host keeps calls on few threads."""
    BOUND = "bound"
    """Only the thread that loaded it."""


@dataclass(frozen=True, slots=True)
class Concurrency:
    """How sessions of an adapter live with threads; `shares_weights`: `fork()` does not copy the weights."""

    threading: Threading = Threading.SERIAL
    shares_weights: bool = False


@dataclass(frozen=True, slots=True)
class ReferenceRole:
    """That an adapter can be the reference for a format: fp32, on its plainest path; the lowest `rank` comes first."""

    rank: int
    options: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 300.0
    """How long one sample may take before the next rank is asked."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What can be told without importing an SDK: whether it is installed, and its versions by distribution."""

    verdict: Verdict
    versions: Mapping[str, str] = field(default_factory=dict)
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Device:
    """One device; `memory` in bytes of its own memory or, where `memory_kind` is "host", of the host's.

    `precisions` holds a verdict for each precision that the adapter declares: what this device really computes in.
    """

    index: int
    name: str
    precisions: Mapping[Precision, Verdict]
    memory: int | None = None
    memory_kind: str = "host"


@dataclass(frozen=True, slots=True)
class Devices:
    """The answer of `probe_device`: the devices, and facts about SDK and driver worth keeping with a report."""

    verdict: Verdict
    devices: tuple[Device, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    remedy: str = ""


class NoOptions(BaseModel):
    """The options of an adapter that has none."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


@dataclass(frozen=True)
class ResolvedConfig:
    """A config as one adapter gets it: the whole, and its `options` parsed by the adapter's own `Options`."""

    config: HardwareConfig
    options: BaseModel
    threads: int
    """Compute threads for each session: the config's `threads`, or the cores, divided by the instances."""
    spinning: bool = False
    """Whether idle threads may spin. Off: spinning threads slow every other runtime in the process 2 to 3 times."""

    @property
    def precision(self) -> Precision:
        """What to compute in."""
        return self.config.precision


@dataclass(frozen=True)
class Context:
    """What an adapter may use while it selects, compiles and loads."""

    work: Path
    """Gone when the deployment closes; that of `compile` when it returns: only what the artifact names is left."""
    cache: Path
    """Kept between deployments, private to this adapter and its SDK's versions."""
    progress: Callable[[str], None] = lambda message: None


@dataclass(frozen=True)
class Selection:
    """One verdict for each node of the graph, by index."""

    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class SegmentPlan:
    """What `compile` has to honour for one segment; shapes are in the model graph's `bounds`.

    `verdicts` are the adapter's own, from `select_operators`, by node; empty where it was not asked.
    """

    segment: Segment
    precision: PrecisionPlan
    memory: SegmentMemory
    remedies: tuple[Remedy, ...] = ()
    verdicts: tuple[Verdict, ...] = ()


@dataclass(frozen=True)
class Artifact:
    """What `compile` leaves and `load` takes.

    `files` are by role; the model's own are not copied. `facts` is JSON data (no tuples); plans show its list "notes".
    """

    adapter: str
    format: str
    files: Files
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    bounds: Mapping[str, Range] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Observed:
    """What a loaded session can tell about itself; None and absent keys mean unknown, not no.

    `settings` holds what took effect by the setting's name ("precision", "threads", "options.NAME"), in the
    config's own terms: in strict mode a value that differs from the one requested refuses the deployment.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    nodes: int | None = None
    peak_bytes: int | None = None


class Quantizer(ABC):
    """Post-training quantisation of one model: calibrated once, when it is made; lives in a child process."""

    @abstractmethod
    def write(self, target: Path, keep: Collection[int] = ()) -> tuple[tuple[int, ...], ...]:
        """Writes the model quantised to `target`, the nodes `keep` left in float.

        Returns by node of it the nodes of the given model that it came from; none for what quantisation puts in.
        Inputs and outputs keep their names, dtypes and shapes. The same calls write the same bytes.
        """


other_shape = OtherShape
"""The one error of `Session.run_into` that says that an output does not fit into its array: the core may then `run`."""


class Session(ABC):
    """A loaded artifact, ready to run."""

    @abstractmethod
    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray[Any, Any]]:
        """Computes the outputs (all, or those named) from feeds that are checked, dense and row-major.

        Feeds are only read: they are the caller's own arrays. The arrays returned belong to the caller: no later run
        may change them. Raises `Exhausted` where memory ran out, else what the SDK raises, which becomes `RunFailed`.
        """

    @abstractmethod
    def close(self) -> None:
        """Frees what the session holds; closing twice is fine."""

    def fork(self) -> Session | None:
        """Another instance on the same weights, or None: the host then loads the artifact again."""
        return None

    def bind(self, buffers: Arrays) -> frozenset[str]:
        """From now on reads the named inputs from, and writes the named outputs to, these very arrays.

        Asked at most once, after `load` or `fork` and on the same thread, with dense arrays that outlive the session,
        in the dtypes and fixed shapes of its border. Returns the names that it bound: `run` gets no feed for such an
        input and leaves out such an output. A session with something bound is run by one thread at a time. Binding
        nothing, the default, is always right; binding saves a copy for each run.
        """
        return frozenset()

    def run_into(self, feeds: Arrays, into: Arrays) -> None:
        """Computes the outputs that `into` names, as `run` does, and writes them into these very arrays.

        They are dense, row-major, writable, of the outputs' dtypes, and share no memory with the feeds or each other.
        Raises `other_shape` where an output has another one. By default they are copied; a session whose backend can
        write there saves the copy, and is checked for the same numbers. Never called for what is bound.
        """
        found = self.run(feeds, tuple(into))
        for name, array in into.items():
            if found[name].shape != array.shape:
                raise other_shape(name, array.shape, found[name].shape)
            array[...] = found[name]

    def observed(self) -> Observed:
        """What really took effect."""
        return Observed()


class Adapter(ABC):
    """One `hardware/backend` pair: selects operators, compiles, loads. Constructed once for each deployment."""

    hardware: ClassVar[str]
    backend: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()  # other names of the backend, as in `onednn` for `mkldnn`
    spi_version: ClassVar[int]
    formats: ClassVar[tuple[str, ...]]  # that `compile` takes, preferred first
    precisions: ClassVar[frozenset[Precision]]
    """What it can compute in on some device; `probe_device` says what it computes in on this one."""
    shapes: ClassVar[Shapes] = Shapes.BOUNDED
    concurrency: ClassVar[Concurrency] = Concurrency()
    process: ClassVar[Process] = Process.SHARED
    plans_memory: ClassVar[bool] = True
    contends: ClassVar[bool] = True
    """Whether tuning tries it unasked. Not where it is there to be checked against: then only if nothing else runs."""
    tunables: ClassVar[Mapping[str, Sequence[Any]]] = {}
    """By `options.NAME` the values, beside the default, that may make some model faster; tuning tries each alone."""
    savers: ClassVar[Mapping[str, Sequence[Any]]] = {}
    """The same of memory: what may make sessions smaller, turned where that is the objective."""
    references: ClassVar[Mapping[str, ReferenceRole]] = {}
    """The formats for which it can serve as the reference, where Paddock itself knows none that is here."""
    environment: ClassVar[tuple[str, ...]] = ()
    """Variables that its SDK reads, as `FLAGS_*`, beside those of its base classes: part of each answer and key."""
    quantizes_with: ClassVar[tuple[str, ...]] = ()
    """Distributions that only `quantizer` needs: what it wrote with other versions of them is written anew."""
    Options: ClassVar[type[BaseModel]] = NoOptions

    def __init__(self, config: ResolvedConfig, device: Device | None) -> None:
        """`device` is None where a plan is made without it: what only the device can tell is then *provisional*."""
        self.config = config
        self.device = device

    @classmethod
    def name(cls) -> str:
        """`hardware/backend`."""
        return f"{cls.hardware}/{cls.backend}"

    @classmethod
    def probe(cls) -> Probe:
        """Whether the SDK is installed, from metadata only: imports no SDK, never raises, takes milliseconds."""
        return Probe(Verdict.yes("needs no SDK", "the adapter's declaration"))

    @classmethod
    def probe_device(cls) -> Devices:
        """The devices and what they compute in. May import the SDK: it runs in a child process and is remembered."""
        precisions = {p: Verdict.yes("declared", "the adapter's declaration") for p in sorted(cls.precisions)}
        return Devices(Verdict.yes(), (Device(0, cls.hardware, precisions),))

    @abstractmethod
    def select_operators(self, model: Model, context: Context) -> Selection:
        """A verdict with its source for every node of `model.graph`, in order.

        Asked about the whole model and, where others run parts of it, again about exactly the segment to be compiled.
        Where the SDK cannot be asked for each node, answer *provisional* and let `compile` raise `Unsupported`.
        """

    @abstractmethod
    def compile(self, model: Model, plan: SegmentPlan, context: Context) -> Artifact:
        """Builds the segment (`model` holds exactly its nodes) into files that `load` can take in any process."""

    @abstractmethod
    def load(self, artifact: Artifact, context: Context) -> Session:
        """A session for an artifact of its own, versions and host; others may load, run and close at the same time."""

    def known_defects(self, model: Model) -> Sequence[Remedy]:
        """The SDK's known wrong answers that concern this model, and what is done about them.

        Where a remedy is applied, the core keeps its `nodes` off the adapter, or all of them where it `refuses`;
        `compile` finds them in `SegmentPlan.remedies`. `paddock.defects` makes remedies from a file of the plugin's.
        """
        return ()

    def means(self, precision: Precision) -> Means:
        """By whose doing a model comes to compute in `precision`, one of those declared, other than fp32.

        By default Paddock casts the graph for fp16 and bf16, and asks `quantizer` for int8.
        """
        return Means.QUANTIZE if precision is Precision.INT8 else Means.CAST

    def operator_classes(self) -> OperatorClasses:
        """Which operators are worth a narrow type on this backend; the standard's classes refined, where it differs."""
        return standard_classes()

    def quantizer(self, model: Model, samples: Sequence[Arrays], work: Path) -> Quantizer:
        """A quantiser for `model`, calibrated on `samples`, for adapters that compute in int8. Runs in a child."""
        raise NotAvailable(f"{self.name()} has no quantiser", where="$.precision")

    def footprint(self, model: Model, precision: PrecisionPlan) -> Footprint | None:
        """At most what the runtime takes for `model` beside the graph's own bytes; None where nobody measured it.

        A deployment is planned by it until one run of its own was measured.
        """
        return None

    def notes(self, model: Model) -> Sequence[str]:
        """What whoever reads a plan for `model` is to know of it, in sentences; by default nothing."""
        return ()

    def compatible(self, artifact: Artifact) -> Verdict:
        """Asked before `load`; the cache already keys by versions, driver and device."""
        return Verdict.yes()


@dataclass(frozen=True)
class Event:
    """Worth observing: candidate, plan, artifact (verified), refused, warm (start), child (lost), rescued, closed."""

    kind: str
    deployment: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@hookspec
def paddock_adapters() -> Sequence[type[Adapter]]:  # type: ignore[empty-body]
    """The adapters that this plugin brings."""


@hookspec
def paddock_formats() -> Sequence[Format]:  # type: ignore[empty-body]
    """The model formats that this plugin brings."""


@hookspec
def paddock_observe(event: Event) -> None:
    """Called after each event; what it raises is recorded and disturbs nothing."""
