"""Paddle's predictor behind Paddock's session, with what it really does read back.

Paddle's configuration answers only what it was told; what was built is told by the program that it prints after its
last pass, kernel by kernel. That text is taken once, while the predictor is made.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from paddock.errors import RunFailed, UsageError
from paddock.spi import Arrays, Observed, Session

from paddock_paddle import sdk

if TYPE_CHECKING:
    import numpy as np

_LAST = "IR after lowering"
_KERNEL = re.compile(r"kernel_key:<backend:(\w+)\|layout:[^|]*\|dtype:(\w+)>")
_OPERATION = re.compile(r'kernel_key:<backend:(\w+)\|.*?\bop_name:"(?:\w+\.)?(\w+)"')
_MOVES = ("memcpy", "shadow_", "data", "fetch")
"""How operations are called that only bring values from one memory to another."""
_RESULT = re.compile(r'^\s*\(([^)]*)\) = "([^"]+)"[^(]*\(([^)]*)\) \{(.*)')
"""In that program: results, operation, operands, attributes and types."""
_VALUE = re.compile(r"%\w+")
_ON_HOST = "place:Place(cpu)"
EXTENTS = frozenset({"shape", "shape64", "full_int_array"})
"""Operations whose result is in the host's memory for every device."""
MAKERS = frozenset({"arange", "linspace", "full_with_tensor", "empty"})
"""Operations that read nothing but extents and limits: what they make belongs on the device."""
_BLOCKS = re.compile(r'= "(?!builtin\.|onednn_kernel\.)[^"(]+" \[id:')
"""In that program: an operation with blocks (an if, a while)."""
_STORED = re.compile(r'\((%\d+)\) = "builtin\.(?:parameter|constant)"')
_NORM = re.compile(r'= "batch_norm_\(phi_kernel\)" \(([^)]*)\)')
HOST = frozenset({"CPU", "ONEDNN", "Undefined"})
"""The backends of kernels that run on the CPU."""
_SHARED = frozenset({"float32", "float64", "float16", "int32", "int64", "bool"})
"""The dtypes of which Paddle takes memory that is not its own."""
_NOISE = re.compile(r"\w+CheckIfOneDNNSupport\s*")
"""Lines that Paddle's oneDNN kernels print on stdout the first time they run."""


@dataclass(frozen=True)
class Realised:
    """How many kernels of each (backend, dtype) Paddle's last pass left; empty where it could not be read."""

    kernels: Mapping[tuple[str, str], int]
    keeps_inputs: bool = False
    """Whether the program is known to leave its inputs' memory as it was."""

    operations: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """How many kernels there are of each (backend, operation), the operation without dialect and "_"."""

    begun: Mapping[str, int] = field(default_factory=dict)
    """How many of each operation on the CPU make or read nothing but what begins there: extents, scalars, constants."""

    @property
    def apart(self) -> int:
        """How many kernels run on a device of their own, moves between the memories left out."""
        return sum(
            count
            for (backend, name), count in self.operations.items()
            if backend not in HOST and not name.startswith(_MOVES)
        )

    def hosted(self, device: str) -> dict[str, int]:
        """The operations, each with its count, that Paddle left to the CPU though it was given a device of this type.

        Moves between the memories are none.
        """
        own = {device, "CUSTOM", "Undefined"}
        return {
            name: count
            for (backend, name), count in sorted(self.operations.items())
            if backend not in own and not name.startswith(_MOVES)
        }

    @property
    def count(self) -> int | None:
        """How many kernels one run calls."""
        return sum(self.kernels.values()) or None

    @property
    def precision(self) -> str | None:
        """The lowest float precision in which any kernel computes; None where none does, or nothing is known."""
        dtypes = {dtype for _, dtype in self.kernels}
        lowest = (("float16", "fp16"), ("bfloat16", "bf16"), ("float32", "fp32"))
        return next((name for dtype, name in lowest if dtype in dtypes), None)

    @property
    def on_host(self) -> bool:
        """Whether every kernel is one of the CPU's, so that all of them read the host's memory."""
        return bool(self.kernels) and {name for name, _ in self.kernels} <= HOST

    def on(self, backend: str) -> int:
        """How many kernels are of a backend ("CPU", "ONEDNN")."""
        return sum(count for (name, _), count in self.kernels.items() if name == backend)


def create(config: Any) -> tuple[Any, Realised]:
    """A predictor for a paddle.inference.Config, and the kernels that it consists of. Raises what Paddle raises."""
    paddle = sdk.import_quietly("paddle")
    inference = sdk.import_quietly("paddle.inference")
    flag = "FLAGS_print_ir"
    before = paddle.get_flags([flag])
    with sdk.captured_stdout() as printed:
        paddle.set_flags({flag: True})
        try:
            predictor = inference.create_predictor(config)
        finally:
            paddle.set_flags(before)
    text = printed()
    start = text.find("IR before lowering")
    if start < 0:
        sdk.release(text, is_noise)
        return predictor, Realised({})
    last = text[text.rfind(_LAST) :]
    kernels = Counter((backend, dtype) for backend, dtype in _KERNEL.findall(last))
    operations = Counter((backend, name.removesuffix("_")) for backend, name in _OPERATION.findall(last))
    return predictor, Realised(kernels, bool(kernels) and _keeps_inputs(last), operations, _begun(last))


def _begun(program: str) -> Counter[str]:
    """See `Realised.begun`: followed from value to value, since a name does not tell what is read."""
    values: set[str] = set()
    found: Counter[str] = Counter()
    for line in program.splitlines():
        match = _RESULT.match(line)
        if match is None:
            continue
        results, called, operands, rest = match.groups()
        kernel = _OPERATION.search(rest)
        backend, name = (kernel[1], kernel[2].removesuffix("_")) if kernel else ("", "")
        reads = _VALUE.findall(operands)
        follows = bool(reads) and values.issuperset(reads) and name not in MAKERS
        here = backend in HOST or called.startswith("builtin.")
        constant = called == "builtin.constant" and "-> cpu_tensor" in rest
        if (follows and here) or constant or name in EXTENTS or _ON_HOST in rest:
            values.update(_VALUE.findall(results))
            if backend in HOST:
                found[name] += 1
    return found


def _keeps_inputs(program: str) -> bool:
    """Whether nothing in a program can write over its inputs.

    The passes that make operations work in place leave inputs out; the program's own such operations (`set_value_`) do
    not. The result of an if or a while may be an input's memory (seen on paddlepaddle 3.3.1: where one branch gives x,
    the other writes over x).
    """
    if _BLOCKS.search(program):
        return False
    stored = set(_STORED.findall(program))
    for line in program.splitlines():
        if "is_inplace:true" in line:
            norm = _NORM.search(line)  # writes its running mean and variance, the second and third operand, only
            if norm is None or not stored.issuperset(norm[1].split(", ")[1:3]):
                return False
    return True


def is_noise(line: str) -> bool:
    """Whether a line on stdout is one of Paddle's own."""
    return _NOISE.fullmatch(line.strip()) is not None


class PaddleSession(Session):
    """A predictor; made, run and closed on one thread.

    Paddle keeps the layout of oneDNN's tensors by thread, not by predictor: what another predictor left there decides
    how this one reads its own (see `PaddleAdapter.concurrency`).

    `run_into` copies: Paddle gives outputs in arrays of its own making only (`copy_to_cpu`), and of the memory that one
    shares with it as an output (`share_external_data`) only some kernels make use.

    Args:
        predictor: paddle.inference.Predictor.
        outputs: The outputs' names in the model's order.
        settings: What was read back, in the config's terms.
        realised: The kernels of the predictor.
        noisy: Whether its first run prints on stdout; that is then held back.
    """

    def __init__(
        self,
        predictor: Any,
        outputs: Sequence[str],
        settings: Mapping[str, Any],
        realised: Realised,
        noisy: bool = False,
    ) -> None:
        self._predictor = predictor
        self._settings = dict(settings)
        self.realised = realised
        self._noisy = noisy
        self._bound: Mapping[str, Any] = {}
        self._inputs = [(name, predictor.get_input_handle(name)) for name in predictor.get_input_names()]
        self._outputs = {name: predictor.get_output_handle(name) for name in outputs}

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray[Any, Any]]:
        """Computes all outputs, and copies out those that were asked for.

        Raises `UsageError` for an empty input, which Paddle would answer with what it computed before.
        """
        if self._predictor is None:
            raise RunFailed("the session is closed")
        bound = self._bound
        for name, _ in self._inputs:
            if name not in bound and feeds[name].size == 0:
                raise _empty(name, feeds[name].shape)
        for name, handle in self._inputs:
            if name in bound:
                handle.share_external_data(bound[name])  # in each run: Paddle may have noted a layout of its own
            else:
                handle.copy_from_cpu(feeds[name])  # takes the shape along
        try:
            if self._noisy:
                self._first_run()
            else:
                self._predictor.run()
        except Exception as error:
            raise RunFailed(f"Paddle failed: {sdk.short(error)}") from error
        if outputs is None:
            return {name: handle.copy_to_cpu() for name, handle in self._outputs.items()}
        return {name: self._outputs[name].copy_to_cpu() for name in outputs}

    def close(self) -> None:
        """Drops the predictor and its tensors."""
        self._inputs = []
        self._outputs = {}
        self._bound = {}
        self._predictor = None

    def bind(self, buffers: Arrays) -> frozenset[str]:
        """Binds inputs, where the program is known not to write over them; never outputs.

        Paddle takes memory for an output as well (`share_external_data`), but only some kernels then write there, and
        it cannot be asked which did.
        """
        if self._predictor is None:
            raise RunFailed("the session is closed")
        if not self.realised.on_host or not self.realised.keeps_inputs:
            return frozenset()
        core = sdk.import_quietly("paddle").base.core
        names = [name for name, _ in self._inputs if name not in self._outputs and _shareable(buffers.get(name))]
        self._bound = {name: _shared(core, buffers[name]) for name in names}
        return frozenset(names)

    def observed(self) -> Observed:
        """What the configuration gives back, the precision of the kernels built, and how many they are."""
        settings = dict(self._settings)
        if self.realised.precision is not None:
            settings["precision"] = self.realised.precision
        return Observed(settings, nodes=self.realised.count)

    def _first_run(self) -> None:
        with sdk.captured_stdout() as printed:
            self._predictor.run()
        self._noisy = False
        sdk.release(printed(), is_noise)


def _shareable(array: np.ndarray[Any, Any] | None) -> bool:
    return array is not None and array.size > 0 and array.flags.c_contiguous and array.dtype.name in _SHARED


def _shared(core: Any, array: np.ndarray[Any, Any]) -> Any:
    """Paddle's tensor on the array's own memory."""
    tensor = core.DenseTensor()
    tensor.set(array, core.CPUPlace(), True)
    return tensor


def _empty(name: str, shape: tuple[int, ...]) -> UsageError:
    # Seen on paddlepaddle 3.3.1: operations are skipped then, and a branch gives the previous run's answer; with oneDNN
    # other models raise a bare std::exception.
    return UsageError(
        f"has the shape {list(shape)}, and Paddle gives wrong answers for inputs with an extent of 0",
        where=name,
        remedy="do not run the model where there is nothing to compute, or deploy it on another backend",
    )
