"""What a check works with: the adapter under test, models to give it, and its sessions, all in one process.

A bench lives in a child process, so whatever the adapter does ends at most that. Everything it makes lies in one
folder and one cache of the run, so that nothing from an earlier run answers.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from paddock.built import BuiltSegment
from paddock.cache import source_digest
from paddock.child import Children
from paddock.compile import Refused as RefusedNodes
from paddock.compile import build
from paddock.config import HardwareConfig
from paddock.contract import check_adapter
from paddock.errors import BuildFailed, NotAvailable, PaddockError
from paddock.graph import Range
from paddock.model import Model
from paddock.plan import Answer, Precision
from paddock.planning.shapes import apply_shapes
from paddock.prepare import Prepared, prepare
from paddock.reading import open_model
from paddock.ready import built_of
from paddock.references import reference_outputs
from paddock.registry import Registered, Registry
from paddock.samples import Sample, typical
from paddock.spi import Adapter, Device, Devices, Probe, Session, Shapes
from paddock.testing.configuring import USUAL_BATCH, admitted, calibration
from paddock.testing.singles import SINGLES, Single, write_single
from paddock.testing.table import Broken, Refused, Skipped
from paddock.testing.zoo import ZOO

Outputs = dict[str, np.ndarray[Any, Any]]
Extents = Mapping[str, int]


def under_test(adapter: type[Adapter]) -> Registry:
    """The plugins installed here, with this very class in the place of its name, whether it is installed or not."""
    check_adapter(adapter)
    registry = Registry.discover()
    entries = registry.adapters.get(adapter.name(), [])
    if not any(entry.adapter is adapter for entry in entries):
        place = getattr(sys.modules.get(adapter.__module__), "__file__", None)
        sources = source_digest(Path(place).parent)[:8] if place else "0"
        brought_by = f"{adapter.__module__}.{adapter.__name__}"
        registry.adapters[adapter.name()] = [Registered(adapter, brought_by, "0", sources)]
    return registry


class Bench:
    """One adapter under test. Not safe from several threads."""

    def __init__(self, adapter: type[Adapter], folder: Path, children: Children, quick: bool = True) -> None:
        self.adapter = adapter
        self.quick = quick
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.children = children
        self.batch: int | None = None
        """That what is compiled for one shape gets, once it is known that the adapter takes it."""
        self.sessions: WeakValueDictionary[int, Session] = WeakValueDictionary()
        """Those that may be open."""
        self._singles: dict[Path, Single] = {}
        self.enter()
        self.registry = under_test(adapter)

    def enter(self) -> None:
        """Makes this process work in the bench's folder and the run's cache: another bench may have been at work."""
        os.environ["PADDOCK_CACHE"] = str(self.folder.parent / "cache")
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.folder)
        os.chdir(self.folder)

    def leave(self) -> None:
        """Lets go of what was taken from the run's cache: each entry in use is an open file, and checks are many."""
        self.registry.store.release()

    @property
    def name(self) -> str:
        """`hardware/backend`."""
        return self.adapter.name()

    @property
    def registered(self) -> Registered:
        """The adapter with the distribution that brings it."""
        return self.registry.get(self.name)

    @cached_property
    def probe(self) -> Probe:
        """The adapter's answer, as the registry takes it."""
        return self.registry.probe(self.registered)

    @cached_property
    def devices(self) -> Devices:
        """The devices here; raises `Skipped` where there are none."""
        if not self.probe.verdict.usable:
            raise Skipped(f"its SDK is not here: {self.probe.verdict.reason}")
        found = self.registry.devices(self.registered, self.probe)
        if not found.verdict.usable or not found.devices:
            raise Skipped(f"no device is here: {found.verdict.reason}")
        return found

    @property
    def device(self) -> Device:
        """The first one."""
        return self.devices.devices[0]

    @cached_property
    def precisions(self) -> tuple[Precision, ...]:
        """What it declares and the device computes in."""
        verdicts = self.device.precisions
        declared = [p for p in Precision if p in self.adapter.precisions]
        return tuple(p for p in declared if p in verdicts and verdicts[p].usable)

    @property
    def precision(self) -> Precision:
        """The one that checks run in which are about no precision: the widest."""
        if not self.precisions:
            raise Skipped("the device computes in none of the precisions that the adapter declares")
        return self.precisions[0]

    @property
    def static(self) -> bool:
        """Whether one artifact serves one shape only."""
        return self.adapter.shapes is Shapes.STATIC

    @cached_property
    def takes_batches(self) -> bool:
        """Whether an adapter of static shapes serves more than a batch of 1; others do."""
        return bool(self.plain) and self.batch != 1

    @cached_property
    def format(self) -> str:
        """The first of the adapter's formats that there are models of; raises `Skipped` where there is none."""
        for name in self.adapter.formats:
            if name == "onnx" or (name in self.registry.formats and self.registry.formats[name].examples):
                return name
        raise Skipped(f"there are no models of the formats that it takes: {', '.join(self.adapter.formats)}")

    def model(self, name: str) -> Path:
        """A whole model of the kit's or of the format's, written at the first call."""
        place = self.folder / "models"
        place.mkdir(exist_ok=True)
        if self.format == "onnx":
            path = place / f"{name}.onnx"
            return path if path.exists() else ZOO[name](path)
        own = place / name
        if not own.exists():
            fresh = Path(tempfile.mkdtemp(dir=place))
            format = self.registry.formats[self.format]
            self.children.get(f"models of {self.format}").call(format.example, name, fresh)
            fresh.rename(own)
        return own

    def single(self, name: str, single: Single | None = None, kind: str = "single") -> Path:
        """The model of one operator, or of a variant of it; raises `Skipped` where the adapter takes no ONNX."""
        if self.format != "onnx":
            raise Skipped(f"it takes {self.format} models, and the operators' models are ONNX")
        path = self.folder / f"{name.replace(',', '').replace(' ', '-').lower()}.{kind}.onnx"
        self._singles[path] = single = single or SINGLES[name]
        return path if path.exists() else write_single(single, path)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The whole models there are for it, plainest first."""
        return tuple(ZOO) if self.format == "onnx" else tuple(self.registry.formats[self.format].examples)

    @cached_property
    def plain(self) -> Path:
        """The plainest model that it serves; raises `Skipped` where it serves none."""
        reasons = []
        for name in self.names:
            try:
                with self.serving(self.model(name)):
                    return self.model(name)
            except Refused as error:
                reasons.append(f"{name}: {error.problem}")
        raise Skipped(f"it serves no model of the kit: {'; '.join(reasons)[:600]}")

    @cached_property
    def moving(self) -> Path:
        """A model of seven columns whose answer tells each element of its input; the plainest one where none is served.

        Seven, so that no size is a multiple of a vector's.
        """
        for name in ("Relu", "Identity", "Abs", "Add", "Mul"):
            single = replace(SINGLES[name], shapes=[("batch", 7)] * len(SINGLES[name].shapes))
            with suppress(Skipped):
                path = self.single(name, single, "seven")
                with self.serving(path):
                    return path
        return self.plain

    @contextmanager
    def serving(
        self, path: Path, extents: Mapping[str, Any] | None = None, precision: Precision | None = None, **keys: Any
    ) -> Iterator[Serving]:
        """The model compiled for the adapter alone, and nothing loaded yet.

        Args:
            path: The model's file or folder.
            extents: By the kind of a dimension ("batch" or any other) the extent or profile that it gets; by default
                1 to 5 and 2 to 7, and for adapters of static shapes 3 and 5, or 1 and 5 where they take no batch.
            precision: What to compute in; the widest by default.
            keys: Further keys of the config.

        Raises `Refused` where the adapter or the core says no with a reason, `Broken` where a promise is not kept.
        """
        prepared, segment = self._built(path, extents or {}, precision or self.precision, keys)
        try:
            with Serving(self, path, prepared, segment) as serving:
                yield serving
        finally:
            prepared.discard()

    def _built(
        self, path: Path, extents: Mapping[str, Any], precision: Precision, keys: Mapping[str, Any]
    ) -> tuple[Prepared, BuiltSegment]:
        if not self.static or "batch" in extents:
            return self._compiled(path, extents, precision, keys)
        for batch in (USUAL_BATCH, 1) if self.batch is None else (self.batch,):
            try:
                made = self._compiled(path, {**extents, "batch": batch}, precision, keys)
            except Refused as error:
                last = error
                continue
            self.batch = batch
            return made
        raise last

    def _compiled(
        self, path: Path, extents: Mapping[str, Any], precision: Precision, keys: Mapping[str, Any]
    ) -> tuple[Prepared, BuiltSegment]:
        prepared = self._prepared(path, extents, precision, keys)
        try:
            artifacts = build(prepared.plan, prepared.parts)
        except RefusedNodes as error:
            prepared.discard()
            claimed = [prepared.parts[0].verdicts[n] for n in error.nodes if n < len(prepared.parts[0].verdicts)]
            if claimed and all(verdict.answer is Answer.YES for verdict in claimed):
                raise Broken(f"select_operators() said yes, and then {_told(error)}") from error
            raise Refused(_told(error)) from error
        except BaseException:
            prepared.discard()
            raise
        return prepared, built_of(prepared, artifacts).segments[0]

    def _prepared(
        self, path: Path, extents: Mapping[str, Any], precision: Precision, keys: Mapping[str, Any]
    ) -> Prepared:
        hardware, _, backend = self.name.partition("/")
        config: dict[str, Any] = {"hardware": hardware, "backend": backend, "precision": precision.value}
        graph = self.read(path).graph
        config["shapes"] = shapes = admitted(graph, extents, self.static)
        refusals: tuple[type[PaddockError], ...] = (NotAvailable,)
        if precision is Precision.INT8:
            format = self.registry.formats[self.format]
            samples = calibration(self.folder, path, graph, shapes, format, self._singles.get(path))
            config["calibration"] = {"samples": str(samples)}
            refusals = (NotAvailable, BuildFailed)  # its quantiser says so before the adapter is asked
        # fp16 may need all of it narrow, or float32 at the border.
        for way in [{"io_dtype": "fp16"}, {}] if precision is Precision.FP16 else [{}]:
            try:
                return prepare(path, {**config, **way, **keys}, children=self.children, registry=self.registry)
            except refusals as error:
                last = Refused(_told(error))
        raise last

    def read(self, path: Path) -> Model:
        """The model as its format reads it, with open dimensions named."""
        model = open_model(path, self.registry, self.children)
        hardware, _, backend = self.name.partition("/")
        config = HardwareConfig.load({"hardware": hardware, "backend": backend})
        return model.with_graph(apply_shapes(model.graph, config))


class Serving:
    """One model compiled: sessions of it, samples for it, and what their answers should be."""

    def __init__(self, bench: Bench, path: Path, prepared: Prepared, segment: BuiltSegment) -> None:
        self.bench = bench
        self.path = path
        self.prepared = prepared
        self.segment = segment
        self._open: list[Session] = []

    @property
    def precision(self) -> Precision:
        """What it computes in."""
        return self.prepared.config.precision

    @property
    def inputs(self) -> tuple[str, ...]:
        """The session's names for its inputs, in order."""
        return tuple(there for _, there in self.prepared.translation.inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The session's names for its outputs, in order."""
        return tuple(there for _, there in self.prepared.translation.outputs)

    def load(self) -> Session:
        """A new session; closed with this, if not before."""
        session = self.fresh()
        self._open.append(session)
        return session

    def fresh(self) -> Session:
        """A new session that is the caller's to close; raises `Refused` where there is no room beside those open."""
        beside = len(self.bench.sessions)
        try:
            session: object = self.segment.load(lambda message: None)
        except NotAvailable as error:
            if not beside:
                raise
            raise Refused(f"with {beside} sessions open it refuses one more: {_told(error)}") from error
        if not isinstance(session, Session):
            raise Broken(f"load() returned a {type(session).__name__}, not a Session")
        self.bench.sessions[id(session)] = session
        return session

    def close(self, session: Session) -> None:
        """Closes a session before the others, and keeps it no longer alive."""
        session.close()
        self.bench.sessions.pop(id(session), None)
        self._open.remove(session)

    def extents(self) -> list[Extents]:
        """Extents of the open dimensions that are admitted: the least, odd ones between, the largest."""
        graph = self.prepared.origin.graph
        symbols = graph.symbols()
        if not symbols:
            return [{}]
        steps = max(graph.bounds[s].max - graph.bounds[s].min for s in symbols) + 1
        return [{s: min(graph.bounds[s].min + n, graph.bounds[s].max) for s in symbols} for n in range(steps)]

    def sample(self, seed: int = 0, extents: Extents | None = None) -> Sample:
        """Seeded inputs under the model's own names, in its own dtypes, of numbers that the border's dtype holds."""
        graph = self.prepared.origin.graph
        bounds = {s: Range(e, e, e) for s, e in (extents or self.extents()[-1]).items()}
        format = self.bench.registry.formats[self.prepared.origin.format]
        drawn = typical(graph.with_bounds(bounds), format.gathers, format.transparent, seed)
        return {name: self.rounded(array) for name, array in drawn.items()}

    def rounded(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Floats as the precision holds them, so that the border rounds nothing."""
        if array.dtype != np.float32 or self.precision in (Precision.FP32, Precision.INT8):
            return array
        if self.precision is Precision.FP16:
            return array.astype(np.float16).astype(np.float32)
        return np.asarray(array.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)

    def feeds(self, sample: Sample) -> dict[str, np.ndarray[Any, Any]]:
        """A sample as the session takes it: its own arrays, dense."""
        return {name: np.array(array, order="C") for name, array in self.prepared.translation.feeds(sample).items()}

    def answer(self, session: Session, sample: Sample) -> Outputs:
        """One run under the model's own names and dtypes; raises `Broken` for an answer that is none."""
        try:
            return dict(self.prepared.translation.answer(session.run, {n: np.array(a) for n, a in sample.items()}))
        except BuildFailed as error:
            raise Broken(error.problem) from error

    def expected(self, *samples: Sample) -> list[Outputs]:
        """What the model answers, by a reference that is not the adapter itself where there is another."""
        registry, model, children = self.bench.registry, self.prepared.origin, self.bench.children
        others = {name: entries for name, entries in registry.adapters.items() if name != self.bench.name}
        for judges in (replace(registry, adapters=others), registry):
            with suppress(NotAvailable):
                return [dict(found) for found in reference_outputs(judges, model, samples, children).outputs]
        raise Skipped(f"no reference for {model.format} models could answer")

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        while self._open:
            if kind is None:
                self._open.pop().close()
            else:
                with suppress(Exception):  # what went wrong before is what matters
                    self._open.pop().close()


def _told(error: PaddockError) -> str:
    first = " ".join(error.problem.split())
    more = " ".join(error.candidates[0].split()) if error.candidates else ""
    return f"{first} ({more})" if more else first
