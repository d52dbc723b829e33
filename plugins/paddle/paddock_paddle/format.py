"""The format "paddle": a PIR inference program of Paddle 3, `NAME.json` with `NAME.pdiparams` beside it.

Reading needs no Paddle (see `pir`); only conversion to ONNX does. A plugin is imported at each start, so what reads
programs is not imported before one is read: whoever serves what is kept reads none.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from paddock.errors import ModelError, did_you_mean
from paddock.graph import Graph
from paddock.model import Files, Model
from paddock.plan import Segment
from paddock.spi import Aliasing, Format

from paddock_paddle import examples
from paddock_paddle.sdk import AGAIN

if TYPE_CHECKING:
    from paddock_paddle.pir import Program

PROGRAM, PARAMS = ".json", ".pdiparams"
_OLD = ".pdmodel"


class PaddleFormat(Format):
    """Paddle's PIR programs. Roles: "program" and, unless the program declares no parameter, "params"."""

    name: ClassVar[str] = "paddle"
    suffixes: ClassVar[tuple[str, ...]] = (PROGRAM, PARAMS)
    spi_version: ClassVar[int] = 1
    examples: ClassVar[tuple[str, ...]] = tuple(examples.EXAMPLES)
    converts_to: ClassVar[tuple[str, ...]] = ("onnx",)
    gathers: ClassVar[Mapping[str, tuple[int, int]]] = {
        "pd_op.embedding": (0, 1),
        "pd_op.gather": (1, 0),
        "pd_op.gather_nd": (1, 0),
        "pd_op.index_sample": (1, 0),
        "pd_op.index_select": (1, 0),
        "pd_op.take_along_axis": (1, 0),
    }
    transparent: ClassVar[frozenset[str]] = frozenset(
        f"pd_op.{op}"
        for op in (
            "assign", "cast", "contiguous", "expand", "expand_as", "flatten", "flip", "reshape", "roll", "slice",
            "squeeze", "strided_slice", "tile", "transpose", "unsqueeze",
        )
    )  # fmt: skip
    aliasing: ClassVar[Aliasing] = Aliasing(
        views=frozenset(f"pd_op.{op}" for op in ("assign", "flatten", "reshape", "squeeze", "unsqueeze")),
        in_place=frozenset(
            f"pd_op.{op}"
            for op in (
                "abs", "add", "batch_norm_", "bitwise_not", "ceil", "clip", "cos", "divide", "elu", "erf", "exp",
                "floor", "gelu", "hardsigmoid", "hardswish", "layer_norm", "leaky_relu", "log", "log_softmax",
                "logical_and", "logical_not", "logical_or", "maximum", "minimum", "mish", "multiply", "pow", "prelu",
                "reciprocal", "relu", "relu6", "round", "rsqrt", "scale", "sigmoid", "sign", "silu", "sin", "softmax",
                "softplus", "sqrt", "subtract", "swish", "tanh",
            )
        ),
    )  # fmt: skip
    constants: ClassVar[frozenset[str]] = frozenset(
        f"pd_op.{op}" for op in ("assign_value", "full", "full_int_array", "tril_indices", "triu_indices")
    )

    def example(self, name: str, folder: Path) -> None:
        """Written by Paddle itself, which is imported."""
        examples.write(name, folder)

    def versions(self) -> tuple[str, ...]:
        """The SDKs that convert; reading depends on neither."""
        found = []
        for name in ("paddlepaddle", "paddle2onnx"):
            try:
                found.append(f"{name}=={importlib.metadata.version(name)}")
            except importlib.metadata.PackageNotFoundError:
                continue
        return tuple(found)

    def locate(self, path: Path) -> Files | None:
        """Either file, their common stem, or a folder with exactly one such pair; else None.

        Raises `ModelError` where one file of a pair is missing, where a folder holds several, and for the programs of
        Paddle 2 (`.pdmodel`). A `.json` alone is opened, since it may be anything.
        """
        try:
            if path.is_dir():
                return _in_folder(path) or _beside(path)
            suffix = path.suffix.lower()
            if suffix == _OLD and path.is_file():
                raise _old(path)
            if suffix == PROGRAM:
                return _pair(path, path.with_suffix(PARAMS))
            if suffix == PARAMS:
                program = path.with_suffix(PROGRAM)
                if path.is_file() and not program.is_file() and path.with_suffix(_OLD).is_file():
                    raise _old(path.with_suffix(_OLD))
                return _pair(program, path)
            return None if path.is_file() else _beside(path)
        except OSError as error:
            raise ModelError(f"cannot be read: {error.strerror}", where=str(path)) from None

    def read(self, files: Files) -> Graph:
        """The graph, nodes in the program's order; raises `ModelError`, nothing else. Needs no Paddle."""
        from paddock_paddle.neutral import neutral

        path = _program_path(files)
        program = open_program(files)
        try:
            return neutral(program, path.stem).graph
        except ModelError as error:
            raise ModelError(error.problem, where=str(path), remedy=error.remedy or AGAIN) from None
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
            detail = f"{type(error).__name__}: {error}"
            raise ModelError(f"is a broken Paddle program: {detail}", where=str(path), remedy=AGAIN) from None

    def convert(self, model: Model, target: str, folder: Path) -> tuple[Files, tuple[tuple[int, ...], ...]]:
        """An ONNX file of opset 17 by paddle2onnx, feeds and fetches under their names and in their order.

        Parameters stand in it as initializers, and dynamic dimensions under the graph's own symbols. Nodes that cannot
        be traced have no source nodes. Where paddle2onnx does not convert it, raises, and says why, `Unsupported` with
        the nodes that it names, or all of the type that it names, and `NotAvailable` where it names none.
        """
        if target != "onnx":
            return super().convert(model, target, folder)
        from paddock_paddle.conversion import to_onnx

        path, provenance = to_onnx(open_program(model.files), model, folder)
        return {"model": path}, provenance

    def extract(self, model: Model, segment: Segment, folder: Path) -> Files:
        """The segment as a program with parameters of its own; needs no Paddle.

        Raises `ModelError` for broken files, and `NotAvailable` where a value at the border is no tensor.
        """
        from paddock_paddle import extraction

        return extraction.extract(open_program(model.files), model, segment, folder)

    def shapes_at(self, model: Model, inputs: Mapping[str, tuple[int, ...]]) -> Mapping[int, tuple[int, ...]]:
        """By Paddle's symbolic shape inference; without Paddle, what the program itself states."""
        from paddock_paddle import concrete

        return concrete.shapes_at(open_program(model.files), model, inputs)


def open_program(files: Files) -> Program:
    """The checked program of a model's files; raises `ModelError`."""
    from paddock_paddle.pir import read_pair

    return read_pair(_program_path(files), files.get("params"))


def _program_path(files: Files) -> Path:
    if "program" not in files:
        raise ModelError("the files have no role 'program'", candidates=sorted(files))
    return files["program"]


def _in_folder(folder: Path) -> Files | None:
    entries = [p for p in sorted(folder.iterdir()) if not p.name.startswith(".") and p.is_file()]
    stems: dict[str, set[str]] = {}
    for entry in entries:
        stems.setdefault(entry.stem, set()).add(entry.suffix.lower())
    pairs = [stem for stem, found in stems.items() if {PROGRAM, PARAMS} <= found]
    if not pairs:
        lonely = [entry for entry in entries if entry.suffix.lower() == PARAMS]
        old = [entry for entry in entries if entry.suffix.lower() == _OLD]
        if old:
            raise _old(old[0])
        from paddock_paddle.pir import looks_like_program

        programs = [entry for entry in entries if entry.suffix.lower() == PROGRAM and looks_like_program(entry)]
        if len(lonely) + len(programs) > 1:
            names = [entry.name for entry in (*lonely, *programs)]
            raise ModelError("holds no complete Paddle model", where=str(folder), candidates=names, remedy=AGAIN)
        alone = [*lonely, *programs]
        return _pair(alone[0].with_suffix(PROGRAM), alone[0].with_suffix(PARAMS)) if alone else None
    if len(pairs) > 1:
        raise ModelError(
            "holds several Paddle models",
            where=str(folder),
            candidates=[f"{stem}{PROGRAM}" for stem in pairs],
            remedy="name one of them",
        )
    return _pair(folder / f"{pairs[0]}{PROGRAM}", folder / f"{pairs[0]}{PARAMS}")


def _beside(stem: Path) -> Files | None:
    """The model of which `stem` is the path without an ending."""
    if not stem.name:
        return None
    program, params, old = (stem.parent / f"{stem.name}{ending}" for ending in (PROGRAM, PARAMS, _OLD))
    if old.is_file() and not program.is_file():
        raise _old(old)
    return _pair(program, params) if program.is_file() or params.is_file() else None


def _pair(program: Path, params: Path) -> Files | None:
    if program.is_file() and params.is_file():
        return {"program": program, "params": params}
    if program.is_file():
        from paddock_paddle.pir import declared, looks_like_program, read_block

        if not looks_like_program(program):
            return None  # some other JSON, such as a config
        if not declared(read_block(program), program):
            return {"program": program}
        raise ModelError(f"{params.name} is missing beside it", where=str(program), remedy=AGAIN)
    if params.is_file():
        raise ModelError(f"{program.name} is missing beside it", where=str(params), remedy=AGAIN)
    near = [p.name for p in program.parent.iterdir() if p.suffix == PROGRAM] if program.parent.is_dir() else []
    raise ModelError("does not exist", where=str(program), remedy=did_you_mean(program.name, near))


def _old(path: Path) -> ModelError:
    return ModelError(
        "is a program of Paddle 2's old intermediate representation, which is not taken",
        where=str(path),
        remedy="load the layer in Paddle 3 and save it with paddle.jit.save: that writes a .json and a .pdiparams",
    )
