"""Running an engine: one context with a stream, scratch and buffers of its own; `fork` makes another on its weights.

Arrays of the host are staged in memory whose pages stay, so that copies and kernels are put into the stream one after
the other and waited for once. Where no shape is open, all of it is put into the stream as one CUDA graph.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from paddock.device_session import DeviceSession, OnDevice
from paddock.errors import BuildFailed, Exhausted, MemoryRefused, RunFailed, UsageError
from paddock.spi import Arrays, Observed, Session, other_shape

from paddock_tensorrt import cuda, tensors
from paddock_tensorrt.engine import Loaded, Port
from paddock_tensorrt.outputs import OpenOutput
from paddock_tensorrt.pool import Held, Pool, Rooms
from paddock_tensorrt.sdk import extents, is_no_memory, made, trt

if TYPE_CHECKING:
    import numpy as np

LESS = "smaller requests (batch_size, shapes), or fewer instances on the device"


class TensorRtSession(DeviceSession):
    """One context on an engine; one thread at a time.

    Args:
        loaded: The engine.
        outputs: The names of all outputs, in the model's order.
        settings: What took effect when it was built, in the config's terms.
        layers: How many layers the engine has.
        graphs: Whether runs are put into one CUDA graph: always, never or, by default, where that can be.

    Raises:
        BuildFailed: The engine lacks an output, its first run fails, or it cannot be run as one graph although it is
            to be.
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
        self._buffers = Rooms(cuda.Memory)
        self._staged = Rooms(cuda.Pinned)
        self._scratch: cuda.Memory | None = None
        self._graph: cuda.Graph | None = None
        self._context: trt.IExecutionContext | None = None
        self._open: dict[str, OpenOutput] = {}
        self._stream = cuda.Stream()
        self._pool = Pool(self._stream, most=2 * len(outputs))
        try:
            managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
            self._context = made(
                "execution context", lambda: loaded.engine.create_execution_context(managed), loaded.heard
            )
            self._open = {
                port.name: OpenOutput(port.name, self._pool.take)
                for port in loaded.ports.values()
                if not port.is_input and not port.host
            }
            # For the profile that takes most, so that no request can fail for another one's.
            self._scratch = cuda.Memory(max(loaded.contexts))
            self._take_profile(self._context, 0)
            self._prepare(self._context)
        except Exhausted as error:
            self.close()
            raise MemoryRefused(error.problem, remedy=error.remedy) from error
        except RunFailed as error:
            self.close()
            raise BuildFailed(f"the engine cannot be run: {error.problem}") from error
        except BaseException:
            self.close()
            raise

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray[Any, Any]]:
        """Computes the outputs; each is an array of its own. Raises `Exhausted` where memory runs out."""
        import numpy as np

        with self._serving() as (loaded, context):
            names = self._names if outputs is None else outputs
            return {name: np.array(a, order="C") for name, a in self._infer(loaded, context, feeds, names).items()}

    def run_into(self, feeds: Arrays, into: Arrays) -> None:
        """Computes the outputs and copies them once, from where the device wrote them to, into the arrays."""
        with self._serving() as (loaded, context):
            answers = self._infer(loaded, context, feeds, list(into))
            for name, array in into.items():
                if answers[name].shape != array.shape:
                    raise other_shape(name, array.shape, answers[name].shape)
                array[...] = answers[name]

    def run_on_device(self, feeds: OnDevice, outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Computes the outputs into memory of their own on the device, from tensors that lie there.

        Raises `Exhausted` where memory runs out.
        """
        with self._serving() as (loaded, context):
            ports = [port for port in self._ports.values() if port.is_input]
            views = {port.name: tensors.viewed(port, feeds[port.name], loaded.device, self._stream) for port in ports}
            self._take_profile(context, self._fitting(loaded, {name: view.shape for name, view in views.items()}))
            for port in ports:
                self._shape(context, port, views[port.name].shape)
                self._address(context, port.name, views[port.name].address)
            rooms = Rooms(self._pool.take)
            self._place_outputs(context, rooms)
            self._enqueue(context)
            found = {}
            staged = []
            for name in self._names if outputs is None else outputs:
                port = self._ports[name]
                shape, _ = self._where(context, port, rooms)
                if port.host:
                    staged.append(name)
                    rooms.room(name, _nbytes(port, shape))
                memory = rooms[name] if name in rooms else self._open[name].taken()
                found[name] = tensors.DeviceTensor(memory, port.dtype, shape, loaded.device)
            self._stream.wait()
            for name in staged:  # TensorRT wrote it on the host
                nbytes = _nbytes(self._ports[name], found[name].shape)
                cuda.copy_in(rooms[name].address, self._staged[name].address, nbytes, self._stream)
            if staged:
                self._stream.wait()
            return found

    def close(self) -> None:
        """Gives back the context, its memory and its stream; the engine's weights go with the last session on it."""
        with self._lock:
            self._context = None  # first: it uses all that follows
            for held in (self._graph, self._scratch, *self._open.values(), self._buffers, self._staged, self._pool):
                if held is not None:
                    held.close()
            self._graph = self._scratch = None
            self._stream.close()
            self._loaded = None

    def fork(self) -> Session | None:
        """Another context on the same weights, to be run beside this one."""
        if self._loaded is None:
            raise RunFailed("the session is closed")
        return TensorRtSession(self._loaded, self._names, self._settings, self._layers, self._graphs)

    def observed(self) -> Observed:
        """What took effect when it was built; whether runs are one CUDA graph; the bytes that this context takes."""
        with self._lock:
            taken = self._buffers.nbytes + self._pool.nbytes + sum(output.nbytes for output in self._open.values())
            taken += 0 if self._scratch is None else self._scratch.nbytes
            if self._loaded is not None:
                taken += self._loaded.weights
            settings = {**self._settings, "options.cuda_graph": self._graph is not None}
            return Observed(settings, nodes=self._layers, peak_bytes=taken)

    @contextmanager
    def _serving(self) -> Iterator[tuple[Loaded, trt.IExecutionContext]]:
        """One request at a time, on the session's device; what fails leaves nothing under way."""
        with self._lock:
            if self._loaded is None or self._context is None:
                raise RunFailed("the session is closed")
            cuda.use(self._loaded.device)
            try:
                yield self._loaded, self._context
            except BaseException as error:
                with suppress(RunFailed, MemoryRefused):  # the first error is the one to tell
                    self._stream.wait()  # or the next request writes over what is still being copied
                if isinstance(error, MemoryRefused):
                    raise Exhausted(error.problem, remedy=LESS) from error
                raise

    def _infer(
        self, loaded: Loaded, context: trt.IExecutionContext, feeds: Arrays, names: Sequence[str]
    ) -> dict[str, np.ndarray[Any, Any]]:
        """One run; the outputs as they are staged, until the next run."""
        inputs = [port for port in self._ports.values() if port.is_input]
        if self._graph is not None:
            for port in inputs:
                self._staged[port.name].of(port.dtype, port.shape)[...] = feeds[port.name]
            self._graph.launch(self._stream)
            shapes = {name: self._ports[name].shape for name in names}
        else:
            self._take_profile(context, self._fitting(loaded, {port.name: feeds[port.name].shape for port in inputs}))
            for port in inputs:
                self._feed(context, port, feeds[port.name])
            self._place_outputs(context, self._buffers)
            self._enqueue(context)
            shapes = {name: self._fetch(context, self._ports[name]) for name in names}
        self._stream.wait()
        return {name: self._staged[name].of(self._ports[name].dtype, shape) for name, shape in shapes.items()}

    def _feed(self, context: trt.IExecutionContext, port: Port, array: np.ndarray[Any, Any]) -> None:
        staged = self._staged.room(port.name, array.nbytes)
        staged.of(port.dtype, array.shape)[...] = array
        self._shape(context, port, array.shape)
        address = staged.address
        if not port.host:
            address = self._buffers.room(port.name, array.nbytes).address
            cuda.copy_in(address, staged.address, array.nbytes, self._stream)
        self._address(context, port.name, address)

    def _shape(self, context: trt.IExecutionContext, port: Port, shape: tuple[int, ...]) -> None:
        if not port.fixed and not context.set_input_shape(port.name, tuple(shape)):
            raise self._refused(f"TensorRT takes no {list(shape)} for {port.name!r}")

    def _infer_shapes(self, context: trt.IExecutionContext) -> None:
        """Has the outputs' shapes follow from the inputs'."""
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:
            raise self._refused(f"TensorRT cannot tell the outputs' shapes ({error})") from error
        if missing:
            raise self._refused(f"TensorRT has no shapes for {', '.join(missing)}")

    def _place_outputs(self, context: trt.IExecutionContext, rooms: Rooms[Any]) -> None:
        self._infer_shapes(context)
        for name, port in self._ports.items():
            if port.is_input:
                continue
            nbytes = _nbytes(port, extents(context.get_tensor_shape(name)))
            if nbytes >= 0:
                room: Held = (self._staged if port.host else rooms).room(name, nbytes)
                self._address(context, name, room.address)
            elif port.host or not context.set_output_allocator(name, self._open[name].allocator):
                raise self._refused(f"TensorRT takes no memory for {name!r}")

    def _address(self, context: trt.IExecutionContext, name: str, address: int) -> None:
        if not context.set_tensor_address(name, address):
            raise self._refused(f"TensorRT takes no memory for {name!r}")

    def _enqueue(self, context: trt.IExecutionContext) -> None:
        """Puts the run into the stream; the shapes of open outputs, and their memory, are known then."""
        for output in self._open.values():
            output.begin()
        enqueued = context.execute_async_v3(int(self._stream))
        for output in self._open.values():
            if output.failed is not None:
                raise output.failed
        if not enqueued:
            raise self._refused("TensorRT cannot run")

    def _fetch(self, context: trt.IExecutionContext, port: Port) -> tuple[int, ...]:
        """Puts the copy of an output to the host into the stream; its shape."""
        shape, address = self._where(context, port, self._buffers)
        nbytes = _nbytes(port, shape)
        staged = self._staged.room(port.name, nbytes)
        if nbytes and not port.host:
            cuda.copy_out(staged.address, address, nbytes, self._stream)
        return shape

    def _where(self, context: trt.IExecutionContext, port: Port, rooms: Rooms[Any]) -> tuple[tuple[int, ...], int]:
        """The shape of an output in this run, and where it is: staged, in these rooms, or an open one."""
        shape = extents(context.get_tensor_shape(port.name))
        if port.host:
            return shape, self._staged[port.name].address
        if port.name not in rooms or any(extent < 0 for extent in shape):
            return self._open[port.name].found()
        return shape, int(rooms[port.name].address)

    def _fitting(self, loaded: Loaded, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """The profile to run these shapes by: the one in use where it admits them, since changing costs time."""
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

    def _take_profile(self, context: trt.IExecutionContext, number: int) -> None:
        if number == self._profile:
            return
        self._profile = None  # until all of it is done
        if not context.set_optimization_profile_async(number, int(self._stream)):
            raise self._refused(f"TensorRT does not take optimisation profile {number}")
        self._stream.wait()
        assert self._scratch is not None
        # Whether a change of profile leaves the context its memory, nothing says.
        context.set_device_memory(self._scratch.address, self._scratch.nbytes)
        self._profile = number

    def _prepare(self, context: trt.IExecutionContext) -> None:
        """Where nothing is open, keeps a whole run as one graph, after one that does what only a first one does."""
        static = all(port.fixed and not port.host for port in self._ports.values())
        if self._graphs is False or not static:
            if self._graphs:
                raise BuildFailed(
                    "a CUDA graph needs shapes that are all fixed", where="$.options.cuda_graph",
                    remedy="fix them in shapes and batch_size, or leave cuda_graph out",
                )  # fmt: skip
            return
        for name, port in self._ports.items():
            nbytes = _nbytes(port, port.shape)
            self._staged.room(name, nbytes)
            self._address(context, name, self._buffers.room(name, nbytes).address)
        self._infer_shapes(context)
        # On zeros, copied in: what is in new memory may be an index that lies anywhere, or a count without an end.
        self._put_whole(context)
        self._stream.wait()
        try:
            with cuda.captured(self._stream) as found:
                self._put_whole(context)
            self._graph = found[0]
        except RunFailed as error:
            if self._graphs:
                raise BuildFailed(
                    f"a run cannot be kept as a CUDA graph: {error.problem}", where="$.options.cuda_graph",
                    remedy="leave cuda_graph out",
                ) from error  # fmt: skip
            self._stream.wait()  # raises where it was more than the graph that failed

    def _put_whole(self, context: trt.IExecutionContext) -> None:
        """Copies in, the run, and copies out, between memory that stays where it is."""
        sizes = {name: nbytes for name, port in self._ports.items() if (nbytes := _nbytes(port, port.shape))}
        for name, nbytes in sizes.items():
            if self._ports[name].is_input:
                cuda.copy_in(self._buffers[name].address, self._staged[name].address, nbytes, self._stream)
        self._enqueue(context)
        for name, nbytes in sizes.items():
            if not self._ports[name].is_input:
                cuda.copy_out(self._staged[name].address, self._buffers[name].address, nbytes, self._stream)

    def _refused(self, problem: str) -> RunFailed:
        """What TensorRT does not do, with why it says it does not."""
        why = "the session is closed" if self._loaded is None else self._loaded.heard.why()
        if is_no_memory(why):
            return Exhausted(f"{problem}: {why}", remedy=LESS)
        return RunFailed(f"{problem}: {why}")


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
