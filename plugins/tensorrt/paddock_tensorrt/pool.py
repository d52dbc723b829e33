"""Memory of the device: what a session keeps for each tensor, and what it lends to its callers with an answer."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from paddock.errors import MemoryRefused

from paddock_tensorrt import cuda


class Held(Protocol):
    """Memory at an address; `nbytes` of it."""

    nbytes: int
    address: int

    def close(self) -> None: ...


M = TypeVar("M", bound=Held)


class Rooms(Generic[M]):
    """Memory by the tensor it is for, which grows with the tensor."""

    def __init__(self, make: Callable[[int], M]) -> None:
        self._make = make
        self._held: dict[str, M] = {}

    def room(self, name: str, nbytes: int) -> M:
        """At least so many bytes for a tensor: what it had, or more; what it had is given back before."""
        known = self._held.get(name)
        if known is None or known.nbytes < nbytes:
            if known is not None:
                del self._held[name]
                known.close()
            self._held[name] = known = self._make(nbytes)
        return known

    def __getitem__(self, name: str) -> M:
        return self._held[name]

    def __contains__(self, name: str) -> bool:
        return name in self._held

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return sum(memory.nbytes for memory in self._held.values())

    def close(self) -> None:
        """Gives all of it back; twice is fine."""
        while self._held:
            self._held.popitem()[1].close()


class Lent:
    """Memory that its holder keeps for as long as it likes; the pool has it back when nobody holds this any more."""

    def __init__(self, pool: Pool, memory: cuda.Memory) -> None:
        self.nbytes, self.address = memory.nbytes, memory.address
        self._memory = memory  # which frees itself where the pool does not take it
        self._back = weakref.finalize(self, _back, weakref.ref(pool), memory)
        self._back.atexit = False

    def never_again(self) -> None:
        """It is freed by whoever lets it go last, which waits for all of the device, rather than lent again."""
        self._back.detach()

    def close(self) -> None:
        """The pool's again, now."""
        self._back()


class Pool:
    """Memory of the device for answers that stay there: allocating waits for the device, and freeing even longer.

    What was read by work that may still be under way is lent again only behind that work, by the device's own order:
    the default stream's, which all but streams made not to wait for it keep. Who reads elsewhere says `never_again`.

    Args:
        stream: Where all that writes to it is put.
        most: How many pieces are kept for later.
    """

    def __init__(self, stream: cuda.Stream, most: int) -> None:
        self._stream, self._most = stream, most
        self.returned: deque[cuda.Memory] | None = deque()
        """What holders let go, in whatever thread; None where the pool is closed."""
        self._idle: list[cuda.Memory] = []

    def take(self, nbytes: int) -> Lent:
        """At least so many bytes; raises `MemoryRefused`. By one thread at a time."""
        wanted = max(1, nbytes)
        self._collect()
        # Not ten times as much as is wanted: who holds a small answer would hold that.
        fitting = [memory for memory in self._idle if wanted <= memory.nbytes <= 2 * wanted]
        if fitting:
            found = min(fitting, key=lambda memory: memory.nbytes)
            self._idle.remove(found)
            self._stream.follow_default()
            return Lent(self, found)
        try:
            return Lent(self, cuda.Memory(wanted))
        except MemoryRefused:
            if not self._idle:
                raise
        self._drop(0)
        return Lent(self, cuda.Memory(wanted))

    @property
    def nbytes(self) -> int:
        """Bytes that are kept and lent to nobody."""
        self._collect()
        return sum(memory.nbytes for memory in self._idle)

    def close(self) -> None:
        """Frees what is kept; what is lent is freed by its holders."""
        self._collect()
        self.returned = None
        self._drop(0)

    def _collect(self) -> None:
        while self.returned:
            self._idle.append(self.returned.popleft())
        self._drop(self._most)

    def _drop(self, most: int) -> None:
        while len(self._idle) > most:
            self._idle.pop(0).close()


def _back(pool: weakref.ref[Pool], memory: cuda.Memory) -> None:
    # It runs where an object dies: in any thread, within any call. So it only notes what came back.
    found = pool()
    returned = None if found is None else found.returned
    if returned is not None:
        returned.append(memory)
