"""The adapter cpu/reference: onnx.reference.ReferenceEvaluator, which computes every operator in NumPy.

It optimises nothing, so it is what other adapters are checked against. It computes and accumulates in the tensors'
own dtype: float32 models in float32 (NumPy's pairwise sums, BLAS products), never in float64. Elements that NumPy
has no dtype for are fed and returned as their bits: bfloat16 as uint16, float8 as uint8, int4 as int8, uint4 as uint8.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from paddock.errors import BuildFailed, ConfigError, RunFailed
from paddock.graph import Value
from paddock.model import Files, Model
from paddock.plan import Precision, PrecisionPlan, Remedy, Verdict
from paddock.spi import (
    Adapter,
    Arrays,
    Artifact,
    Concurrency,
    Context,
    Device,
    Devices,
    Footprint,
    Observed,
    Probe,
    ReferenceRole,
    ResolvedConfig,
    SegmentPlan,
    Selection,
    Session,
    Shapes,
    Threading,
)

from paddock_reference import footprint
from paddock_reference.narrow import rounding, widen_bfloat16, widened
from paddock_reference.operators import Operators, every_node

_BITS: Mapping[str, str] = {
    "bfloat16": "uint16",
    "float8e4m3fn": "uint8",
    "float8e4m3fnuz": "uint8",
    "float8e5m2": "uint8",
    "float8e5m2fnuz": "uint8",
    "int4": "int8",
    "uint4": "uint8",
}
"""The NumPy dtype that carries an element's bits, where NumPy has no such dtype."""


class ReferenceAdapter(Adapter):
    """ONNX on the reference evaluator: any shapes, fp32, one run at a time."""

    hardware: ClassVar[str] = "cpu"
    backend: ClassVar[str] = "reference"
    spi_version: ClassVar[int] = 1
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    precisions: ClassVar[frozenset[Precision]] = frozenset({Precision.FP32, Precision.FP16, Precision.BF16})
    shapes: ClassVar[Shapes] = Shapes.DYNAMIC
    # RNN, TreeEnsemble and SVM nodes of onnx 1.17 write to themselves while they run: not reentrant.
    concurrency: ClassVar[Concurrency] = Concurrency(Threading.SERIAL)
    plans_memory: ClassVar[bool] = False
    contends: ClassVar[bool] = False
    references: ClassVar[Mapping[str, ReferenceRole]] = {"onnx": ReferenceRole(rank=0, seconds=10.0)}

    def __init__(self, config: ResolvedConfig, device: Device | None) -> None:
        super().__init__(config, device)
        if config.config.threads is not None:
            raise ConfigError(
                "has no effect on cpu/reference, whose threads are NumPy's own",
                where="$.threads",
                remedy="leave it out",
            )

    @classmethod
    def probe(cls) -> Probe:
        """Always there where the core is: onnx is one of its dependencies."""
        try:
            version = importlib.metadata.version("onnx")
        except importlib.metadata.PackageNotFoundError:
            return Probe(Verdict.no("onnx is not installed", "importlib.metadata"), remedy="pip install paddock")
        if importlib.util.find_spec("onnx") is None:
            return Probe(Verdict.no("onnx is installed but not importable", "importlib"), remedy="pip install onnx")
        versions = {"onnx": version, "numpy": np.__version__}
        return Probe(Verdict.yes("onnx is installed", "importlib.metadata"), versions)

    @classmethod
    def probe_device(cls) -> Devices:
        """The host's processor under NumPy; the narrow types are computed in software."""
        precisions = {
            Precision.FP32: Verdict.yes("NumPy's float32", "NumPy"),
            Precision.FP16: Verdict.yes("in software: NumPy's float16, every result rounded to it", "NumPy"),
            Precision.BF16: Verdict.yes("in software: float32, every result rounded to bfloat16", "NumPy"),
        }
        return Devices(Verdict.yes(), (Device(0, cls.hardware, precisions),))

    def select_operators(self, model: Model, context: Context) -> Selection:
        """For each node, what the evaluator's own tables say, less what `known_defects` cannot say of it."""
        import onnx

        standard = {"", *onnx.defs.C.schema_version_map()}
        functions: Any = ()
        if any(node.domain not in standard for node in model.graph.walk()):
            functions = onnx.load(model.files["model"], load_external_data=False).functions
        # What is stated as bfloat16 inside is computed in float32 and rounded (paddock_reference.narrow).
        operators = Operators(widened(model.graph), functions)
        return Selection(tuple(operators.verdict(node) for node in model.graph.nodes))

    def known_defects(self, model: Model) -> Sequence[Remedy]:
        """The forms of operators that the evaluator computes wrongly, from defects.json."""
        from paddock.defects import load, remedies  # not needed to serve what is kept

        return remedies(load("paddock_reference"), model.graph, self.probe().versions, self.config.precision)

    def footprint(self, model: Model, precision: PrecisionPlan) -> Footprint:
        """What was measured of the evaluator, as a bound."""
        return footprint.footprint(model.graph, precision.precision)

    def compile(self, model: Model, plan: SegmentPlan, context: Context) -> Artifact:
        """Refers to the model's own files: the evaluator builds nothing that could be kept."""
        graph = model.graph
        known = (*graph.input_values, *graph.output_values)
        return Artifact(
            adapter=self.name(),
            format="onnx",
            files=model.files,
            inputs=tuple(value.name for value in graph.input_values),
            outputs=tuple(value.name for value in graph.output_values),
            bounds=graph.bounds,
            facts={
                "dtypes": {value.name: _dtype_of(value) for value in known},
                "narrow": {value.name: value.dtype for value in graph.values if value.dtype in NARROW},
                "software": widened(graph) is not graph,
            },
        )

    def load(self, artifact: Artifact, context: Context) -> Session:
        """Reads the model with its external data, inlines its functions, and builds the evaluator."""
        from onnx.reference import ReferenceEvaluator

        proto = _load(artifact.files)
        if artifact.facts["software"]:
            widen_bfloat16(proto)
        try:
            evaluator = ReferenceEvaluator(proto)
            if artifact.facts["software"] or self.config.precision is not Precision.FP32:
                rounding(evaluator, artifact.facts["narrow"])
        except Exception as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise BuildFailed(f"onnx.reference cannot take the model: {line}") from error
        return ReferenceSession(evaluator, artifact)


NARROW = frozenset({"float16", "bfloat16"})


class ReferenceSession(Session):
    """A ReferenceEvaluator with the dtypes of its inputs and outputs."""

    def __init__(self, evaluator: Any, artifact: Artifact) -> None:
        self._evaluator = evaluator
        self._outputs = artifact.outputs
        self._dtypes: Mapping[str, str | None] = artifact.facts["dtypes"]

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Every node runs whatever the `outputs`. Strings come back as object arrays, sequences as lists of arrays."""
        if self._evaluator is None:
            raise RunFailed("the session is closed")
        names = list(self._outputs if outputs is None else outputs)
        fed = {name: _inward(value, self._dtypes.get(name)) for name, value in feeds.items()}
        with np.errstate(all="ignore"):  # inf and nan are results like any other
            results = self._evaluator.run(names, fed)
        return {
            name: _outward(result, self._dtypes.get(name), name) for name, result in zip(names, results, strict=True)
        }

    def close(self) -> None:
        """Drops the evaluator and its weights."""
        self._evaluator = None

    def observed(self) -> Observed:
        """How many nodes the evaluator holds; it has no settings to read back."""
        return Observed(nodes=len(self._evaluator.rt_nodes_) if self._evaluator is not None else None)


def _dtype_of(value: Value) -> str | None:
    return value.dtype if value.kind != "map" else None


def _load(files: Files) -> Any:
    """The model with everything in it: external data read in, functions inlined, one spelling of "ai.onnx".

    onnx's own loader refuses data behind a link, which is how caches keep it; the format has checked where it lies.
    """
    import onnx
    from onnx import external_data_helper, inliner

    path = files["model"]
    proto = onnx.load(path, load_external_data=False)
    for owner in (proto, *proto.functions):
        for opset in owner.opset_import:
            opset.domain = "" if opset.domain == "ai.onnx" else opset.domain
        for node in every_node((owner.graph if owner is proto else owner).node):
            node.domain = "" if node.domain == "ai.onnx" else node.domain
    if proto.functions:
        # Neither the evaluator nor onnx's inliner (1.17) fills in a function's default attributes: both silently take
        # the inner operator's own default instead. The evaluator also wants functions in order of use.
        _fill_in_defaults(proto)
        proto = inliner.inline_local_functions(proto)
    for tensor in external_data_helper._get_all_tensors(proto):
        if external_data_helper.uses_external_data(tensor):
            info = external_data_helper.ExternalDataInfo(tensor)
            tensor.raw_data = _slice(path.parent / info.location, int(info.offset or 0), int(info.length or -1))
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
    return proto


def _fill_in_defaults(proto: Any) -> None:
    """Writes the default attributes of the model's functions into the nodes that call them without."""
    functions = {(f.domain, f.name, f.overload): f for f in proto.functions}
    for graph in (proto.graph, *proto.functions):
        for node in every_node(graph.node):
            called = functions.get((node.domain, node.op_type, node.overload))
            given = {attribute.name for attribute in node.attribute}
            for default in called.attribute_proto if called is not None else ():
                if default.name not in given:
                    node.attribute.add().CopyFrom(default)


def _slice(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def _inward(value: Any, dtype: str | None) -> Any:
    """A feed as the evaluator wants it: bits of exotic elements under its own dtype for them."""
    if isinstance(value, list):
        return [_inward(item, dtype) for item in value]
    if value is None or dtype is None or dtype not in _BITS:
        return value
    from onnx.reference import custom_element_types

    return value.view(_BITS[dtype]).view(getattr(custom_element_types, dtype))


def _outward(value: Any, dtype: str | None, name: str) -> Any:
    """A result as the caller gets it: its own copy, dense, in the dtype that the graph states."""
    if isinstance(value, list):
        return [_outward(item, dtype, name) for item in value]
    if value is None or isinstance(value, dict):
        return value
    array = np.asarray(value)
    if dtype is None:
        return np.array(array, order="C")
    wanted = np.dtype(object if dtype == "string" else _BITS.get(dtype, dtype))
    if dtype in _BITS and array.dtype.itemsize == wanted.itemsize:
        return np.array(array.view(wanted), order="C")
    strings = dtype == "string" and array.dtype.kind in "OSU"
    # Some operators compute float32 in Python's floats; the graph's dtype is the contract.
    floats = array.dtype.kind == "f" and wanted.kind == "f" and array.dtype.itemsize >= wanted.itemsize
    if array.dtype != wanted and not strings and not floats:
        raise RunFailed(f"onnx.reference gave {array.dtype} for the output {name!r}, which the graph states as {dtype}")
    return np.array(array, dtype=wanted, order="C")
