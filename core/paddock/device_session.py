"""The contract with sessions that take tensors where they lie, on a device; part of the page that `paddock.spi` is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from paddock.errors import UsageError
from paddock.spi import Session

__all__ = ["DeviceSession", "OnDevice", "run_there"]


class OnDevice(dict[str, Any]):
    """Feeds on a device: by input name anything with `__dlpack__` or `__cuda_array_interface__`."""


class DeviceSession(Session):
    """A session that can also be run on tensors of its device, as torch's and cupy's are, without copies."""

    @abstractmethod
    def run_on_device(self, feeds: OnDevice, outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Computes the outputs (all, or those named) from feeds that are read where they lie.

        Returns tensors that have `__dlpack__` and `__cuda_array_interface__` and belong to the caller; they are
        finished when it returns. Raises `UsageError` for feeds of another device, dtype, shape or layout.
        """


def run_there(session: Session, feeds: OnDevice, outputs: Sequence[str] | None) -> dict[str, Any]:
    """`run_on_device`; raises `UsageError` where the session has none."""
    if not isinstance(session, DeviceSession):
        raise UsageError(
            "the adapter takes arrays of the host only", where="inputs", remedy="give NumPy arrays to `run`"
        )
    return session.run_on_device(feeds, outputs)
