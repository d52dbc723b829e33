"""What the engine inspector tells of a built engine: its layers, and what they compute in."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from paddock.plan import Precision

from paddock_tensorrt.sdk import trt

_WORDS: Sequence[tuple[str, str]] = (
    ("int8", r"int8|i8"),
    ("bfloat16", r"bf16|bfloat16"),
    ("float16", r"half|fp16|float16"),
    ("float32", r"float|fp32|float32"),
)
"""The inspector's words for a tensor's type, the narrower first; some stand in a sentence on the layout."""
_KEYS = ("DataType", "Datatype", "Format/Datatype", "Format/DataType", "Format")
"""Where a tensor's type stands: TensorRT 11 split what was one field in 10."""
_MOVES = frozenset({"Reformat", "NoOp", "Constant", "Shuffle", "Slice", "Concatenation", "Cast", "Identity", "Signal"})
"""Kinds of layers that move or convert numbers, and tell nothing of what is computed in."""
_DTYPES: Mapping[Precision, str] = {
    Precision.INT8: "int8", Precision.BF16: "bfloat16", Precision.FP16: "float16", Precision.FP32: "float32"
}  # fmt: skip


def inspected(engine: trt.ICudaEngine) -> list[Any]:
    """The engine's layers as the inspector describes them: objects or, of an engine built without detail, names."""
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        found = json.loads(text)
    except (TypeError, ValueError):  # a build can be told to keep nothing of its layers
        return []
    layers = found.get("Layers") if isinstance(found, dict) else None
    return layers if isinstance(layers, list) else []


def counted(layers: Sequence[Any]) -> dict[str, dict[str, int]]:
    """How many layers of each kind compute in what ("?" where it is not told), by kind and dtype."""
    found: dict[str, Counter[str]] = {}
    for layer in layers:
        kind = str(layer.get("LayerType", "?")) if isinstance(layer, dict) else "?"
        found.setdefault(kind, Counter())[_computes_in(layer)] += 1
    return {kind: dict(sorted(dtypes.items())) for kind, dtypes in sorted(found.items())}


def computed(counts: Mapping[str, Mapping[str, int]], asked: Precision) -> Precision | None:
    """What the engine computes in, in the config's terms; None where the inspector does not tell.

    A network is strongly typed, so that parts of it may stay wide; it is of the precision asked for where any layer
    that computes is.
    """
    told = Counter[str]()
    for kind, dtypes in counts.items():
        if kind not in _MOVES:
            told.update(dtypes)
    del told["?"]
    if not told:
        return None
    if _DTYPES[asked] in told:
        return asked
    names = {dtype: precision for precision, dtype in _DTYPES.items()}
    return names[max(told, key=lambda dtype: told[dtype])]


def summary(counts: Mapping[str, Mapping[str, int]]) -> str:
    """`12 layers: 8 in float16, 4 in float32; most are CaskConvolution (6), Reformat (2)`."""
    kinds = {kind: sum(dtypes.values()) for kind, dtypes in counts.items()}
    total = Counter[str]()
    for dtypes in counts.values():
        total.update(dtypes)
    known = ", ".join(f"{n} in {dtype}" for dtype, n in total.most_common() if dtype != "?")
    most = ", ".join(f"{kind} ({n})" for kind, n in sorted(kinds.items(), key=lambda each: (-each[1], each[0]))[:4])
    return f"{sum(kinds.values())} layers" + (f": {known}" if known else "") + (f"; most are {most}" if most else "")


def _computes_in(layer: Any) -> str:
    """The narrowest dtype that a layer reads, else writes."""
    if not isinstance(layer, dict):
        return "?"
    for side in ("Inputs", "Outputs"):
        tensors = layer.get(side)
        dtypes = [_dtype(tensor) for tensor in tensors] if isinstance(tensors, list) else []
        for name, _ in _WORDS:
            if name in dtypes:
                return name
    return "?"


def _dtype(tensor: Any) -> str:
    if not isinstance(tensor, dict):
        return "?"
    for key in _KEYS:
        text = str(tensor.get(key, ""))
        for name, words in _WORDS:
            if re.search(rf"\b({words})\b", text, re.IGNORECASE):
                return name
    return "?"
