"""Threads, many sessions, loading again, closing twice: as the adapter declares its concurrency."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from itertools import product
from typing import Any

from paddock.errors import NotAvailable
from paddock.host import InProcessHost, first_line
from paddock.spi import Session, Threading
from paddock.testing.bench import Bench, Serving
from paddock.testing.judging import apart
from paddock.testing.outcomes import Area
from paddock.testing.table import Broken, Evidence, Refused, Skipped, Table

TABLE = Table(Area.CONCURRENCY)
THREADS, RUNS, LOADS = 8, 12, 4
_WAIT = 30.0
"""Seconds that threads have to come back: no run of a small model takes one."""


def _in_threads(actions: list[Callable[[], Any]], wait: float = _WAIT) -> None:
    """Runs them all at once; raises the first error, and `Broken` where one is not back within `wait` seconds."""
    failures: list[BaseException] = []
    gate = threading.Barrier(len(actions))

    def run(action: Callable[[], Any]) -> None:
        try:
            gate.wait()
            action()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(action,), daemon=True) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(wait)
    if failures:
        raise failures[0]
    if any(thread.is_alive() for thread in threads):
        raise Broken(f"runs on {len(actions)} threads did not come back within {wait:g} s")


def _right(serving: Serving, run: Callable[[Any], Any], sample: Any, wanted: Any, when: str) -> None:
    found = dict(serving.prepared.translation.answer(run, sample))
    if (why := apart(wanted, found, serving.precision)) is not None:
        raise Broken(f"{when}: {why}")


@TABLE.check("threads", "requests from many threads are answered each with its own answer, as concurrency declares")
def _threads(bench: Bench) -> Evidence:
    kind = bench.adapter.concurrency.threading
    for path in dict.fromkeys((bench.plain, bench.moving)):
        with bench.serving(path) as serving:
            samples = [serving.sample(seed) for seed in range(THREADS)]
            wanted = serving.expected(*samples)
            host = InProcessHost(serving.fresh, kind, 1, bench.name)

            def many(serving: Serving, host: InProcessHost, sample: Any, should: Any) -> Callable[[], None]:
                def run() -> None:
                    for _ in range(RUNS):
                        _right(serving, host.run, sample, should, f"on {THREADS} threads")

                return run

            _in_threads([many(serving, host, s, w) for s, w in zip(samples, wanted, strict=True)])
            host.close()  # not where threads hang inside of it: it would wait for them
    return Evidence(f"{kind}: {THREADS} threads, {RUNS} runs each")


@TABLE.check(
    "sessions_at_once",
    "sessions that run at the same time, of one model and of two, answer each for itself",
    seconds=240,
)
def _sessions_at_once(bench: Bench) -> Evidence:
    """Each on a thread of its own: that is promised whatever the threading, which is about one session."""
    kind = bench.adapter.concurrency.threading
    with ExitStack() as stack:
        models = [stack.enter_context(bench.serving(bench.plain)), _another(bench, stack)]
        servings = [serving for serving in models if serving is not None]
        hosts: list[InProcessHost] = []
        actions: list[Callable[[], None]] = []
        full: Refused | None = None
        # As one deployment has them, forked where the adapter can, and as another has.
        for serving, instances in product(servings, (2, 1)):
            try:
                host = InProcessHost(serving.fresh, kind, instances, bench.name)
            except Refused as error:
                full = error
                break
            hosts.append(host)
            for instance in range(instances):
                samples = [serving.sample(len(actions) + THREADS * n) for n in range(2)]
                actions.append(_in_turns(serving, partial(host.run_on, instance), samples))
        if full is None or len(actions) > 1:
            _in_threads(actions)
        for host in hosts:
            host.close()
        if full is not None and len(actions) < 2:
            raise full
        said = f"{kind}: {len(actions)} sessions of {len(servings)} models at once, {2 * RUNS} runs each"
        return Evidence(said, () if full is None else (f"more sessions at once: {full.problem}",))


def _another(bench: Bench, stack: ExitStack) -> Serving | None:
    """Another model than the plainest, for as long as `stack` is open; None where it serves no other."""
    others = (bench.model(name) for name in bench.names)
    for path in dict.fromkeys((*others, bench.moving)):
        if path != bench.plain:
            with suppress(Refused):
                return stack.enter_context(bench.serving(path))
    return None


def _in_turns(serving: Serving, run: Callable[[Any], Any], samples: list[Any]) -> Callable[[], None]:
    """Compared with what the session answers alone, which is judged elsewhere: here only the others may matter."""
    wanted = [dict(serving.prepared.translation.answer(run, sample)) for sample in samples]

    def turns() -> None:
        for _ in range(RUNS):
            for sample, should in zip(samples, wanted, strict=True):
                _right(serving, run, sample, should, "with other sessions running at the same time")

    return turns


@TABLE.check(
    "loads_at_once", "sessions that load and close beside others that load and run disturb none of them", seconds=240
)
def _loads_at_once(bench: Bench) -> Evidence:
    """As where a model is replaced while it serves: nothing keeps those apart who deploy on threads of their own."""
    kind = bench.adapter.concurrency.threading
    with ExitStack() as stack:
        first = stack.enter_context(bench.serving(bench.plain))
        servings = [first, _another(bench, stack) or first]
        turns: list[Callable[[], None]] = []
        seconds = 0.0
        for serving in servings:
            begun = time.monotonic()
            turns.append(_loaded_once(serving, serving.sample(len(turns))))
            seconds += time.monotonic() - begun
        rounds = LOADS if seconds < 1 else 1
        loading = list(servings)

        def load(turn: Callable[[], None]) -> None:
            try:
                for _ in range(rounds):
                    turn()
            finally:
                loading.pop()

        host = _host(first)
        turn = _in_turns(first, partial(host.run_on, 0), [first.sample(seed) for seed in (2, 3)])

        def run() -> None:
            while loading:
                turn()

        _in_threads([run, *(partial(load, each) for each in turns)], max(_WAIT, 20 * seconds))
        host.close()
        return Evidence(f"{kind}: {rounds} loads on each of {len(turns)} threads, beside one that runs")


def _host(serving: Serving) -> InProcessHost:
    """A session as a deployment of one instance has it; raises `Refused` where there is no room for it."""
    load = partial(serving.segment.load, lambda message: None)
    try:
        return InProcessHost(load, serving.bench.adapter.concurrency.threading, 1, serving.bench.name)
    except NotAvailable as error:
        raise Refused(f"it takes no further session: {error.problem}") from error


def _loaded_once(serving: Serving, sample: Any) -> Callable[[], None]:
    """Loads, runs and closes a session, whose answer has to be the one that it gives now."""

    def answered() -> Any:
        host = _host(serving)
        try:
            return dict(serving.prepared.translation.answer(partial(host.run_on, 0), sample))
        finally:
            host.close()

    wanted = answered()

    def turn() -> None:
        if (why := apart(wanted, answered(), serving.precision)) is not None:
            raise Broken(f"loaded beside other sessions that load and run: {why}")

    return turn


@TABLE.check("another_thread", "a session that is bound to no thread also runs on one that did not load it")
def _another_thread(bench: Bench) -> None:
    if bench.adapter.concurrency.threading is Threading.BOUND:
        raise Skipped("its sessions are bound to the thread that loaded them")
    with bench.serving(bench.plain) as serving:
        session = serving.load()
        sample = serving.sample()
        (wanted,) = serving.expected(sample)
        _right(serving, session.run, sample, wanted, "on the thread that loaded it")
        for _ in range(2):
            _in_threads([lambda: _right(serving, session.run, sample, wanted, "on another thread")])
        _right(serving, session.run, sample, wanted, "back on the first")


@TABLE.check("sessions", "several sessions of one artifact live side by side, and closing one leaves the others")
def _sessions(bench: Bench) -> None:
    with bench.serving(bench.plain) as serving:
        sessions = [serving.load() for _ in range(4)]
        samples = [serving.sample(seed) for seed in range(4)]
        wanted = serving.expected(*samples)
        for turn in range(3):
            for i, session in enumerate(sessions):
                at = (i + turn) % 4
                _right(serving, session.run, samples[at], wanted[at], f"with {len(sessions)} sessions open")
            sessions.pop(0).close()


@TABLE.check("two_models", "two models served at once do not disturb each other")
def _two_models(bench: Bench) -> None:
    for name in bench.names:
        path = bench.model(name)
        if path == bench.plain:
            continue
        try:
            with bench.serving(path) as other, bench.serving(bench.plain) as serving:
                pairs = [(s, s.load(), s.sample(3)) for s in (other, serving, other)]
                wanted = [s.expected(sample)[0] for s, _, sample in pairs]
                for _ in range(3):
                    for (s, session, sample), should in zip(pairs, wanted, strict=True):
                        _right(s, session.run, sample, should, "with another model loaded")
                return
        except Refused:
            continue
    raise Skipped("it serves only one model of the kit")


@TABLE.check("reload", "an artifact loads again and again, and is as right as the first time")
def _reload(bench: Bench) -> None:
    with bench.serving(bench.plain) as serving:
        sample = serving.sample()
        (wanted,) = serving.expected(sample)
        for time in range(5):
            session = serving.load()
            _right(serving, session.run, sample, wanted, f"loaded {time + 1} times")
            session.close()


@TABLE.check("close_twice", "closing twice is fine, also unused; a run after it ends with an error or an answer")
def _close_twice(bench: Bench) -> Evidence:
    with bench.serving(bench.plain) as serving:
        unused, used = serving.load(), serving.load()
        sample = serving.sample()
        serving.answer(used, sample)
        for session in (unused, used):
            for time in ("", " again"):
                try:
                    session.close()
                except Exception as error:
                    raise Broken(f"closing{time} raises {first_line(error)}") from error
        try:
            serving.answer(used, sample)
        except Exception as error:
            return Evidence(f"a run after it: {first_line(error)}")
        return Evidence("a run after it still answers")


@TABLE.check("fork", "a fork answers as its original does, and each closes without the other")
def _fork(bench: Bench) -> Evidence:
    with bench.serving(bench.plain) as serving:
        session = serving.load()
        fork: object = session.fork()
        if fork is None:
            if bench.adapter.concurrency.shares_weights:
                raise Broken("the adapter declares shares_weights, and its sessions do not fork")
            raise Skipped("its sessions do not fork")
        if not isinstance(fork, Session):
            raise Broken(f"fork() returned a {type(fork).__name__}, not a Session")
        samples = [serving.sample(seed) for seed in (0, 1)]
        wanted = serving.expected(*samples)
        for _ in range(2):
            _right(serving, session.run, samples[0], wanted[0], "the original")
            _right(serving, fork.run, samples[1], wanted[1], "the fork")
        fork.close()
        _right(serving, session.run, samples[1], wanted[1], "the original, its fork closed")
        return Evidence("shares weights" if bench.adapter.concurrency.shares_weights else "")
