"""Outputs whose shape the numbers of a run decide, such as NonZero's: TensorRT asks for their memory while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from paddock.errors import RunFailed

from paddock_tensorrt.pool import Lent
from paddock_tensorrt.sdk import extents, trt


class OpenOutput:
    """The memory of one such output, which grows; and its shape in the last run.

    Args:
        name: The output's.
        make: Gives memory of at least so many bytes.
    """

    def __init__(self, name: str, make: Callable[[int], Lent]) -> None:
        self._name = name
        self._make = make
        self._memory: Lent | None = None
        self._shape: tuple[int, ...] | None = None
        self._allocator: trt.IOutputAllocator | None = None
        self.failed: BaseException | None = None
        """Why TensorRT was given no memory in this run: nothing can be raised through it."""

    @property
    def allocator(self) -> trt.IOutputAllocator:
        """What TensorRT asks for memory, and tells the shape; one for the session's whole life."""
        if self._allocator is None:
            self._allocator = _allocator(self)
        return self._allocator

    @property
    def nbytes(self) -> int:
        """Bytes of its memory now."""
        return 0 if self._memory is None else self._memory.nbytes

    def begin(self) -> None:
        """A run begins, of which nothing is told yet."""
        self._shape = self.failed = None

    def take(self, nbytes: int) -> int:
        """Memory of at least so many bytes; 0, which fails the run, where there is none."""
        if self._memory is None or self._memory.nbytes < nbytes:
            self.close()
            try:
                self._memory = self._make(nbytes)
            except BaseException as error:  # the session raises it as soon as TensorRT is back
                self.failed = error
                return 0
        return self._memory.address

    def tell(self, shape: tuple[int, ...]) -> None:
        """The shape that it has in this run."""
        self._shape = shape

    def found(self) -> tuple[tuple[int, ...], int]:
        """Shape and place in this run, once it is enqueued; raises `RunFailed` where TensorRT told none."""
        if self._shape is None or self._memory is None:
            raise RunFailed(f"TensorRT has not told the shape of the output {self._name!r}")
        return self._shape, self._memory.address

    def taken(self) -> Lent:
        """The memory of the last run's answer, which is now the caller's: the next run gets other memory."""
        self.found()
        memory, self._memory = self._memory, None
        assert memory is not None
        return memory

    def close(self) -> None:
        """Gives the memory back; twice is fine."""
        if self._memory is not None:
            self._memory.close()
        self._memory = None


def _allocator(output: OpenOutput) -> trt.IOutputAllocator:
    class Allocator(trt.IOutputAllocator):
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)

        def reallocate_output(self, tensor_name: str, memory: Any, size: int, alignment: int) -> int:
            return output.take(int(size))

        def reallocate_output_async(self, tensor_name: str, memory: Any, size: int, alignment: int, stream: Any) -> int:
            return output.take(int(size))

        def notify_shape(self, tensor_name: str, shape: trt.Dims) -> None:
            output.tell(extents(shape))

    return Allocator()
