"""Which ONNX nodes an OpenVINO device takes, from OpenVINO itself.

`Core.read_model` converts the file, and raises where it has no rule for an operator; `Core.query_model` then says
which of the converted operations the device takes. An operation is traced back to the ONNX node that makes the
tensor whose name it carries: tensor names are unique in ONNX, node names are not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from paddock.graph import Graph, Node
from paddock.plan import Answer, Verdict

from paddock_openvino.integers import INTEGERS, Integers

READ, QUERY, COMPILE = "openvino.Core.read_model", "openvino.Core.query_model", "openvino.Core.compile_model"

CARRIED = frozenset(
    {
        "float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8",
        "bool",
    }
)  # fmt: skip
"""The dtypes that a NumPy array carries to and from OpenVINO. (A bfloat16 output comes back as float16 of the same
bits: wrong numbers without an error, seen on 2026.4.1.)"""


def verdicts(graph: Graph, read: Callable[[], Any], core: Any, device: str, properties: Any) -> tuple[Verdict, ...]:
    """One verdict for each node of the graph, in order.

    Args:
        graph: The whole model's graph.
        read: Gives OpenVINO's model, read and reshaped; raises what OpenVINO raises.
        core: OpenVINO's Core.
        device: OpenVINO's name of the device.
        properties: What the model would be compiled with.
    """
    constants: dict[str, int] = {}
    try:
        model = read()
    except Exception as error:  # OpenVINO raises RuntimeError, and classes of its own for some failures
        answers = _unread(graph, str(error))
    else:
        if device == "CPU":
            constants = _magnitudes(model)
        answers = _answers(graph, model, core, device, properties)
    integers = Integers(graph, constants) if device == "CPU" else None
    found = []
    for node, answer in zip(graph.nodes, answers, strict=True):
        # OpenVINO's own no says more than that the numbers would be wrong.
        wrong = integers.verdict(node) if integers is not None and answer.answer is not Answer.NO else None
        found.append(_by_dtype(node, graph) or wrong or answer)
    return tuple(found)


def readable(graph: Graph, read: Callable[[], Any], device: str) -> tuple[Verdict, ...]:
    """One verdict for each node of the graph where the device is not here: no for what OpenVINO cannot read.

    Arguments as of `verdicts`.
    """
    rest = Verdict.provisional(f"OpenVINO reads it; whether its {device} plugin takes it, only the device tells", READ)
    try:
        read()
    except Exception as error:  # OpenVINO raises RuntimeError, and classes of its own for some failures
        answers = _unread(graph, str(error))
    else:
        answers = [rest] * len(graph.nodes)
    return tuple(_by_dtype(node, graph) or answer for node, answer in zip(graph.nodes, answers, strict=True))


def keep_names(model: Any, inputs: Sequence[str], opset: Any) -> None:
    """Gives inputs that are also outputs their own names back.

    OpenVINO's frontend drops operators that do nothing, such as a Dropout or a Max of one input. Where an output then
    is an input itself, the two share one tensor, and compiling leaves it the output's name alone (2026.4.1). An
    Identity between them keeps them apart.

    Args:
        model: OpenVINO's model, as read.
        inputs: The names of the model's inputs, in order.
        opset: OpenVINO's opset16, which has Identity.
    """
    if len(inputs) != len(model.inputs):
        return
    for name, port in zip(inputs, model.inputs, strict=True):
        others = port.get_names() - {name}
        results = [target for target in port.get_target_inputs() if target.get_node().get_type_name() == "Result"]
        if others and results:
            copy = opset.identity(port.get_node()).output(0)
            copy.set_names(others)
            for result in results:
                result.replace_source_output(copy)
            port.set_names({name})


def _magnitudes(model: Any) -> dict[str, int]:
    """The largest magnitude in each integer constant, by the names of its tensor."""
    found: dict[str, int] = {}
    for operation in model.get_ops():
        if operation.get_type_name() == "Constant" and operation.get_element_type().is_integral():
            content = operation.data
            if content.dtype.name in INTEGERS and content.size:
                largest = max(abs(int(content.min())), abs(int(content.max())))
                found.update((name, largest) for name in operation.output(0).get_names())
    return found


def _by_dtype(node: Node, graph: Graph) -> Verdict | None:
    """What must not reach OpenVINO although it would take it."""
    border = {*graph.inputs, *graph.outputs}
    for index in (*node.inputs, *node.outputs, *node.captures):
        if index is None:
            continue
        value = graph.values[index]
        if value.dtype == "string":
            return Verdict.no(
                f"{value.name!r} is a string tensor: a string output ends the process with 'free(): invalid pointer'",
                "seen on OpenVINO 2026.4.1",
            )
        if index in border and value.kind != "tensor":
            reason = f"the model's {value.name!r} is a {value.kind}; Paddock feeds and returns tensors only"
            return Verdict.no(reason, "the adapter's contract")
        if index in border and value.dtype is not None and value.dtype not in CARRIED:
            reason = f"the model's {value.name!r} is {value.dtype}, which no NumPy array carries to OpenVINO"
            return Verdict.no(reason, "NumPy's dtypes")
    return None


def _answers(graph: Graph, model: Any, core: Any, device: str, properties: Any) -> Iterable[Verdict]:
    operations = model.get_ordered_ops()
    # OpenVINO lets two operations have one friendly name, and answers by that name.
    for number, operation in enumerate(operations):
        operation.set_friendly_name(f"op{number}")
    taken = core.query_model(model, device)
    owners = _owners(graph, operations)
    blamed, complaint = set[int](), ""
    if any(f"op{number}" not in taken for number in range(len(operations))):
        # Why it was not taken, only compiling tells.
        blamed, complaint = _complaint(model, core, device, properties, owners)
        if not complaint:
            return [Verdict.yes("the whole model compiles", COMPILE) for _ in graph.nodes]
    if not taken:
        reason = f"the {device} plugin cannot compile it: {complaint}"
        if not blamed:
            return [Verdict.no(f"the model as a whole: {reason}", COMPILE) for _ in graph.nodes]
        no, rest = Verdict.no(reason, COMPILE), Verdict.provisional("OpenVINO gave no answer for it", QUERY)
        return [no if node.index in blamed else rest for node in graph.nodes]
    missing: dict[int, list[str]] = {}
    made: set[int] = set()
    for number, operation in enumerate(operations):
        for node in owners[number]:
            made.add(node)
            if f"op{number}" not in taken:
                missing.setdefault(node, []).append(operation.get_type_name())
    found = []
    for each in graph.nodes:
        why = f": {complaint}" if each.index in blamed else ""
        found.append(_one(each, missing.get(each.index, []), why, each.index in made, graph, device))
    return found


def _one(node: Node, missing: list[str], why: str, made: bool, graph: Graph, device: str) -> Verdict:
    if missing:
        return Verdict.no(f"the {device} plugin does not take {', '.join(sorted(set(missing)))}{why}", QUERY)
    if not made:
        return Verdict.yes("nothing is left of it: OpenVINO's ONNX frontend folds it away", READ)
    dtypes = {graph.values[i].dtype for i in (*node.inputs, *node.outputs) if i is not None}
    if device == "CPU" and "float64" in dtypes:
        return Verdict.yes("taken; float64 is computed in float32", QUERY)
    return Verdict.yes(f"taken by the {device} plugin", QUERY)


def _complaint(
    model: Any, core: Any, device: str, properties: Any, owners: list[frozenset[int]]
) -> tuple[set[int], str]:
    """What OpenVINO says when it compiles the model, and the nodes whose operations it names."""
    try:
        core.compile_model(model, device, properties)
    except Exception as error:
        text = essence(str(error))
        numbers = {int(number) for number in re.findall(r"\bop(\d+)\b", text)}
        named = {node for number in numbers if number < len(owners) for node in owners[number]}
        return named, re.sub(r"\s*Operation name: op\d+", "", text) or type(error).__name__
    return set(), ""


def _owners(graph: Graph, operations: Any) -> list[frozenset[int]]:
    """For each operation the nodes that it was made for: by its outputs' names, else those it feeds."""
    producer = {graph.values[o].name: node.index for node in graph.nodes for o in node.outputs if o is not None}
    owners: dict[str, frozenset[int]] = {}
    found: list[frozenset[int]] = []
    for operation in reversed(operations):
        own: set[int] = set()
        if operation.get_type_name() not in ("Parameter", "Result"):
            for output in operation.outputs():
                own.update(producer[name] for name in output.get_names() if name in producer)
            if not own:
                for output in operation.outputs():
                    for target in output.get_target_inputs():
                        own |= owners.get(target.get_node().get_friendly_name(), frozenset())
            if operation.get_type_name() == "Constant":
                own = set()  # a constant is data of its readers, not work
        owners[operation.get_friendly_name()] = frozenset(own)
        found.append(frozenset(own))
    return found[::-1]


def _unread(graph: Graph, message: str) -> Iterable[Verdict]:
    """Verdicts from the message of a failed `read_model`, which lists what could not be converted."""
    reasons: dict[str, str] = {}
    narrowed: dict[str, str] = {}
    for listed in re.findall(r"No conversion rule found for operations: (.*)", message):
        for name in listed.split(","):
            reasons[_bare(name)] = "OpenVINO has no conversion rule for it"
    failed = re.compile(r"^-- (\S+) with a message:\n(.*?)(?=^-- |^Summary|\Z)", re.MULTILINE | re.DOTALL)
    for name, detail in failed.findall(message):
        reasons[_bare(name)] = f"OpenVINO cannot convert it: {essence(detail)}"
        named = re.search(r"ONNX node '<Node\([^)]*\): (.*?)>'", detail)
        if named:
            narrowed[_bare(name)] = named.group(1)
    found = [_unread_node(node, graph, reasons, narrowed) for node in graph.nodes]
    if not any(found):
        whole = Verdict.no(f"OpenVINO cannot read the model: {essence(message)}", READ)
        return [whole for _ in graph.nodes]
    rest = Verdict.provisional("OpenVINO answers for no node while the model holds one it cannot convert", READ)
    return [verdict or rest for verdict in found]


def _unread_node(node: Node, graph: Graph, reasons: dict[str, str], narrowed: dict[str, str]) -> Verdict | None:
    if node.type in reasons:
        name = narrowed.get(node.type)
        alike = [n for n in graph.nodes if n.type == node.type and name is not None and name in _names(n, graph)]
        if not alike or node in alike:
            return Verdict.no(reasons[node.type], READ)
    for body in node.subgraphs:
        for inner in body.walk():
            if inner.type in reasons:
                return Verdict.no(f"in its body, {inner.label}: {reasons[inner.type]}", READ)
    return None


def _names(node: Node, graph: Graph) -> set[str]:
    return {node.name, *(graph.values[o].name for o in node.outputs if o is not None)} - {""}


def _bare(name: str) -> str:
    """`Resize` of OpenVINO's "Resize-19"; other domains come as "my.domain.Op"."""
    return re.sub(r"-\d+$", "", name.strip())


def essence(message: str) -> str:
    """OpenVINO's message on one line, without the places in its sources."""
    text = re.sub(r"Exception from \S+:\d+:|Check '.*?' failed at \S+:\d+:|FrontEnd API failed with \w+:", " ", message)
    return " ".join(text.split())[:500]
