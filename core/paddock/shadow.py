"""Live requests that one deployment has answered, put to another one as well: copies of a few, and what they show."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddock.config import Agreement
from paddock.errors import PaddockError, RunFailed
from paddock.host import Outputs
from paddock.references import Reference
from paddock.serving import Deployment
from paddock.verify import Outcome, Report, compare

HELD = 2
"""How many requests are copied at once: one that is being compared, and the next one."""

_log = logging.getLogger("paddock.warm")


@dataclass(frozen=True)
class Answered:
    """A request and its answer, both copies: the caller may change its arrays as soon as it has the answer."""

    feeds: Mapping[str, Any]
    answer: Outputs


class Shadow:
    """Takes copies of requests on the callers' threads, for one thread that compares them."""

    def __init__(self) -> None:
        self._places = threading.Semaphore(HELD)
        self._lock = threading.Lock()
        self._over = False
        self._waiting: queue.SimpleQueue[Answered | None] = queue.SimpleQueue()

    def offer(self, feeds: Mapping[str, Any], answer: Outputs) -> None:
        """Copies a request, unless enough are held already; neither waits nor raises, since it is answered."""
        if not answer or not self._places.acquire(blocking=False):
            return
        try:
            request = Answered(copied(feeds), copied(answer))
            with self._lock:
                if not self._over:
                    self._waiting.put(request)
        except Exception as error:
            self._places.release()
            _log.warning("a request could not be copied, and is not compared: %s: %s", type(error).__name__, error)

    def take(self) -> Answered | None:
        """The next one, waited for; None once `end` was called."""
        return self._waiting.get()

    def done(self) -> None:
        """Says that what was taken last is held no more."""
        self._places.release()

    def end(self) -> None:
        """Wakes whoever waits; takes no lock that the same thread could hold while garbage is collected."""
        self._waiting.put(None)

    def finish(self) -> None:
        """Takes no more, and drops what nobody took."""
        with self._lock:
            self._over = True
        with suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()


def put_to(other: Deployment, request: Answered, by: str) -> Report | None:
    """How another deployment's answer differs from that of `by`, by the other's accuracy budget.

    None where that is within the budget only because there is nothing to compare. Raises `RunFailed` where the other
    one does not answer, `ConfigError` where its budget does not suit these outputs.
    """
    try:
        found = other.run(request.feeds, tuple(request.answer))
    except PaddockError as error:
        problem = f"{other.plan.adapter} fails on a live request that {by} answers: {error.problem}"
        raise RunFailed(problem, where="$.warm_start") from error
    rule = other.config.accuracy.min_agreement
    if rule is not None and not _speaks_of(rule, request.answer):
        return None
    reference = Reference(by, (request.feeds,), (request.answer,))
    report = compare(reference, [found], other.config, "a live request")
    if report.outcome is not Outcome.FAILED and rule is not None and all(c.agreement is None for c in report.outputs):
        return None
    return report


def copied(value: Any) -> Any:
    """Arrays, also in mappings and sequences, as dense ones of their own; whatever else as it is."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Mapping):
        return {name: copied(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [copied(item) for item in value]
    return np.array(np.from_dlpack(value)) if hasattr(value, "__dlpack__") else value


def _speaks_of(rule: Agreement, answer: Outputs) -> bool:
    """Whether a rule is about any of the outputs that were asked for."""
    floats = [name for name, array in answer.items() if isinstance(array, np.ndarray) and array.dtype.kind == "f"]
    return bool(floats) and rule.output in (None, *floats)
