"""What the provider takes, and what it makes of it: asked in processes of their own, by compiling for real.

The provider says in a trace why it leaves a node to others. What it takes may still fail when its graph is finalised
(a Gelu in float32 is "out of memory"), for the graph as a whole: each node is then tried alone.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paddock.child import Child
from paddock.errors import BuildFailed, ChildFailed, PaddockError
from paddock_onnxruntime.named import DATA_FOLDER, Source, index

from paddock_qualcomm import named
from paddock_qualcomm.sdk import ERROR, FATAL, listening, placed, session, short

SECONDS = 600.0
_BROKEN = "SetupBackend failed"
LEFT = "the provider leaves it to the CPU"
INLINED = "the provider leaves some of what it is written out to to the CPU"
_INSERTED = "Inserted"
"""How casts are called that onnxruntime puts around nodes of its CPU provider."""

PLAIN = {0x0216: "float16", 0x0232: "float32", 0x0240: "float64", 0x0116: "int16", 0x0132: "int32"}
"""QNN's data types by their numbers, as far as products have them (QnnTypes.h)."""
FIXED = {0x0308: "int8", 0x0316: "int16", 0x0332: "int32", 0x0408: "uint8", 0x0416: "uint16", 0x0304: "int4",
         0x0404: "uint4"}  # fmt: skip
"""The same of numbers with a scale."""
PRODUCTS = ("Conv", "DepthWiseConv", "TransposeConv", "FullyConnected", "MatMul", "Lstm", "Gru")
"""How QNN's operators that do a model's work begin."""
CONVERSIONS = ("Cast", "Convert", "Quantize")


@dataclass(frozen=True)
class Answer:
    """What came of one model.

    `refused` holds by node why the provider does not take it; `whole` why the model fails although it takes the rest,
    "" where it does not; `taken` counts the nodes that are left of the model on the provider; `untried` are those of a
    model that fails whose own part in it could not be found out.
    """

    refused: Mapping[int, str] = field(default_factory=dict)
    whole: str = ""
    taken: int = 0
    untried: frozenset[int] = frozenset()


def ask(proto: Any, path: Path, soc_model: int | None, label: str) -> Answer:
    """What the provider says of a model as `named.named` gives it, made from the file in `path`.

    A crash of the SDK is an answer as well: the nodes that it crashes on alone are refused.
    """
    with Child(label) as child:
        try:
            found = child.call(assess, named.source(proto, path), len(proto.graph.node), soc_model, seconds=SECONDS)
        except ChildFailed as error:
            found = Answer(whole=error.problem)
        if not found.whole or found.refused:
            return found
        blamed, untried = _alone(proto, path, soc_model, child)
        return Answer(blamed, "" if blamed else found.whole, untried=untried)


def assess(source: Source, count: int, soc_model: int | None) -> Answer:
    """Compiles a model of `count` nodes as far as the provider takes it; in a child.

    Raises `BuildFailed` where the backend cannot be set up for any model.
    """
    with tempfile.TemporaryDirectory(prefix="paddock-qnn-") as folder, listening() as said:
        taken, left, failure = list[str](), list[str](), ""
        try:
            taken, left = placed(session(source, soc_model, strict=False, severity=ERROR, options=_traced(folder)))
        except Exception as error:  # onnxruntime raises classes of its own that share only this base
            failure = short(error)
        reasons = _reasons(Path(folder))
    if failure:
        return Answer(whole=failure)
    if any(_BROKEN in line for line in said):
        raise BuildFailed(
            f"QNN's backend cannot be set up: {said[0]}",
            where="$.options.soc_model" if soc_model is not None else None,
        )
    known = {index(name) for name in left}
    refused = {number: reasons.get(number, LEFT) for number in known if number is not None}
    if None in {index(name) for name in left if not name.startswith(_INSERTED)}:
        # Nodes that are functions are written out, under names that do not tell of whom.
        seen = known | {index(name) for name in taken}
        refused |= {number: INLINED for number in range(count) if number not in seen}
    return Answer(refused, "", len(taken))


def _alone(proto: Any, path: Path, soc_model: int | None, child: Child) -> tuple[dict[int, str], frozenset[int]]:
    """The nodes that fail as models of their own, each with why, and those that cannot be tried.

    Alike ones are tried once.
    """
    import onnx

    given = named.source(proto, path)
    try:
        folded = onnx.load_from_string(child.call(fold, given, seconds=SECONDS))
    except PaddockError:  # onnxruntime's CPU provider cannot load it, so nothing more is known of its values
        folded = proto
    known: dict[bytes, str] = {}
    found, untried = dict[int, str](), set[int]()
    singles = named.Singles(proto, folded)
    for number, node in enumerate(proto.graph.node):
        if singles.is_folded(number):
            continue
        model = singles.of(number)
        if model is None:
            untried.add(number)
            continue
        key = _kind(model, node)
        if key not in known:
            known[key] = _try(named.source(model, path), soc_model, child)
        if known[key]:
            found[number] = known[key]
    return found, frozenset(untried)


def fold(source: Source) -> bytes:
    """The model with its constants folded by onnxruntime's CPU provider; in a child."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = FATAL
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    settings.add_session_config_entry(DATA_FOLDER, str(source.folder))
    with tempfile.TemporaryDirectory(prefix="paddock-qnn-") as folder:
        written = Path(folder) / "folded.onnx"
        settings.optimized_model_filepath = str(written)
        onnxruntime.InferenceSession(source.content, settings, providers=["CPUExecutionProvider"])
        return written.read_bytes()


def _try(source: Source, soc_model: int | None, child: Child) -> str:
    try:
        answer = child.call(assess, source, 0, soc_model, seconds=SECONDS)
    except ChildFailed as error:
        return error.problem
    return answer.whole or next(iter(answer.refused.values()), "")


def _kind(model: Any, node: Any) -> bytes:
    """What two nodes that are tried once have in common: operator, attributes, and the types of all they read."""
    types = [port.type.SerializeToString() for port in (*model.graph.input, *model.graph.output)]
    constants = [bytes(f"{tensor.data_type}{list(tensor.dims)}", "ascii") for tensor in model.graph.initializer]
    attributes = sorted(attribute.SerializeToString() for attribute in node.attribute)
    head = f"{node.domain}.{node.op_type}({len(node.input)})".encode()
    return b"\0".join([head, *attributes, *types, *constants])


def _reasons(folder: Path) -> dict[int, str]:
    """By node, what the provider's trace says; the last word where it was asked several times."""
    found = {}
    for entry in _trace(folder).get("unsupported_nodes", ()):
        number = index(entry.get("node_name", ""))
        if number is not None:
            found[number] = _plain(entry.get("reason", ""), entry.get("op_type", ""))
    return found


def _plain(reason: str, op: str) -> str:
    """The provider's reason on one line, without its sentence on the node's name."""
    text = " ".join(reason.split())
    text = text.partition(f"{op} node `")[0].strip().rstrip(".") if op else text
    return f"QNN: {text[:300]}" if text else LEFT


@dataclass(frozen=True)
class Compiled:
    """What was compiled, as the provider describes it.

    `nodes` counts QNN's operators; `products` counts those that do a model's work by the dtype that they read; `wide`
    are all that read float32 and are no conversion; `soc_model` is the chip, None for the backend's general one.
    """

    nodes: int
    products: Mapping[str, int]
    wide: int = 0
    soc_model: int | None = None


def build(source: Source, soc_model: int | None, context: Path) -> Compiled | str:
    """Compiles a model into a context model in `context`; in a child. Returns what is wrong where it cannot."""
    entries = {"ep.context_enable": "1", "ep.context_embed_mode": "1", "ep.context_file_path": str(context)}
    with tempfile.TemporaryDirectory(prefix="paddock-qnn-") as folder, listening() as said:
        told = {"dump_json_qnn_graph": "1", "json_qnn_graph_dir": folder, **_traced(folder)}
        failure = ""
        try:
            session(source, soc_model, severity=ERROR, options=told, entries=entries)
        except Exception as error:  # as above
            failure = short(error)
        described = _described(Path(folder))
    if failure:
        return failure + (f" ({said[0]})" if said and said[0] not in failure else "")
    return described if context.is_file() else "nothing is left of it for the device to run"


def _described(folder: Path) -> Compiled:
    """What the files say that the provider wrote about its graphs."""
    nodes, wide, products = 0, 0, dict[str, int]()
    for file in sorted(folder.glob("*.json")):
        graph = json.loads(file.read_text()).get("graph")
        for node in graph["nodes"].values() if isinstance(graph, dict) else ():
            nodes += 1
            first = graph["tensors"].get(node["input_names"][0], {}) if node["input_names"] else {}
            number = first.get("data_type", 0)
            dtype = f"fixed {FIXED[number]}" if number in FIXED else PLAIN.get(number, f"type {number}")
            if node["type"].startswith(PRODUCTS):
                products[dtype] = products.get(dtype, 0) + 1
            wide += dtype == "float32" and node["type"] not in CONVERSIONS
    chips = [entry["compilation_target"]["soc_model"] for entry in _trace(folder).get("soc_traces", ())]
    return Compiled(nodes, products, wide, next((chip for chip in chips if chip), None))


def _traced(folder: str) -> dict[str, str]:
    return {"enable_framework_op_trace": "1", "framework_op_trace_dir": folder}


def _trace(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "qnn_op_trace.json").read_text())
    except (OSError, ValueError):  # the provider writes none where it was not asked in the end
        return {}
    return found if isinstance(found, dict) else {}
