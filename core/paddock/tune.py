"""The best deployment of a model on this host, found by measuring: what `"auto"` stands for.

Candidates (adapters, precisions, and what adapters declare as tunable) are deployed and verified in processes of their
own and measured in turns; slower ones are left out early. A few processes live at once: whoever wins stays, and meets
the next ones. The winner is confirmed against the runner-up and the plain default, and a tie goes to the simpler one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from paddock.config import AUTO
from paddock.contest import Contest, Contestant
from paddock.errors import NotAvailable
from paddock.machine import cores
from paddock.mixing import Mixed, mix
from paddock.plan import Precision
from paddock.planning.contests import chosen, ratio, survivors
from paddock.prepare import Progress
from paddock.registry import Registry
from paddock.samples import Sample
from paddock.spi import Adapter

Objective = Literal["latency", "throughput", "memory"]
OBJECTIVES: Mapping[str, Objective] = {"latency": "latency", "throughput": "throughput", "memory": "memory"}

Verdict = Literal["chosen", "slower", "tied", "refused", "not tried"]

ALIVE = 4
"""How many candidates are held in memory at once."""
RUNGS = (3, 6)
"""Rounds of a heat; after each, half of the slower ones are left out."""
OTHERS = 2
"""How many adapters are mixed with the best one."""
SLOWEST = 4.0
"""How much slower than the best an adapter may be, and still be mixed in."""
_LEAST_SIMPLE = (1 << 30,)
"""A mix gives way to whatever it ties with."""
FINAL = 15
"""Rounds between the winner, the runner-up and the plain default."""
_NARROWNESS = (Precision.FP32, Precision.BF16, Precision.FP16, Precision.INT8)


@dataclass(frozen=True)
class Candidate:
    """A whole config to try; `knobs` are what it sets beyond the adapter's defaults. The lower `place`, the simpler."""

    label: str
    config: Mapping[str, Any]
    adapter: str
    precision: str
    knobs: tuple[tuple[str, Any], ...] = ()
    place: tuple[int, ...] = ()


@dataclass(frozen=True)
class Tried:
    """What became of a candidate. Latency in milliseconds, throughput in samples per second, memory in bytes.

    `ratio` is its score over the winner's in the turns that both were measured in, with its 95 % interval; more than 1
    is worse.
    """

    label: str
    adapter: str
    precision: str
    knobs: Mapping[str, Any]
    verdict: Verdict
    reason: str = ""
    latency: float | None = None
    throughput: float | None = None
    memory: int | None = None
    error: float | None = None
    rounds: int = 0
    ratio: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Tuned:
    """The winner as an ordinary config, and the evidence."""

    config: Mapping[str, Any]
    objective: Objective
    reason: str
    tried: tuple[Tried, ...]
    seconds: float
    mixed: Mixed | None = None
    """What came of mixed placement, where it was asked for."""


@dataclass
class _Race:
    """A search in progress."""

    contest: Contest
    objective: Objective
    until: float
    tell: Progress
    entered: dict[str, tuple[Candidate, Contestant]] = field(default_factory=dict)
    passed: dict[str, str] = field(default_factory=dict)
    """Why candidates were not tried."""

    def tried(self, name: str, winner: str, tied: Sequence[str]) -> Tried:
        """What became of a candidate."""
        candidate, contestant = self.entered[name]
        opened, error = contestant.opened, contestant.error
        row = Tried(name, candidate.adapter, candidate.precision, dict(candidate.knobs), "refused")
        if error is not None or opened is None:
            report = getattr(error, "report", None)
            return replace(row, reason=error.problem if error else "", error=report.error if report else None)
        verdict: Verdict = "chosen" if name == winner else "tied" if name in tied else "slower"
        found = None
        if name != winner:
            compared = ratio(self.scores(name), self.scores(winner))
            found = (compared.median, compared.low, compared.high) if compared.turns >= 3 else None
        latency = throughput = None
        if contestant.rounds:
            latency = 1e3 * float(np.median(contestant.latencies))
            throughput = opened.batch * float(np.median(contestant.rates))
        return replace(
            row, verdict=verdict, latency=latency, throughput=throughput, memory=opened.taken,
            error=opened.report.error, rounds=len(contestant.rounds), ratio=found,
        )  # fmt: skip

    def scores(self, name: str) -> dict[int, float]:
        """A contestant's score in each turn, by the objective: smaller is better."""
        contestant = self.entered[name][1]
        opened = contestant.opened
        assert opened is not None
        if self.objective == "memory":
            return dict.fromkeys(contestant.turns, float(max(1, opened.taken or 0)))
        if self.objective == "throughput":
            return {
                turn: 1 / (rate * opened.batch) for turn, rate in zip(contestant.turns, contestant.rates, strict=True)
            }
        found = zip(contestant.turns, contestant.rounds, strict=True)
        return {turn: float(np.median(seconds)) for turn, seconds in found}

    def enter(self, candidate: Candidate) -> bool:
        """Deploys a candidate, if need be once more; whether it runs."""
        self.tell(f"deploying {candidate.label}")
        known = self.entered.get(candidate.label)
        contestant = known[1] if known is not None else Contestant(candidate.label, candidate.config)
        self.entered[candidate.label] = candidate, contestant
        return self.contest.open(contestant)

    def run(self, names: Sequence[str], rounds: int) -> list[str]:
        """Measures these in turns; who is left of them."""
        alive = [self.entered[name][1] for name in names]
        for number in range(rounds):
            self.tell(f"measuring {', '.join(names)}: round {number + 1} of {rounds}")
            self.contest.round(alive)
        return [contestant.label for contestant in alive if contestant.error is None]

    def leave(self, names: Sequence[str]) -> None:
        """Ends these processes."""
        for name in names:
            self.contest.close(self.entered[name][1])

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() > self.until

    def heats(self, best: list[str], candidates: Sequence[Candidate]) -> list[str]:
        """The best two of those that stand and of all candidates, which come in as places become free."""
        waiting = list(candidates)
        standing = list(best)
        while waiting:
            while waiting and len(standing) < ALIVE:
                candidate = waiting.pop(0)
                if self.over and standing:
                    self.passed[candidate.label] = "the time was up"
                elif self.enter(candidate):
                    standing.append(candidate.label)
            standing = self._heat(standing)
        return standing

    def _heat(self, standing: list[str]) -> list[str]:
        """The two that are left of several; who wins stays alive with the runner-up."""
        for rounds in RUNGS if self.objective != "memory" else RUNGS[:1]:
            if len(standing) < 2:
                break
            running = self.run(standing, rounds)
            if not running:
                return []
            scores = {name: self.shared(name, running) for name in running}
            kept = survivors(scores, max(2, (len(running) + 1) // 2))[: max(2, ALIVE - 1)]
            self.leave([name for name in standing if name not in kept])
            standing = kept
        self.leave(standing[2:])
        return standing[:2]

    def shared(self, name: str, others: Sequence[str]) -> dict[int, float]:
        """The scores in the turns that all of these were measured in."""
        turns = set.intersection(*(set(self.entered[other][1].turns) for other in others))
        return {turn: score for turn, score in self.scores(name).items() if turn in turns}


def tune(
    model: Path,
    base: Mapping[str, Any],
    *,
    seconds: float = 60.0,
    objective: Objective = "latency",
    registry: Registry | None = None,
    mixed: bool = False,
    sample: Sample | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """Measures what can serve `model` here, and returns the best as a config.

    Args:
        model: The model's path.
        base: A config as data; hardware, backend and precision are replaced where they are "auto" or left out.
        seconds: After this no further candidate is begun.
        objective: What to be best in: the median latency of one request at a time, requests per second with all
            instances busy, or the bytes that the sessions take.
        mixed: Whether several adapters together are tried as well, where the model can be cut; see `paddock.mixing`.
        sample: What to run on; generated at the optimum of the shapes by default.

    Raises:
        NotAvailable: No candidate could be deployed; lists why.
    """
    begun = time.monotonic()
    tell = progress or (lambda message: None)
    registry = registry if registry is not None else Registry.discover()
    plain = candidates(base, registry)
    with Contest(model, sample, memory=objective == "memory") as contest:
        race = _Race(contest, objective, begun + seconds, tell)
        best = race.heats([], plain)
        if best:
            best = race.heats(best, [turned for name in best for turned in _turned(race.entered[name][0], registry)])
        if not best:
            raise _none(race)
        together = _mixed(race, best, model, registry) if mixed else None
        if together is not None and together.label:
            best = [*best, together.label]
        found = _result(race, _confirmed(race, best, plain), plain, time.monotonic() - begun)
        return replace(found, mixed=together)


def _mixed(race: _Race, best: Sequence[str], model: Path, registry: Registry) -> Mixed:
    """What comes of mixing the adapters that serve the model; it runs, and has a label, where that may be faster."""
    if race.objective != "latency":
        return Mixed("only the latency of a mix can be predicted from its parts")
    if not all(race.entered[name][1].rounds for name in best):
        best = race.run(best, RUNGS[0])
    sample = race.contest.sample
    if not best or sample is None:
        return Mixed("nothing runs to be mixed")
    first = race.entered[best[0]][0]
    able = {
        candidate.adapter: float(np.median(contestant.latencies))
        for candidate, contestant in race.entered.values()
        if contestant.rounds and contestant.error is None
        if candidate.precision == Precision.FP32.value and candidate.adapter != first.adapter
    }
    near = SLOWEST * float(np.median(race.entered[best[0]][1].latencies))
    others = sorted((name for name, seconds in able.items() if seconds < near), key=lambda name: able[name])[:OTHERS]
    found = mix(model, first.config, others, sample, registry=registry, until=race.until, progress=race.tell)
    if found.config is None:
        return found
    used = " + ".join(dict.fromkeys(found.adapters))
    label = f"{used} {first.precision}, mixed"
    candidate = Candidate(label, found.config, used, first.precision, first.knobs, _LEAST_SIMPLE)
    if not race.enter(candidate):
        return replace(found, reason=f"{found.reason}; it could not be deployed, see {label}")
    opened = race.entered[label][1].opened
    wrong = found.differs(opened.plan.placement) if opened is not None else ""
    if wrong:
        race.leave([label])
        del race.entered[label]
        return replace(found, reason=f"{found.reason}; not tried: {wrong}")
    return replace(found, label=label)


def _confirmed(race: _Race, best: Sequence[str], plain: Sequence[Candidate]) -> list[str]:
    """The finalists, measured in the same turns: the best two, and the simplest of all that ran."""
    default = next(c for c in plain if (known := race.entered.get(c.label)) and known[1].opened is not None)
    finalists = list(best)
    if default.label not in finalists and race.enter(default):
        finalists.append(default.label)
    return race.run(finalists, FINAL) if len(finalists) > 1 and race.objective != "memory" else finalists


def _result(race: _Race, finalists: Sequence[str], plain: Sequence[Candidate], seconds: float) -> Tuned:
    """The winner of the finalists, with what became of everybody."""
    ranked = sorted(finalists, key=lambda name: race.entered[name][0].place)
    scores = {name: race.shared(name, finalists) for name in ranked}
    winner, ratios = chosen(ranked, scores)
    candidate = race.entered[winner][0]
    tied = [name for name, found in ratios.items() if found.tied]
    reason = f"{winner} is the best in {race.objective} of {len(race.entered)} that were tried"
    if tied:
        reason += (
            f"; {', '.join(tied)} cannot be told apart from it, and {'is' if len(tied) == 1 else 'are'} less simple"
        )
    rows = [race.tried(name, winner, tied) for name in race.entered]
    rows += [
        Tried(c.label, c.adapter, c.precision, dict(c.knobs), "not tried", race.passed[c.label])
        for c in plain
        if c.label in race.passed
    ]
    return Tuned(candidate.config, race.objective, reason, tuple(rows), round(seconds, 1))


def _none(race: _Race) -> NotAvailable:
    rows = [f"{name}: {c.error.problem}" for name, (_, c) in race.entered.items() if c.error is not None]
    return NotAvailable(
        "no candidate could be deployed", candidates=rows, remedy="`paddock doctor` says what each adapter needs"
    )


def candidates(base: Mapping[str, Any], registry: Registry) -> list[Candidate]:
    """What can stand for each "auto" of a config on this host, with default options, the simplest first.

    `base` is the config as data. A hardware, backend or precision that it names is kept.
    """
    found = []
    for position, (registered, probe, devices) in enumerate(registry.survey().values()):
        adapter = registered.adapter
        wanted = (base.get("hardware", AUTO), base.get("backend", AUTO))
        named = registry.canonical(f"{adapter.hardware}/{wanted[1]}") if wanted[1] != AUTO else adapter.name()
        if wanted[0] not in (AUTO, adapter.hardware) or named != adapter.name():
            continue
        if not probe.verdict.usable or not devices.verdict.usable:
            continue
        usable = {p for d in devices.devices for p, v in d.precisions.items() if v.usable}
        for rank, precision in enumerate(_NARROWNESS):
            if precision not in usable or base.get("precision", AUTO) not in (AUTO, precision.value):
                continue
            if precision is Precision.INT8 and "calibration" not in base:
                continue
            config = {**base, "hardware": adapter.hardware, "backend": adapter.backend, "precision": precision.value}
            if precision is not Precision.INT8 and base.get("precision", AUTO) == AUTO:
                config.pop("calibration", None)
            label = f"{adapter.name()} {precision.value}"
            found.append(Candidate(label, config, adapter.name(), precision.value, (), (0, rank, position)))
    return sorted(found, key=lambda candidate: candidate.place)


def _turned(candidate: Candidate, registry: Registry) -> Iterator[Candidate]:
    """The candidate with each single knob turned: those that its adapter declares, and threads and instances.

    What the config states is left as it is.
    """
    adapter = registry.get(candidate.adapter).adapter
    for position, (knob, value) in enumerate(_knobs(adapter)):
        part, _, name = knob.partition(".")
        stated = candidate.config.get("options", {}) if name else candidate.config
        if (name or part) in stated:
            continue
        changed = {"options": {**stated, name: value}} if name else {part: value}
        yield Candidate(
            f"{candidate.label}, {knob} {json.dumps(value)}",
            {**candidate.config, **changed},
            candidate.adapter,
            candidate.precision,
            (*candidate.knobs, (knob, value)),
            (candidate.place[0] + 1, *candidate.place[1:], position),
        )


def _knobs(adapter: type[Adapter]) -> Iterator[tuple[str, Any]]:
    """Each knob with each value to try beside the default: `threads`, `instances`, and `options.NAME`."""
    count = 1
    while count < cores():
        yield "threads", count
        count *= 2
    if cores() > 1:
        yield "instances", cores()
    for name, values in adapter.tunables.items():
        for value in values:
            yield name, value
