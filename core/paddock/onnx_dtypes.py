"""Checks the casts of an ONNX model: every dtype derived anew, and each place named where it is not as planned.

Plans are checked by code that did not make them, so this shares nothing with what puts casts in. It trusts the graph's
inputs, its constants and the operators' schemas (onnx.defs), and `value_info` only behind operators that have none.
No weight is read.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import Any

from paddock.errors import ModelError, UsageError
from paddock.onnx_tensors import dtype_name, dtype_number, parse

NARROW = ("float16", "bfloat16")
"""The dtypes that a model may be cast to."""

_FLOATS = (*NARROW, "float32", "float64")  # what is computed in; eight bits and fewer are stored and converted only
_LOSSLESS = frozenset((small, large) for small in NARROW for large in ("float32", "float64")) | {("float32", "float64")}

# What tells the dtype of an output whose type variable no input shares: an attribute, and what holds without it (a
# dtype, or that of an input).
_CHOSEN: Mapping[str, tuple[str, str | int | None]] = MappingProxyType(
    {
        "Cast": ("to", None), "Constant": ("value", None), "EyeLike": ("dtype", 0), "Bernoulli": ("dtype", 0),
        "Multinomial": ("dtype", "int32"), "RandomNormal": ("dtype", "float32"), "RandomUniform": ("dtype", "float32"),
        "RandomNormalLike": ("dtype", 0), "RandomUniformLike": ("dtype", 0),
        "QuantizeLinear": ("output_dtype", "uint8"), "DequantizeLinear": ("output_dtype", 1),
        "LayerNormalization": ("stash_type", "float32"), "MelWeightMatrix": ("output_datatype", "float32"),
        "BlackmanWindow": ("output_datatype", "float32"), "HammingWindow": ("output_datatype", "float32"),
        "HannWindow": ("output_datatype", "float32"), "ConstantOfShape": ("value", "float32"),
        "SequenceEmpty": ("dtype", "float32"), "SequenceConstruct": ("", 0), "SplitToSequence": ("", 0),
        "SequenceAt": ("", 0), "ConcatFromSequence": ("", 0), "Optional": ("type", 0), "OptionalGetElement": ("", 0),
    }
)  # fmt: skip
_CONSTANT = MappingProxyType({"value_float": "float32", "value_int": "int64", "value_string": "string"})
_CONTROL = ("If", "Loop", "Scan", "SequenceMap")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with the dtypes of a model.

    `node` is an index in the main graph (for what lies in a body: the node that owns the body), None where it is
    about a value that the graph states or about the whole; `problem` is one sentence that names node and value.
    """

    node: int | None
    value: str
    problem: str


def check_casts(
    path: Path, wanted: Mapping[int, str], narrow: str, io: Mapping[str, str], own: Collection[int] = ()
) -> tuple[list[Finding], dict[str, str]]:
    """What is wrong with the dtypes and casts of an ONNX file, and the dtype of each value of its main graph by name.

    Args:
        path: The file; its external data is not read.
        wanted: By index in `graph.node`, the float dtype that the node is to compute in; other nodes are free. Judged
            by the values that share the type variable of output 0, or of input 0 where output 0 is no float; for a
            control-flow node by its first float output.
        narrow: "float16" or "bfloat16", what the model was cast to.
        io: By name, the dtype that each input and output of the graph is to have; of the elements, for a sequence.
        own: Indices of Cast nodes that the model had before, which may be redundant; and of control-flow nodes whose
            bodies hold such casts.

    The dtypes are keys of `paddock.graph.BITS` or "string", those of the elements for sequences and optionals; a value
    whose dtype is unknown is left out. Raises `ModelError` for what is no ONNX model and `UsageError` for `narrow`.
    """
    if narrow not in NARROW:
        raise UsageError(f"{narrow!r} is no dtype that models are cast to", candidates=NARROW)
    try:
        check = _Check(parse(path), wanted, narrow, own)
    except ModelError as error:
        error.where = error.where or str(path)
        raise
    except Exception as error:  # protobuf raises classes of its own, by its version and build
        raise ModelError(f"is not an ONNX model: {error}", where=str(path)) from error
    return check.findings(io), check.dtypes()


@dataclass(frozen=True, slots=True)
class _Formal:
    """A formal input or output: its type variable, what that may be, and whether all it stands for share one type."""

    variable: str
    allowed: frozenset[str]
    shared: bool


_Formals = Sequence[_Formal]
_Types = list[str | None]  # dtypes of the elements; None where unknown


@dataclass(eq=False, slots=True)
class _Value:
    """A value where it is defined, and the casts that read it."""

    name: str
    type: str | None
    maker: str
    main: int | None
    scope: _Scope
    constant: bool = False
    readers: int = 0
    casts: list[_Value] = field(default_factory=list)


_Scope = ChainMap[str, _Value]  # the values of a graph, over those of the graphs that it lies in


@dataclass(eq=False, slots=True)
class _Site:
    """A node where it stands, and what is known of it so far; `main` is its index, or that of the node around it."""

    node: Any
    scope: _Scope
    stated: Mapping[str, str | None]
    label: str
    main: int
    types: _Types = field(default_factory=list)
    results: _Types = field(default_factory=list)
    bound: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def op(self) -> str:
        """The operator, "" outside the default domain."""
        return "" if self.node.domain else str(self.node.op_type)


class _Check:
    """One walk over the model that derives types and collects findings; `findings` then judges casts and borders."""

    def __init__(self, proto: Any, wanted: Mapping[int, str], narrow: str, own: Collection[int]) -> None:
        self._proto, self._wanted, self._narrow, self._own = proto, wanted, narrow, frozenset(own)
        self._opsets = {"": 1} | {opset.domain: opset.version for opset in proto.opset_import}
        self._functions = {(function.domain, function.name) for function in proto.functions}
        self._found: list[Finding] = []
        self._casts: list[tuple[_Value, _Value]] = []  # what is cast, and to what
        self._scope, _ = self._graph(proto.graph, None, [], "")

    def dtypes(self) -> dict[str, str]:
        return {name: value.type for name, value in self._scope.items() if value.type}

    def findings(self, io: Mapping[str, str]) -> list[Finding]:
        for source, cast in self._casts:
            self._redundant(source, cast)
            self._doubled(source, cast)
        border = {info.name: _type(info.type) for info in (*self._proto.graph.input, *self._proto.graph.output)}
        dtypes = border | self.dtypes()
        for name, dtype in io.items():
            if name not in border:
                self._add(None, name, f"the model has no input or output {name}, which is to be {dtype}")
            elif dtypes[name] not in (None, dtype):
                self._add(None, name, f"the model's input or output {name} is {dtypes[name]} and is to be {dtype}")
        count = len(self._proto.graph.node)
        for index in sorted(self._wanted.keys() - range(count)):
            self._add(index, "", f"node #{index} is to compute in {self._wanted[index]}, and there are {count} nodes")
        return sorted(self._found, key=lambda finding: -1 if finding.node is None else finding.node)

    def _add(self, node: int | None, value: str, problem: str) -> None:
        self._found.append(Finding(node, value, problem))

    # The walk

    def _graph(self, graph: Any, around: _Site | None, fed: _Types, inside: str) -> tuple[_Scope, _Types]:
        """Derives all values of a graph; returns them, and the types of its outputs. `fed` types a body's inputs."""
        main = around.main if around else None
        statements = [(info.name, _type(info.type)) for info in (*graph.value_info, *graph.output)]
        scope: _Scope = around.scope.new_child() if around else ChainMap()
        inputs = {info.name: _type(info.type) for info in graph.input}
        for (name, stated), known in zip_longest(inputs.items(), fed[: len(inputs)]):
            self._define(_Value(name, known or stated, "an input", main, scope))
        sparse = [(entry.values, False) for entry in graph.sparse_initializer]  # cast, not stored anew
        for tensor, dense in (*((tensor, True) for tensor in graph.initializer), *sparse):
            name, kind = tensor.name, dtype_name(tensor.data_type)
            if name not in inputs:
                self._define(_Value(name, kind, "an initializer", main, scope, constant=dense))
                continue
            statements.append((name, kind))
            scope[name].constant = self._proto.ir_version < 4  # later, it is a default that a run may replace
        states = dict(statements)
        for index, node in enumerate(graph.node):
            label = f"{inside}#{index} {node.op_type}" + (f" ({node.name})" if node.name else "")
            self._node(_Site(node, scope, states, label, index if main is None else main))
        for name, stated in (*statements, *inputs.items()):
            value = scope.maps[0].get(name)
            if value and stated and value.type and stated != value.type:
                self._add(main, name, f"{inside}the graph states {stated} for {name}, which is {value.type}")
        given = [self._read(info.name, scope, f"{inside}the graph gives", main) for info in graph.output]
        return scope, [value.type if value else None for value in given]

    def _define(self, value: _Value) -> None:
        first = value.scope.maps[0].setdefault(value.name, value)
        if first is not value:
            self._add(value.main, value.name, f"{value.name} is made twice, by {first.maker} and by {value.maker}")
            value.scope[value.name] = value

    def _read(self, name: str, scope: _Scope, reader: str, main: int | None) -> _Value | None:
        value = scope.get(name)
        if value is not None:
            value.readers += 1
        elif name:
            self._add(main, name, f"{reader} {name}, which nothing before it makes")
        return value

    def _node(self, at: _Site) -> None:
        node, scope = at.node, at.scope
        inputs = [self._read(name, scope, f"{at.label} reads", at.main) for name in node.input]
        at.types = [value.type if value else None for value in inputs]
        given, signature = self._bodies(at), None
        if (node.domain, node.op_type) not in self._functions and (opset := self._opsets.get(node.domain)):
            signature = _signature(node.op_type, opset, node.domain, len(node.input), len(node.output))
        if signature is None:
            at.results = [at.stated.get(name) for name in node.output]
        else:
            self._bind(at, "reads", signature[0], node.input, at.types)
            at.results = _results(at, *signature, given)
            self._bind(at, "gives", signature[1], node.output, at.results)
            if len(scope.maps) == 1 and at.main in self._wanted:
                self._judge(at, *signature)
        if at.op == "SequenceInsert":
            self._same(at, f"{at.label} inserts {node.input[1]} into {node.input[0]}", *at.types[:2])
        outputs = zip(node.output, at.results, strict=True)
        made = [_Value(name, kind, at.label, at.main, scope) for name, kind in outputs]
        for value in filter(lambda value: value.name, made):
            self._define(value)
        if at.op == "Cast" and inputs[0] and made:
            inputs[0].casts.append(made[0])
            self._casts.append((inputs[0], made[0]))

    def _bind(self, at: _Site, verb: str, formals: _Formals, names: Sequence[str], types: _Types) -> None:
        """Binds type variables to (type, value); finds what the schema does not allow and what is bound twice."""
        for formal, name, kind in zip(formals, names, types, strict=False):
            if kind is None or not name:
                continue
            if kind not in formal.allowed:
                opset, may = self._opsets[at.node.domain], ", ".join(sorted(formal.allowed))
                self._add(at.main, name, f"{at.label} {verb} {name} as {kind}, and opset {opset} allows {may}")
            first, other = at.bound.setdefault(formal.variable, (kind, name)) if formal.shared else (kind, name)
            if first != kind:
                self._add(at.main, name, f"{at.label} {verb} {other} as {first} and {name} as {kind}; they must agree")

    def _same(self, at: _Site, what: str, first: str | None, second: str | None) -> None:
        if first and second and first != second:
            self._add(at.main, (*at.node.output, "")[0], f"{what}, and they are {first} and {second}")

    def _bodies(self, at: _Site) -> _Types:
        """Walks a node's bodies; returns the types of its outputs as far as bodies tell them."""
        feed: _Types = at.types if at.op == "SequenceMap" else []
        carried = start = 0  # how many states, and at which input they start
        if at.op == "Loop":
            feed, start, carried = ["int64", "bool", *at.types[2:]], 2, len(at.types) - 2
        elif at.op == "Scan":
            start = 0 if self._opsets[""] > 8 else 1  # opset 8 reads sequence_lens before all else
            feed = at.types[start:]
            carried = len(feed) - next((a.i for a in at.node.attribute if a.name == "num_scan_inputs"), 0)
        given: _Types = []
        for attribute in at.node.attribute:
            for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                inside = f"{at.label}, {attribute.name}: "
                before, (_, given) = given, self._graph(graph, at, feed, inside)
                if at.op == "If" and before:
                    for name, one, other in zip(at.node.output, before, given, strict=False):
                        self._same(at, f"{at.label} gives {name} from either branch", one, other)
                    given = [one or other for one, other in zip(before, given, strict=False)]
                given = given[1:] if at.op == "Loop" else given  # the first is the condition
                for name, kind, last in zip(at.node.input[start:], at.types[start:][:carried], given, strict=False):
                    self._same(at, f"{inside}the state that starts as {name} is given back", kind, last)
        return given

    def _judge(self, at: _Site, inputs: _Formals, outputs: _Formals) -> None:
        """Finds a node that computes in another dtype than was wanted."""
        wanted = self._wanted[at.main]
        touched = list(zip(at.results, at.node.output, strict=True))
        if at.op not in _CONTROL:
            firsts = (*outputs[:1], *inputs[:1])
            deciding = [at.bound[formal.variable] for formal in firsts if formal.variable in at.bound]
            touched = [*deciding, *touched, *zip(at.types, at.node.input, strict=True)]
        for kind, name in touched:
            if name and kind in _FLOATS:
                if kind != wanted:
                    self._add(at.main, name, f"{at.label} computes in {kind}, as {name} is, and is to in {wanted}")
                return
        if at.op not in _CONTROL and all(kind for kind, name in touched if name):
            self._add(at.main, "", f"{at.label} is to compute in {wanted} and neither reads nor gives a float")

    def _redundant(self, source: _Value, cast: _Value) -> None:
        """Finds what is wrong with one cast, and with a cast of its result."""
        own = cast.main in self._own
        what = f"{cast.maker} casts {source.name} from {source.type} to {cast.type}"
        if not own:
            if source.type and source.type == cast.type:
                self._add(cast.main, source.name, f"{what}, which it is already")
            if not cast.readers:
                self._add(cast.main, cast.name, f"{what}, and nobody reads the result {cast.name}")
            lone = source.constant and source.readers == len(source.casts)
            if lone and (source.type, cast.type) == ("float32", self._narrow):
                self._add(cast.main, source.name, f"{what}; the initializer has to be stored as {self._narrow}")
        for second in cast.casts if cast.readers == 1 else ():
            exact, back = (source.type, cast.type) in _LOSSLESS, source.type == second.type
            theirs = second.main in self._own
            # Beside a cast of the model's own, an added one counts only where leaving it out changes no number.
            if (exact and back and not theirs) if own else (exact or back or not theirs):
                place = second.main if own else cast.main
                self._add(place, cast.name, f"{what}, only for {second.maker} to cast that to {second.type}")

    def _doubled(self, source: _Value, first: _Value) -> None:
        """Finds casts after this one, of the same value to the same dtype, that could read what this one gives."""
        for second in source.casts[source.casts.index(first) + 1 :]:
            needless, other = (first, second) if second.main in self._own else (second, first)
            visible = second.scope.get(first.name) is first
            if visible and needless.main not in self._own and first.type == second.type:
                what = f"{needless.maker} casts {source.name} to {first.type}"
                self._add(needless.main, source.name, f"{what}, as {other.maker} does")


@lru_cache(maxsize=4096)
def _signature(op: str, version: int, domain: str, reads: int, gives: int) -> tuple[_Formals, _Formals] | None:
    """What the operator's schema at that opset says of each input and output; None where onnx knows no schema."""
    import onnx.defs

    try:
        schema = onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return None
    allowed = {c.type_param_str: _dtypes(*c.allowed_type_strs) for c in schema.type_constraints}

    def formals(parameters: Sequence[Any], count: int) -> _Formals:
        found, variadic = [], onnx.defs.OpSchema.FormalParameterOption.Variadic
        for parameter in parameters:
            variable, shared = parameter.type_str, parameter.is_homogeneous or parameter.option != variadic
            found.append(_Formal(variable, allowed.get(variable) or _dtypes(variable), shared))
        repeat = count - len(found) if parameters and parameters[-1].option == variadic else 0
        return (found + found[-1:] * repeat)[:count]

    return formals(schema.inputs, reads), formals(schema.outputs, gives)


def _dtypes(*spelt: str) -> frozenset[str]:
    """The dtypes of types as schemas spell them: "tensor(float)", "seq(tensor(float))"."""
    labels = re.findall(r"tensor\((\w+)\)", " ".join(spelt))
    return frozenset(name for label in labels if (name := dtype_name(dtype_number(label))))


def _type(proto: Any) -> str | None:
    kind = proto.WhichOneof("value")
    if kind in ("tensor_type", "sparse_tensor_type"):
        return dtype_name(getattr(proto, kind).elem_type)
    if kind in ("sequence_type", "optional_type"):
        return _type(getattr(proto, kind).elem_type)
    return None  # maps and opaque types hold no tensors


def _results(at: _Site, inputs: _Formals, outputs: _Formals, given: _Types) -> _Types:
    """The dtype of each output: of its variable where inputs bind it, else as bodies or attributes say, else the only
    one allowed, else (where no input could have told) as `value_info` states."""
    if at.op in _CONTROL:
        return [given[place] if place < len(given) else None for place in range(len(at.node.output))]
    readable = {formal.variable for formal in inputs}
    results: _Types = []
    for name, formal in zip_longest(at.node.output, outputs):
        if formal is None or not formal.shared:
            results.append(at.stated.get(name))
        elif formal.variable in at.bound:
            results.append(at.bound[formal.variable][0])
        elif len(formal.allowed) == 1:
            results.append(next(iter(formal.allowed)))
        else:
            told = at.op in _CHOSEN or formal.variable in readable
            results.append(_made(at) if told else at.stated.get(name))
    return results


def _made(at: _Site) -> str | None:
    """The dtype that an operator of the default domain gives, where no input shares the output's type variable."""
    attributes = {attribute.name: attribute for attribute in at.node.attribute}
    for name, attribute in attributes.items() if at.op == "Constant" else ():
        if name == "sparse_value":
            return dtype_name(attribute.sparse_tensor.values.data_type)
        if name.removesuffix("s") in _CONSTANT:
            return _CONSTANT[name.removesuffix("s")]
    name, other = _CHOSEN.get(at.op, ("", None))
    chosen = attributes.get(name)
    if chosen and chosen.HasField("t"):
        return dtype_name(chosen.t.data_type)
    if chosen and chosen.HasField("tp"):
        return _type(chosen.tp)
    if chosen and (chosen.i or chosen.s):  # before opset 6, Cast names the dtype
        return dtype_name(chosen.i or dtype_number(chosen.s.decode()))
    return (at.types[other] if other < len(at.types) else None) if isinstance(other, int) else other
