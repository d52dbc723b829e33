"""Outputs whose shape the numbers of a run decide, such as NonZero's: TensorRT asks for their memory while it runs."""

from __future__ import annotations

from typing import Any

from paddock.errors import PaddockError, RunFailed

from paddock_tensorrt import cuda
from paddock_tensorrt.sdk import extents, trt


class OpenOutput:
    """The memory of one such output, which grows; and its shape in the last run."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._memory: cuda.Memory | None = None
        self._shape: tuple[int, ...] | None = None
        self._failed: PaddockError | None = None
        self._allocator: trt.IOutputAllocator | None = None

    @property
    def allocator(self) -> trt.IOutputAllocator:
        """What TensorRT asks for memory, and tells the shape; one for the session's whole life."""
        if self._allocator is None:
            self._allocator = _allocator(self)
        return self._allocator

    def take(self, nbytes: int) -> int:
        """Memory of at least so many bytes; 0, which fails the run, where the device has not so many."""
        self._failed = None
        if self._memory is None or self._memory.nbytes < nbytes:
            self.close()
            try:
                self._memory = cuda.Memory(nbytes)
            except PaddockError as error:  # TensorRT calls this: nothing may be raised through it
                self._failed = error
                return 0
        return self._memory.address

    def tell(self, shape: tuple[int, ...]) -> None:
        """The shape that it has in this run."""
        self._shape = shape

    def found(self) -> tuple[tuple[int, ...], int]:
        """Shape and place after a run; raises `RunFailed` where TensorRT told none."""
        if self._failed is not None:
            raise self._failed
        if self._shape is None or self._memory is None:
            raise RunFailed(f"TensorRT has not told the shape of the output {self._name!r}")
        return self._shape, self._memory.address

    def taken(self) -> cuda.Memory:
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
