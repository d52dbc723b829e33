"""One deployment serves while its successor is built and compared with it; then requests change over, none lost.

Everything that is not a request happens on one thread in the background. A request counts as inside until its answer is
known; the first deployment is closed when none is left inside it.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from paddock.child import Crew
from paddock.errors import AccuracyRefused, BuildFailed, ModelError, PaddockError, RunFailed
from paddock.host import Outputs, first_line
from paddock.prepare import Progress
from paddock.serving import Deployment, Phase, WarmStart
from paddock.shadow import Shadow, put_to
from paddock.spi import Event
from paddock.verify import Outcome

AGREEING = 8
"""Live requests that both must answer alike. The successor is verified on samples before, so that these look for what
depends on the data alone; and each is computed twice, on cores that serve."""
NICENESS = 5
"""Of the processes in which the successor is built: a third of what a serving thread gets of a core they fight for."""

_log = logging.getLogger("paddock.warm")

Build = Callable[[Progress], Deployment | None]


class _Ended(BaseException):
    """Raised in the background, out of whatever is being done there, once nobody wants it any more."""


class Exchange:
    """Two deployments of one model, of which one serves.

    Args:
        first: Serves at once.
        build: Makes the successor, telling what it does; None where that would be the same as `first`.
    """

    def __init__(self, first: Deployment, build: Build) -> None:
        self.now = first
        """Who serves."""
        self.final = False
        """Whether it does for good; set after `now`."""
        self._first = first.name, first.plan.adapter
        self._living = [first]
        self._inside = 0
        self._turn = threading.RLock()  # a signal's handler may make requests too
        self._left = threading.Condition(self._turn)
        """For whoever waits until nobody is inside the first any more."""
        self._comparing = False
        self._shadow = Shadow()
        self._status = WarmStart("building", first.plan.adapter, "it is about to be built")
        self._ended = False
        self._over = threading.Event()
        self._crew = Crew(NICENESS)
        self._pid = os.getpid()
        # A daemon, or the interpreter would wait for it before anything could tell it to end.
        self._thread = threading.Thread(target=self._work, args=(build,), name="paddock warm start", daemon=True)
        atexit.register(self._leave_in_time)
        try:
            self._thread.start()
        except BaseException:
            atexit.unregister(self._leave_in_time)
            raise

    @property
    def status(self) -> WarmStart:
        """How far it is."""
        return self._status

    def wait(self, timeout: float) -> None:
        """Returns when it is decided who serves, and the other one is closed; after `timeout` seconds at the latest."""
        self._over.wait(timeout)

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None, into: Any) -> Outputs:
        """`Deployment.run` of whoever serves."""
        first = self._enter()
        if first is None:
            return self.now.run(feeds, outputs, into=into)
        try:
            answer = first.run(feeds, outputs, into=into)
            self._show(feeds, answer)
            return answer
        finally:
            self._leave()

    def submit(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None, into: Any) -> Future[Outputs]:
        """`Deployment.submit` of whoever serves."""
        first = self._enter()
        if first is None:
            return self.now.submit(feeds, outputs, into=into)
        answer: Future[Outputs] = Future()

        def done(finished: Future[Outputs]) -> None:
            # It has left before the caller is told: what the caller does then may take as long as it likes.
            error = finished.exception()
            if error is None:
                self._show(feeds, finished.result())
            self._leave()
            if not answer.set_running_or_notify_cancel():
                return
            if error is None:
                answer.set_result(finished.result())
            else:
                answer.set_exception(error)

        try:
            found = first.submit(feeds, outputs, into=into)
        except BaseException:
            self._leave()
            raise
        found.add_done_callback(done)
        return answer

    def check_closing(self) -> None:
        """Raises `RunFailed` where `close` would wait for its own caller."""
        if threading.current_thread() is self._thread:
            raise RunFailed("the deployment cannot be closed by who hears of its warm start: it would wait for itself")
        for deployment in tuple(self._living):
            deployment.check_closing()

    def close(self) -> None:
        """Ends what is done in the background and waits for it, then closes who serves."""
        self.check_closing()
        self.end()
        self._thread.join()
        self.now.close()

    def end(self) -> None:
        """Has the background stop, without waiting for it; takes no lock, so that garbage collection may call it."""
        if os.getpid() != self._pid:
            return  # a fork has neither the thread nor the children
        self._ended = True
        self._crew.end()
        self._shadow.end()

    def _leave_in_time(self) -> None:
        """At the interpreter's exit: no thread may be inside an SDK when it goes."""
        self.end()
        self._thread.join()

    def _enter(self) -> Deployment | None:
        with self._turn:
            if self.final:
                return None
            self._inside += 1
            return self.now

    def _leave(self) -> None:
        with self._turn:
            self._inside -= 1
            if self.final and not self._inside:
                self._left.notify_all()

    def _show(self, feeds: Mapping[str, Any], answer: Outputs) -> None:
        if self._comparing:
            self._shadow.offer(feeds, answer)

    def _work(self, build: Build) -> None:
        second: Deployment | None = None
        try:
            with self._crew:
                second = build(_teller(self))
            if second is None:
                self._stay(None, "kept", "it is the best that tuning found")
            else:
                self._living.append(second)
                _check_alike(self.now, second)
                self._compare(second)
                self._swap(second)
        except BaseException as error:
            if self._ended:  # what fails then, fails because its children were ended
                self._stay(second, "closed", "it was closed before anything else was to be had")
            else:
                self._stay(second, "refused", "", _refusal(error))
        finally:
            self._shadow.finish()
            self._over.set()
            atexit.unregister(self._leave_in_time)

    def _compare(self, second: Deployment) -> None:
        """Returns once `AGREEING` live requests were answered alike; raises where one was not."""
        adapter = second.plan.adapter
        self.tell(f"{adapter} is compared on live requests")
        self._status = replace(self._status, phase="comparing")
        self._announce()
        self._comparing = True
        while self._status.compared < AGREEING:
            request = self._shadow.take()
            if request is None or self._ended:
                raise _Ended
            try:
                report = put_to(second, request, self._status.serving)
            finally:
                self._shadow.done()
            if report is None:
                continue
            error = report.error or 0.0
            worst = max(error, self._status.worst or 0.0)
            self._status = replace(self._status, compared=self._status.compared + 1, worst=worst)
            if report.outcome is Outcome.FAILED:
                refused = AccuracyRefused(
                    f"{adapter} disagrees with {self._status.serving} on a live request ({', '.join(report.shapes)}): "
                    f"{report.reason}",
                    where="$.warm_start",
                    remedy="`paddock verify --all` with such inputs as accuracy.samples shows which one is wrong",
                )
                refused.report = report
                raise refused
        self._comparing = False

    def _swap(self, second: Deployment) -> None:
        """From now on requests go to the second; the first is closed when those inside it are done."""
        with self._turn:
            first, self.now = self.now, second
            self.final = True
        adapter = second.plan.adapter
        count, worst = self._status.compared, self._status.worst or 0.0
        reason = f"it agrees with {first.plan.adapter} on {count} live requests, error {worst:.2g}"
        self._status = replace(self._status, phase="swapped", serving=adapter, reason=reason)
        self._announce()
        with self._left:
            self._left.wait_for(lambda: not self._inside)
        self._closed(first)

    def _stay(self, second: Deployment | None, phase: Phase, reason: str, error: PaddockError | None = None) -> None:
        """The first one serves for good; what there is of the second is closed."""
        self._comparing = False
        if self.final:
            return  # it was swapped: what failed since then changes nothing for any request
        if error is not None:
            reason = f"what should take its place is refused: {str(error).splitlines()[0]}"
            _log.warning("%s goes on serving: %s", self._status.serving, error)
        self._status = replace(self._status, phase=phase, reason=reason, error=error)
        with self._turn:
            self.final = True
        if second is not None:
            self._closed(second)
        if phase != "closed":
            self._announce()

    def _closed(self, deployment: Deployment) -> None:
        try:
            deployment.close()
        except Exception as error:
            _log.warning("%s was closed, which failed: %s", deployment.plan.adapter, error)
        self._living.remove(deployment)

    def tell(self, message: str) -> None:
        """Notes what is being done for the second deployment; raises where nobody wants it any more."""
        if self._status.phase != "building":
            return
        if self._ended:
            raise _Ended
        self._status = replace(self._status, reason=message)

    def _announce(self) -> None:
        status = self._status
        name, adapter = self._first
        _log.info("warm start on %s: %s, %s serves: %s", adapter, status.phase, status.serving, status.reason)
        facts = {
            "phase": status.phase, "serving": status.serving, "reason": status.reason, "compared": status.compared,
            "worst": status.worst,
        }  # fmt: skip
        self.now.registry.observe(Event("warm", name, facts))


def _teller(exchange: Exchange) -> Progress:
    """Its `tell`, for whoever lives as long as the deployment that is built: that must not hold the exchange."""
    known = weakref.ref(exchange)

    def tell(message: str) -> None:
        found = known()
        if found is not None:
            found.tell(message)

    return tell


def _check_alike(first: Deployment, second: Deployment) -> None:
    """Raises where requests could tell one from the other before they are answered."""
    if first.model.fingerprint != second.model.fingerprint:
        raise ModelError("the model's files have changed since it serves", remedy="deploy it again")
    for what, here, there in (
        ("inputs", first.inputs, second.inputs),
        ("outputs", _outputs(first), _outputs(second)),
    ):
        if here != there:
            raise BuildFailed(f"its {what} are {dict(there)}, and those of {first.plan.adapter} are {dict(here)}")


def _outputs(deployment: Deployment) -> Mapping[str, str]:
    return {value.name: f"{value.dtype}" for value in deployment.interface.output_values}


def _refusal(error: BaseException) -> PaddockError:
    """The error without its frames, which hold whatever was being built."""
    if not isinstance(error, PaddockError):
        _log.error("a warm start failed in a way that nobody foresaw", exc_info=error)
        error = BuildFailed(f"internal error: {first_line(error)}", remedy="please report this")
    known: BaseException | None = error
    while known is not None:
        known.__traceback__ = None
        known = known.__cause__ or known.__context__
    return error
