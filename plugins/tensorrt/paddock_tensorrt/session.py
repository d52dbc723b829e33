"""Running an engine: one context with a stream, scratch and buffers of its own; `fork` makes another on its weights.

Arrays of the host are staged in memory whose pages stay, so that copies and kernels are put into the stream one after
the other and waited for once. Where no shape is open, all of it is put into the stream as one CUDA graph.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from paddock.device_session import DeviceSession, OnDevice
from paddock.errors import BuildFailed, RunFailed, UsageError
from paddock.spi import Arrays, Observed, Session, other_shape

from paddock_tensorrt import cuda, tensors
from paddock_tensorrt.engine import Loaded, Port
from paddock_tensorrt.outputs import OpenOutput
from paddock_tensorrt.sdk import extents, made, trt

if TYPE_CHECKING:
    import numpy as np


class TensorRtSession(DeviceSession):
    """One context on an engine; one thread at a time.

    Args:
        loaded: The engine.
        outputs: The names of all outputs, in the model's order.
        settings: What took effect when it was built, in the config's terms.
        layers: How many layers the engine has.
        graphs: Whether runs are put into one CUDA graph: always, never or, by default, where that can be.

    Raises:
        BuildFailed: The engine lacks an output, or cannot be run as one graph although it is to be.
        MemoryRefused: The device has not the memory for it.
    """

    def __init__(
        self,
        loaded: Loaded,
        outputs: tuple[str, ...],
        settings: Mapping[str, Any],
        layers: int,
        graphs: bool | None = None,
    ) -> None:
        self._loaded: Loaded | None = loaded
        self._names = outputs
        self._settings = dict(settings)
        self._layers = layers
        self._graphs = graphs
        self._lock = threading.Lock()
        _check_ports(loaded, outputs)
        cuda.use(loaded.device)
        self._ports = loaded.ports
        self._profile: int | None = None
        self._buffers: dict[str, cuda.Memory] = {}
        self._staged: dict[str, cuda.Pinned] = {}
        self._scratch: cuda.Memory | None = None
        self._graph: cuda.Graph | None = None
        self._stream = cuda.Stream()
        try:
            managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
            self._context: trt.IExecutionContext | None = made(
                "execution context", lambda: loaded.engine.create_execution_context(managed), loaded.heard
            )
            self._open = {
                name: OpenOutput(name) for name, port in loaded.ports.items() if not port.is_input and not port.host
            }
            self._take_profile(0)
            self._prepare()
        except BaseException:
            self.close()
            raise

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray[Any, Any]]:
        """Computes the outputs; each is an array of its own."""
        import numpy as np

        with self._lock:
            self._infer(feeds)
            found = {}
            for name in self._names if outputs is None else outputs:
                staged = self._answer(name)
                found[name] = np.array(staged, order="C")
            return found

    def run_into(self, feeds: Arrays, into: Arrays) -> None:
        """Computes the outputs and copies them once, from where the device wrote them to, into the arrays."""
        with self._lock:
            self._infer(feeds)
            answers = {name: self._answer(name) for name in into}
            for name, array in into.items():
                if answers[name].shape != array.shape:
                    raise other_shape(name, array.shape, answers[name].shape)
                array[...] = answers[name]

    def run_on_device(self, feeds: OnDevice, outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Computes the outputs into memory of their own on the device, from tensors that lie there."""
        with self._lock:
            loaded, context = self._alive()
            cuda.use(loaded.device)
            ports = [port for port in self._ports.values() if port.is_input]
            views = {port.name: tensors.viewed(port, feeds[port.name], loaded.device, self._stream) for port in ports}
            self._take_profile(self._fitting({name: view.shape for name, view in views.items()}))
            for port in ports:
                self._shape(context, port, views[port.name].shape)
                self._address(context, port.name, views[port.name].address)
            rooms: dict[str, Any] = {}
            self._place_outputs(context, rooms)
            self._enqueue(context)
            self._stream.wait()
            found = {}
            for name in self._names if outputs is None else outputs:
                port = self._ports[name]
                shape = self._where(port, rooms)[0]
                memory = rooms[name] if name in rooms else self._open[name].taken()
                found[name] = tensors.DeviceTensor(memory, port.dtype, shape, loaded.device)
            return found

    def close(self) -> None:
        """Gives back the context, its memory and its stream; the engine's weights go with the last session on it."""
        with self._lock:
            self._context = None  # first: it uses all that follows
            for held in (self._graph, self._scratch, *self._buffers.values(), *self._staged.values()):
                if held is not None:
                    held.close()
            for output in getattr(self, "_open", {}).values():
                output.close()
            self._graph = self._scratch = None
            self._buffers, self._staged = {}, {}
            self._stream.close()
            self._loaded = None

    def fork(self) -> Session | None:
        """Another context on the same weights, to be run beside this one."""
        if self._loaded is None:
            raise RunFailed("the session is closed")
        return TensorRtSession(self._loaded, self._names, self._settings, self._layers, self._graphs)

    def observed(self) -> Observed:
        """What took effect when it was built; whether runs are one CUDA graph; the bytes that this context takes."""
        taken = sum(memory.nbytes for memory in self._buffers.values())
        taken += 0 if self._scratch is None else self._scratch.nbytes
        if self._loaded is not None:
            taken += self._loaded.weights
        settings = {**self._settings, "options.cuda_graph": self._graph is not None}
        return Observed(settings, nodes=self._layers, peak_bytes=taken)

    def _infer(self, feeds: Arrays) -> None:
        """One run: afterwards the outputs are staged in the host's memory."""
        loaded, context = self._alive()
        cuda.use(loaded.device)
        if self._graph is not None:
            for name, port in self._ports.items():
                if port.is_input:
                    self._staged[name].of(port.dtype, port.shape)[...] = feeds[name]
            self._graph.launch(self._stream)
            self._stream.wait()
            return
        self._take_profile(self._fitting({n: feeds[n].shape for n, p in self._ports.items() if p.is_input}))
        for name, port in self._ports.items():
            if port.is_input:
                self._feed(port, feeds[name])
        self._place_outputs(context, self._buffers)
        self._enqueue(context)
        self._stream.wait()  # the shapes of open outputs are known now
        for port in self._ports.values():
            if not port.is_input and not port.host:
                self._fetch(port)
        self._stream.wait()

    def _feed(self, port: Port, array: np.ndarray[Any, Any]) -> None:
        _, context = self._alive()
        staged = self._room(self._staged, port.name, array.nbytes, cuda.Pinned)
        staged.of(port.dtype, array.shape)[...] = array
        self._shape(context, port, array.shape)
        if port.host:
            address = staged.address
        else:
            buffer = self._room(self._buffers, port.name, array.nbytes, cuda.Memory)
            cuda.copy_in(buffer.address, staged.address, array.nbytes, self._stream)
            address = buffer.address
        self._address(context, port.name, address)

    def _shape(self, context: trt.IExecutionContext, port: Port, shape: tuple[int, ...]) -> None:
        if not port.fixed and not context.set_input_shape(port.name, tuple(shape)):
            raise RunFailed(f"TensorRT takes no {list(shape)} for {port.name!r}: {self._why()}")

    def _place_outputs(self, context: trt.IExecutionContext, rooms: dict[str, Any]) -> None:
        missing = context.infer_shapes()
        if missing:
            raise RunFailed(f"TensorRT has no shapes for {', '.join(missing)}: {self._why()}")
        for name, port in self._ports.items():
            if port.is_input:
                continue
            shape = extents(context.get_tensor_shape(name))
            nbytes = _nbytes(port, shape)
            if port.host:
                self._address(context, name, self._room(self._staged, name, max(nbytes, 0), cuda.Pinned).address)
            elif nbytes < 0:  # the numbers of the run decide it
                if not context.set_output_allocator(name, self._open[name].allocator):
                    raise RunFailed(f"TensorRT takes no memory for {name!r}: {self._why()}")
            else:
                self._address(context, name, self._room(rooms, name, nbytes, cuda.Memory).address)

    def _address(self, context: trt.IExecutionContext, name: str, address: int) -> None:
        if not context.set_tensor_address(name, address):
            raise RunFailed(f"TensorRT takes no memory for {name!r}: {self._why()}")

    def _enqueue(self, context: trt.IExecutionContext) -> None:
        if not context.execute_async_v3(int(self._stream)):
            raise RunFailed(f"TensorRT cannot run: {self._why()}")

    def _fetch(self, port: Port) -> None:
        shape, address = self._where(port, self._buffers)
        nbytes = _nbytes(port, shape)
        staged = self._room(self._staged, port.name, nbytes, cuda.Pinned)
        if nbytes:
            cuda.copy_out(staged.address, address, nbytes, self._stream)

    def _where(self, port: Port, rooms: Mapping[str, Any]) -> tuple[tuple[int, ...], int]:
        """The shape of an output in the last run, and where on the device it is: in these rooms, or an open one."""
        _, context = self._alive()
        shape = extents(context.get_tensor_shape(port.name))
        if port.name not in rooms or any(extent < 0 for extent in shape):
            return self._open[port.name].found()
        return shape, int(rooms[port.name].address)

    def _answer(self, name: str) -> np.ndarray[Any, Any]:
        """An output as it is staged, until the next run."""
        port = self._ports[name]
        shape = port.shape if self._graph is not None else self._shape_of(port)
        return self._staged[name].of(port.dtype, shape)

    def _shape_of(self, port: Port) -> tuple[int, ...]:
        if not port.host:
            return self._where(port, self._buffers)[0]
        _, context = self._alive()
        return extents(context.get_tensor_shape(port.name))

    def _fitting(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """The profile to run these shapes by: the one in use where it admits them, since changing costs time."""
        loaded, _ = self._alive()
        profiles = loaded.profiles
        if not profiles:
            return 0
        numbers = sorted(range(len(profiles)), key=lambda number: number != self._profile)
        found = next((number for number in numbers if profiles[number].admits(shapes)), None)
        if found is None:
            known = {name: list(shape) for name, shape in shapes.items()}
            raise UsageError(
                f"no optimisation profile of the engine admits {known}",
                where="inputs",
                candidates=[str(profile) for profile in profiles],
            )
        return found

    def _take_profile(self, number: int) -> None:
        loaded, context = self._alive()
        if number == self._profile:
            return
        if not context.set_optimization_profile_async(number, int(self._stream)):
            raise RunFailed(f"TensorRT does not take optimisation profile {number}: {self._why()}")
        self._stream.wait()
        self._profile = number
        needed = loaded.contexts[number]
        if self._scratch is None or self._scratch.nbytes < needed:
            if self._scratch is not None:
                self._scratch.close()
            self._scratch = None
            self._scratch = cuda.Memory(needed)
        context.set_device_memory(self._scratch.address, self._scratch.nbytes)

    def _prepare(self) -> None:
        """Where nothing is open, keeps a whole run as one graph, after one that does what only a first one does."""
        loaded, context = self._alive()
        static = all(port.fixed and not port.host for port in loaded.ports.values())
        if self._graphs is False or not static:
            if self._graphs:
                raise BuildFailed(
                    "a CUDA graph needs shapes that are all fixed", where="$.options.cuda_graph",
                    remedy="fix them in shapes and batch_size, or leave cuda_graph out",
                )  # fmt: skip
            return
        for name, port in loaded.ports.items():
            nbytes = _nbytes(port, port.shape)
            self._room(self._staged, name, nbytes, cuda.Pinned)
            self._address(context, name, self._room(self._buffers, name, nbytes, cuda.Memory).address)
        missing = context.infer_shapes()
        if missing:
            raise BuildFailed(f"TensorRT has no shapes for {', '.join(missing)}: {self._why()}")
        try:
            self._enqueue(context)
            self._stream.wait()
            with cuda.captured(self._stream) as found:
                self._put_whole(context)
            self._graph = found[0]
        except RunFailed as error:
            if self._graphs:
                raise BuildFailed(
                    f"a run cannot be kept as a CUDA graph: {error.problem}", where="$.options.cuda_graph",
                    remedy="leave cuda_graph out",
                ) from error  # fmt: skip

    def _put_whole(self, context: trt.IExecutionContext) -> None:
        """Copies in, the run, and copies out, between memory that stays where it is."""
        for name, port in self._ports.items():
            if port.is_input:
                nbytes = _nbytes(port, port.shape)
                if nbytes:
                    cuda.copy_in(self._buffers[name].address, self._staged[name].address, nbytes, self._stream)
        self._enqueue(context)
        for name, port in self._ports.items():
            if not port.is_input:
                nbytes = _nbytes(port, port.shape)
                if nbytes:
                    cuda.copy_out(self._staged[name].address, self._buffers[name].address, nbytes, self._stream)

    def _room(self, rooms: dict[str, Any], name: str, nbytes: int, kind: type[Any]) -> Any:
        """Memory of at least so many bytes for a tensor: what it had, or more."""
        known = rooms.get(name)
        if known is None or self._size(known) < nbytes:
            if known is not None:
                del rooms[name]
                known.close()
            rooms[name] = known = kind(nbytes)
        return known

    @staticmethod
    def _size(room: Any) -> int:
        return int(room.array.nbytes if isinstance(room, cuda.Pinned) else room.nbytes)

    def _alive(self) -> tuple[Loaded, trt.IExecutionContext]:
        if self._loaded is None or self._context is None:
            raise RunFailed("the session is closed")
        return self._loaded, self._context

    def _why(self) -> str:
        return self._loaded.heard.why() if self._loaded is not None else "the session is closed"


def _nbytes(port: Port, shape: Sequence[int]) -> int:
    """The bytes of a tensor; negative where an extent is open."""
    count = port.dtype.itemsize
    for extent in shape:
        if extent < 0:
            return -1
        count *= extent
    return int(count)


def _check_ports(loaded: Loaded, outputs: Sequence[str]) -> None:
    lost = [name for name in outputs if name not in loaded.ports or loaded.ports[name].is_input]
    if lost:
        raise BuildFailed(
            f"TensorRT's engine has no output {', '.join(lost)}",
            candidates=[name for name, port in loaded.ports.items() if not port.is_input],
        )
