"""The frozen plans: who runs each node, in which dtype, in how much memory, and why.

A plan can be made, printed, stored, compared and hashed without the device. `semantics()` is what the hash is
taken over: reasons, timings and free memory are left out, because they do not change what is built.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from paddock.graph import Choice, Range
from paddock.memory_plan import MemoryPlan


class Precision(StrEnum):
    """What a deployment computes in (not merely stores)."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


class Answer(StrEnum):
    """The three answers that planning knows."""

    YES = "yes"
    NO = "no"
    PROVISIONAL = "provisional"


@dataclass(frozen=True, slots=True)
class Verdict:
    """An answer with its reason. Every "no" in Paddock is one of these, never a bare False.

    `source` names who says so: the SDK's call or table, the standard, or the config.
    """

    answer: Answer
    reason: str = ""
    source: str = ""

    @classmethod
    def yes(cls, reason: str = "", source: str = "") -> Verdict:
        """It can."""
        return cls(Answer.YES, reason, source)

    @classmethod
    def no(cls, reason: str, source: str = "") -> Verdict:
        """It cannot, and why."""
        return cls(Answer.NO, reason, source)

    @classmethod
    def provisional(cls, reason: str, source: str = "") -> Verdict:
        """Probably; only building or the device can confirm it."""
        return cls(Answer.PROVISIONAL, reason, source)

    @property
    def usable(self) -> bool:
        """Whether planning may go on with it: yes or provisional."""
        return self.answer is not Answer.NO


@dataclass(frozen=True, slots=True)
class NodePlacement:
    """Where one node of the model runs, by that adapter's own verdict.

    `passed` holds the adapters that stand before it in the chain, each with the reason why it does not run the node.
    """

    node: int
    op: str
    adapter: str
    verdict: Verdict
    passed: tuple[tuple[str, Verdict], ...] = ()

    @property
    def reason(self) -> str:
        """Why it runs there: the verdict's reason, and after "not X:" those of the adapters passed over."""
        return "; ".join((self.verdict.reason, *(f"not {name}: {verdict.reason}" for name, verdict in self.passed)))


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of nodes that one adapter compiles as one unit; `inputs` and `outputs` are value indices.

    `nodes` are its own, each node of a model in exactly one segment; `constants` are nodes of other segments that only
    make a constant it reads, and that it gets copies of.
    """

    index: int
    adapter: str
    nodes: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    constants: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Placement:
    """Operator selection's answer for a whole model."""

    nodes: tuple[NodePlacement, ...]
    segments: tuple[Segment, ...]

    def on(self, adapter: str) -> int:
        """How many nodes an adapter runs."""
        return sum(node.adapter == adapter for node in self.nodes)

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters that run something, in order of their first segment."""
        return tuple(dict.fromkeys(segment.adapter for segment in self.segments))

    def by_operator(self) -> list[tuple[str, str, str, str, int]]:
        """Rows (operator, adapter, answer, reason, count), most frequent first: the plan's table."""
        rows = Counter((n.op, n.adapter, n.verdict.answer.value, n.reason) for n in self.nodes)
        return [(*row, count) for row, count in sorted(rows.items(), key=lambda item: (-item[1], item[0]))]


class Means(StrEnum):
    """By whose doing a model comes to compute in the precision asked for."""

    NONE = "none"
    """It is run as it is."""
    CAST = "cast"
    """Paddock casts the graph: the adapter is given a model that states its types."""
    QUANTIZE = "quantize"
    """The adapter's quantiser writes an int8 model from samples."""
    BACKEND = "backend"
    """The backend lowers the whole model by a setting of its own, which is read back after load."""


@dataclass(frozen=True, slots=True)
class NodePrecision:
    """The dtype in which one node computes; "" where it has no float tensor. `reason` says who or what decided."""

    node: int
    op: str
    dtype: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SearchStep:
    """One try of the search for the nodes to keep: how many stayed in fp32, their share of the work, the error.

    `error` is None where it was not finite, or the try could not be built.
    """

    kept: int
    share: float
    error: float | None
    agreement: float | None
    met: bool
    problem: str = ""
    """Why it could not be built or run, where it could not."""


@dataclass(frozen=True, slots=True)
class PrecisionPlan:
    """Which dtype each node computes in, by what means, and why.

    `precision` is that of the arithmetic, `storage` the dtype that weights are kept in where that is another one.
    `keep_fp32` are the nodes held in fp32 by the config, by what was measured, or because the adapter has no narrow
    kernel; nodes that only follow their neighbours are not among them. `casts` are values with the dtype they are cast
    to; `weights_saved` is in bytes.
    """

    precision: Precision
    means: Means = Means.NONE
    keep_fp32: tuple[int, ...] = ()
    reason: str = ""
    nodes: tuple[NodePrecision, ...] = ()
    casts: tuple[tuple[str, str], ...] = ()
    weights_saved: int = 0
    storage: str = ""
    searched: tuple[SearchStep, ...] = ()
    border: str = ""
    """The dtype of float inputs and outputs, where the config asks for another than the model's."""
    calibration: str = ""
    """SHA-256 (hex) of the samples that it was quantised by, or ranges were measured on, where there are any."""

    def by_operator(self) -> list[tuple[str, str, str, int]]:
        """Rows (operator, dtype, reason, count) of the nodes that compute in floats, most frequent first."""
        rows = Counter((n.op, n.dtype, n.reason) for n in self.nodes if n.dtype)
        return [(*row, count) for row, count in sorted(rows.items(), key=lambda item: (-item[1], item[0]))]


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing asked for and what becomes of it; `effective` is None until a session reports it."""

    name: str
    requested: Any
    effective: Any = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Remedy:
    """A known defect of the SDK that concerns this plan, and what is done about it."""

    name: str
    summary: str
    action: str
    applied: bool
    evidence: str = ""
    nodes: tuple[int, ...] = ()
    """Where applied, the nodes that are kept off the adapter for it."""
    refuses: bool = False
    """Where applied, whether the adapter does not take the model at all."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is decided before anything is built."""

    model: str
    """Fingerprint of the model's files (SHA-256, hex)."""
    format: str
    """The format that the adapter is given, which differs from the source's where it was converted."""
    adapter: str
    device: str
    precision: PrecisionPlan
    placement: Placement
    memory: MemoryPlan
    shapes: Mapping[str, str]
    """Each input's shape as the config admits it, printable."""
    bounds: Mapping[str, Range] = field(default_factory=dict)
    """The same for machines: the range of each symbolic dimension, with its optimum."""
    choices: tuple[Choice, ...] = ()
    """Dimensions that the config couples; see `Graph.choices`."""
    settings: tuple[Setting, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    verify: str = "always"
    reference: tuple[str, ...] = ()
    """The adapters that may serve as the reference, best first."""
    budget: str = ""
    notes: tuple[str, ...] = ()
    """What a reader must know: a candidate skipped, a fallback taken, a conversion made."""

    def semantics(self) -> dict[str, Any]:
        """The part of the plan that changes what is built or answered, as JSON data."""
        full = self.to_json()
        return {
            **{k: full[k] for k in ("model", "format", "adapter", "device", "versions", "verify", "budget")},
            **{k: full[k] for k in ("shapes", "bounds", "choices")},
            "precision": {k: full["precision"][k] for k in _PRECISE},
            "dtypes": [n["dtype"] for n in full["precision"]["nodes"]],
            "placement": [[n["node"], n["adapter"]] for n in full["placement"]["nodes"]],
            "segments": full["placement"]["segments"],
            "instances": full["memory"]["instances"],
            "settings": [[s["name"], s["requested"]] for s in full["settings"]],
            "remedies": [[r["name"], r["applied"]] for r in full["remedies"]],
        }

    @property
    def key(self) -> str:
        """SHA-256 (hex) over `semantics()`: equal keys build and answer alike."""
        return digest(self.semantics())

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON data."""
        data: dict[str, Any]
        try:
            data = to_jsonable_python(self)  # by values: types would take longer to read than the plan
        except UnicodeEncodeError:  # a name that is no text, which only types let pass
            data = _plans().dump_python(self, mode="json")
        return data

    @classmethod
    def from_json(cls, data: Any) -> Plan:
        """The inverse of `to_json`; raises pydantic's ValidationError on foreign data."""
        return _plans().validate_python(data)


_PRECISE = ("precision", "means", "keep_fp32", "storage", "casts", "border", "calibration")


def digest(data: Any) -> str:
    """SHA-256 (hex) of JSON data, independent of key order."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _plans() -> TypeAdapter[Plan]:
    return TypeAdapter(Plan)
