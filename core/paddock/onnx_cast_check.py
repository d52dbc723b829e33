"""What was cast, checked against what was decided, by code that did neither."""

from __future__ import annotations

from paddock.errors import ModelError
from paddock.formats import CastModel
from paddock.model import Model
from paddock.onnx_dtypes import check_casts
from paddock.planning.casts import CastRequest

_OTHER = frozenset({"float64", "float16", "bfloat16"})


def check_cast(model: Model, request: CastRequest, written: CastModel) -> None:
    """Raises `ModelError` where the file does not compute in what was decided, by code that did not write it."""
    wanted, own = {}, []
    for index, came in enumerate(written.provenance):
        for node in came:
            found = model.graph.nodes[node]
            first = next((value for value in found.outputs if value is not None), None)
            other = first is not None and model.graph.values[first].dtype in _OTHER  # a cast of the model's own
            if written.nodes[node].dtype and not other:
                wanted[index] = written.nodes[node].dtype
            if found.op == "Cast" or found.subgraphs:
                own.append(index)
    border = {v.name: v.dtype for v in (*model.graph.input_values, *model.graph.output_values) if v.kind == "tensor"}
    io = {
        name: request.narrow if request.narrow_border and dtype == "float32" else dtype
        for name, dtype in border.items()
        if dtype is not None
    }
    findings, _ = check_casts(written.files["model"], wanted, request.narrow, io, own)
    if findings:
        raise ModelError(
            f"was cast wrongly to {request.narrow}: {findings[0].problem}", where=str(model.files["model"]),
            candidates=[finding.problem for finding in findings[1:5]], remedy="report this to Paddock's authors",
        )  # fmt: skip
