"""Requests that the process of an isolated session loses, answered by another deployment of the same model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from paddock.errors import ChildLost
from paddock.guard import Guard
from paddock.host import Outputs

Feeds = Mapping[str, Any]
Wanted = Sequence[str] | None


class Other(Protocol):
    """What answers; see `Deployment`."""

    def run(self, feeds: Feeds, outputs: Wanted = None, *, into: Any = None) -> Outputs:
        """One request."""

    def submit(self, feeds: Feeds, outputs: Wanted = None, *, into: Any = None) -> Future[Outputs]:
        """The same on a thread of its own."""

    def check_closing(self) -> None:
        """Raises `RunFailed` where `close` would wait for its own caller."""

    def close(self) -> None:
        """Waits for the requests inside, then frees everything."""


class Rescue:
    """Passes requests to whoever they are for, and those that are lost there to `other`, which it owns.

    A request counts as inside until its answer is known, so that none is between the two when they are closed.

    Args:
        other: Answers them; serves in this process.
        adapter: Its adapter.
        guard: That of the sessions that may be lost: requests do not wait for them any more.
    """

    def __init__(self, other: Other, adapter: str, guard: Guard) -> None:
        self._other, self._adapter, self._guard = other, adapter, guard
        self._inside = 0
        self._left = threading.Condition()
        guard.patient = False

    def run(self, own: Callable[..., Outputs], feeds: Feeds, outputs: Wanted, into: Any) -> Outputs:
        """`own(feeds, outputs, into)`, or the other's answer where that was lost."""
        self._enter()
        try:
            return own(feeds, outputs, into)
        except ChildLost as lost:
            found = self._other.run(feeds, outputs, into=into)
            self._guard.rescued(self._adapter, lost.problem)
            return found
        finally:
            self._leave()

    def submit(self, own: Callable[..., Future[Outputs]], feeds: Feeds, outputs: Wanted, into: Any) -> Future[Outputs]:
        """The same of a Future."""
        answer: Future[Outputs] = Future()

        def settle(finished: Future[Outputs], lost: ChildLost | None) -> None:
            error = finished.exception()
            if error is None and lost is not None:
                self._guard.rescued(self._adapter, lost.problem)
            self._leave()  # before the caller is told: what the caller does then may take as long as it likes
            if not answer.set_running_or_notify_cancel():
                return
            if error is None:
                answer.set_result(finished.result())
            else:
                answer.set_exception(error)

        def done(finished: Future[Outputs]) -> None:
            lost = finished.exception()
            if not isinstance(lost, ChildLost):
                settle(finished, None)
                return
            try:
                other = self._other.submit(feeds, outputs, into=into)
            except BaseException as error:  # without an answer the caller would wait for ever
                other = Future()
                other.set_exception(error)
            other.add_done_callback(lambda rescued: settle(rescued, lost))

        self._enter()
        try:
            found = own(feeds, outputs, into)
        except BaseException:
            self._leave()
            raise
        found.add_done_callback(done)
        return answer

    def check_closing(self) -> None:
        """Raises `RunFailed` where `close` would wait for its own caller."""
        self._other.check_closing()

    def close(self) -> None:
        """Waits for the requests inside, then closes the other; twice is fine."""
        with self._left:
            self._left.wait_for(lambda: not self._inside)
        self._other.close()

    def _enter(self) -> None:
        with self._left:
            self._inside += 1

    def _leave(self) -> None:
        with self._left:
            self._inside -= 1
            if not self._inside:
                self._left.notify_all()
