"""Which kernels ONNX Runtime's providers have: asked of the library that is installed, or from a table.

Source: `onnxruntime.capi.onnxruntime_pybind11_state.get_all_opkernel_def()` and `get_all_operator_schema()`. The build
for GPUs cannot be asked: the call ends the process with SIGSEGV unless the libraries of all its providers load
(onnxruntime-gpu 1.31.1 without CUDA, or with CUDA and without TensorRT). `kernels.json` is what that build answers
where they do (`tests/fake_cuda.py` wrote it); of other versions it is what is likely.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from paddock_onnxruntime.installed import Installed, installed

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
REGISTRY = "onnxruntime's kernel registry"
TABLE = "kernels.json"
OPEN_END = 2**31 - 1
"""The end of a kernel's version range where it has none (INT_MAX)."""


@dataclass(frozen=True, slots=True)
class Schema:
    """One version of an operator: since which opset it is so, and its formal inputs and outputs."""

    since: int
    deprecated: bool
    inputs: tuple[tuple[str, str], ...]
    """Name and type parameter of each formal input; the last one repeats where it is variadic."""
    outputs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel: the versions of its operator that it serves, and the types that it takes by their parameter."""

    start: int
    end: int
    types: Mapping[str, frozenset[str]]

    def takes_version(self, since: int) -> bool:
        """Whether it serves the operator as it is since this opset."""
        # An open range promises nothing about later definitions of the operator: only its start counts.
        return self.start == since or (self.start < since <= self.end and self.end != OPEN_END)


@dataclass(frozen=True)
class Registry:
    """The operators that are known, and one provider's kernels, by (domain, operator)."""

    provider: str
    schemas: Mapping[tuple[str, str], tuple[Schema, ...]]
    kernels: Mapping[tuple[str, str], tuple[Kernel, ...]]
    opset: int
    """The newest version of the default domain of which it defines an operator."""
    source: str = REGISTRY
    doubt: str = ""
    """Why its answers are not certain; "" where they are."""


@cache
def registry(provider: str = CPU) -> Registry:
    """A provider's registry as far as it can be known here, read once in a process; imports onnxruntime or onnx."""
    here = installed()
    if here is None or not here.gpu:
        schemas = _own_schemas() if here is not None else _onnx_schemas()
        if provider == CPU:
            return _made(provider, schemas, _own_kernels(provider))
        return _from_table(provider, schemas, here)
    return _from_table(provider, _own_schemas(), here)


def _from_table(provider: str, schemas: Iterable[tuple[tuple[str, str], Schema]], here: Installed | None) -> Registry:
    data = json.loads(importlib.resources.files("paddock_onnxruntime").joinpath(TABLE).read_text(encoding="utf-8"))
    made_of = data["onnxruntime-gpu"]
    doubt = ""
    if here is None or not here.gpu:
        doubt = f"as onnxruntime-gpu {made_of} has it; it is not installed here"
    elif here.version != made_of:
        doubt = f"as onnxruntime-gpu {made_of} has it; {here.version} is here, and cannot be asked"
    sets = [frozenset(types) for types in data["types"]]
    kernels = (
        (tuple(key.split(":")), Kernel(start, end or OPEN_END, {name: sets[number] for name, number in types.items()}))
        for key, found in data["providers"][provider].items()
        for start, end, types in found
    )
    source = f"onnxruntime-gpu {made_of}'s kernel registry, as kept in {TABLE}"
    return _made(provider, schemas, kernels, source, doubt)


def _own_kernels(provider: str) -> Iterable[tuple[tuple[str, str], Kernel]]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    for kernel in state.get_all_opkernel_def():
        if kernel.provider == provider:
            types = {name: frozenset(allowed) for name, allowed in kernel.type_constraints.items()}
            start, end = kernel.version_range
            yield (kernel.domain, kernel.op_name), Kernel(start, end, types)


def _own_schemas() -> Iterable[tuple[tuple[str, str], Schema]]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return _schemas(state.get_all_operator_schema(), lambda port: port.typeStr)


def _onnx_schemas() -> Iterable[tuple[tuple[str, str], Schema]]:
    import onnx.defs

    return _schemas(onnx.defs.get_all_schemas_with_history(), lambda port: port.type_str)


def _schemas(found: Iterable[Any], kind: Any) -> Iterable[tuple[tuple[str, str], Schema]]:
    for schema in found:
        inputs = tuple((p.name, kind(p)) for p in schema.inputs)
        outputs = tuple((p.name, kind(p)) for p in schema.outputs)
        yield (schema.domain, schema.name), Schema(schema.since_version, schema.deprecated, inputs, outputs)


def _made(
    provider: str,
    schemas: Iterable[tuple[tuple[str, str], Schema]],
    kernels: Iterable[tuple[Any, Kernel]],
    source: str = REGISTRY,
    doubt: str = "",
) -> Registry:
    known: dict[tuple[str, str], list[Schema]] = {}
    for key, schema in schemas:
        known.setdefault(key, []).append(schema)
    having: dict[tuple[str, str], list[Kernel]] = {}
    for key, kernel in kernels:
        having.setdefault(key, []).append(kernel)
    newest = max(s.since for (domain, _), versions in known.items() if domain == "" for s in versions)
    return Registry(
        provider,
        {key: tuple(sorted(found, key=lambda s: -s.since)) for key, found in known.items()},
        {key: tuple(found) for key, found in having.items()},
        newest,
        source,
        doubt,
    )
