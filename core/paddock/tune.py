"""The best deployment of a model on this host, found by measuring: what `"auto"` stands for.

Candidates (adapters, precisions, and what adapters declare as tunable) are deployed and verified in processes of their
own and measured in turns; slower ones are left out early. A few processes live at once: whoever wins stays, and meets
the next ones. The winner is confirmed against the runner-up and the plain default, and a tie goes to the simpler one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from paddock.child import Children
from paddock.contenders import LAST_RESORT, NO_BUDGET, Candidate, Objective, candidates, turned
from paddock.contest import OPEN_SECONDS, Contest, Contestant
from paddock.errors import NotAvailable
from paddock.machine import busy_cores, cores
from paddock.mixing import Mixed, mix
from paddock.plan import Precision
from paddock.planning.contests import chosen, leader, ratio, survivors
from paddock.prepare import Progress
from paddock.reading import open_model
from paddock.registry import Registry
from paddock.samples import Sample

Verdict = Literal["chosen", "slower", "tied", "refused", "not tried"]

ALIVE = 4
"""How many candidates are held in memory at once."""
RUNGS = (3, 6)
"""Rounds of a heat; after each, whoever is sure to be slower than the best leaves, but for the best two."""
OTHERS = 2
"""How many adapters are mixed with the best one."""
SLOWEST = 4.0
"""How much slower than the best an adapter may be, and still be mixed in."""
_LEAST_SIMPLE = (1 << 30,)
"""A mix gives way to whatever it ties with."""
FINAL, FINALS = 15, 3
"""Rounds between the winner, the runner-up and the plain default; and how often, while the noise hides who is best."""
NEAR = 1.03
"""Who cannot be told apart from the best, and is no slower than this, is as good."""
LISTEN = 0.25
"""Seconds before and after, in which nothing of this runs: whoever keeps cores busy then are others."""
BUSY = 0.25
"""Of the cores: from here on the reason says that others were computing as well."""
PATIENCE = 60.0
"""Seconds that a candidate may take to be deployed at the end of the time, where others stand already: quantising and
the search for nodes that have to stay in fp32 can take many minutes."""


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
    load: float = 0.0
    """How many cores others kept busy just before or just after, whichever was more."""
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
    doubtful: list[str] = field(default_factory=list)
    """Who left a heat for want of room, and could not be told apart from the best."""
    passed: dict[str, Candidate] = field(default_factory=dict)
    """Who was not tried, and why."""

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
            if compared.turns >= 3:
                found = compared.median, compared.low, compared.high
                verdict = "tied" if compared.tied else verdict
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

    def enter(self, candidate: Candidate, seconds: float = OPEN_SECONDS) -> bool:
        """Deploys a candidate, if need be once more, in so many seconds at most; whether it runs."""
        self.tell(f"deploying {candidate.label}")
        known = self.entered.get(candidate.label)
        contestant = known[1] if known is not None else Contestant(candidate.label, candidate.config)
        self.entered[candidate.label] = candidate, contestant
        return self.contest.open(contestant, seconds)

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

    def heats(self, best: list[str], candidates: Iterable[Candidate]) -> list[str]:
        """The best two of those that stand and of all candidates, which come in as places become free."""
        found = {candidate.label: candidate for candidate in candidates}  # two ways may lead to the same
        self.passed.update({label: candidate for label, candidate in found.items() if candidate.aside})
        waiting = [c for label, c in found.items() if not c.aside and label not in self.entered]
        standing = list(best)
        while waiting:
            while waiting and len(standing) < ALIVE:
                if standing and self.over:
                    self.passed.update({c.label: replace(c, aside="the time was up") for c in waiting})
                    waiting.clear()
                    break
                # In time, as many as there is room for: most of it is imports, which keep one core busy.
                batch = waiting[: 1 if self.over else ALIVE - len(standing)]
                with ThreadPoolExecutor(cores()) as pool:
                    begun = list(pool.map(self._begun, batch, range(len(batch)), [bool(standing)] * len(batch)))
                standing += [c.label for c, runs in zip(batch, begun, strict=True) if runs]
                late = [c for c, runs in zip(batch, begun, strict=True) if runs is None]
                waiting = late + waiting[len(batch) :]
            standing = self._heat(standing)
        return standing

    def _begun(self, candidate: Candidate, number: int, others: bool) -> bool | None:
        """Whether one of a batch runs; None where it was not begun because the time was up."""
        if number and self.over:
            return None
        return self.enter(candidate, max(PATIENCE, self.until - time.monotonic()) if others else OPEN_SECONDS)

    def turns(self, best: list[str], registry: Registry) -> list[str]:
        """The best two once the knobs of the best are turned, one more at a time while that makes it faster."""
        known: set[str] = set()
        while best and not known.issuperset(best):
            asked = [self.entered[name][0] for name in best if name not in known]
            known.update(best)
            best = self.heats(best, [t for candidate in asked for t in turned(candidate, self.objective, registry)])
        return best

    def _heat(self, standing: list[str]) -> list[str]:
        """The best two of several, who stay alive and meet the next ones."""
        for rounds in RUNGS if self.objective != "memory" else RUNGS[:1]:
            if len(standing) <= 2:
                return standing
            running = self.run(standing, rounds)
            kept = survivors({name: self.shared(name, running) for name in running}, 2) if running else []
            self.leave([name for name in standing if name not in kept])
            standing = kept
        self.doubtful += standing[2:]
        self.leave(standing[2:])
        return standing[:2]

    def undecided(self, names: Sequence[str]) -> bool:
        """Whether somebody seems slower than the best of these, and might not be."""
        if len(names) < 2:
            return False
        scores = {name: self.shared(name, names) for name in names}
        best = scores.pop(leader(scores))
        found = [ratio(other, best) for other in scores.values()]
        return any(each.tied and each.median > NEAR for each in found)

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
        base: A config as data; hardware, backend and precision are found where they are left out. A precision narrower
            than fp32 that it leaves out may only win inside an accuracy budget that it states.
        seconds: After this no further candidate is begun.
        objective: What to be best in: the median latency of one request at a time, requests per second with all
            instances busy, or the bytes that the sessions take.
        mixed: Whether several adapters together are tried as well, where the model can be cut; see `paddock.mixing`.
        sample: What to run on; generated at the optimum of the shapes by default.

    Raises:
        ModelError: The model cannot be read.
        NotAvailable: No candidate could be deployed; lists why.
    """
    begun, load = time.monotonic(), busy_cores(LISTEN)
    tell = progress or (lambda message: None)
    registry = registry if registry is not None else Registry.discover()
    with Children() as children:
        format = open_model(model, registry, children).format
    plain = candidates(base, registry, format)
    with Contest(model, sample, memory=objective == "memory") as contest:
        race = _Race(contest, objective, begun + seconds, tell)
        best = race.heats([], plain)
        if not best:
            best = race.heats([], [replace(c, aside="") for c in plain if c.aside == LAST_RESORT])
        if not best:
            raise _none(race)
        best = race.turns(best, registry)
        together = _mixed(race, best, model, registry) if mixed and best else None
        if together is not None and together.label:
            best = [*best, together.label]
        finalists = _confirmed(race, best, plain)
        if not finalists:
            raise _none(race)  # each of them failed while it was measured
        found = _result(race, finalists, time.monotonic() - begun)
    load = max(load, busy_cores(LISTEN))
    busy = f"; others kept {load:.1f} of {cores()} cores busy, which favours few threads"
    reason = found.reason + (busy if load > BUSY * cores() else "")
    return replace(found, load=round(load, 2), reason=reason, mixed=together)


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
    """The finalists, measured in the same turns: the best two, the simplest of all that ran, and who was in doubt."""
    default = next(c for c in plain if (known := race.entered.get(c.label)) and known[1].opened is not None)
    finalists = list(best)
    for name in dict.fromkeys((default.label, *race.doubtful)):
        wanted = name == default.label or not race.over
        if wanted and name not in finalists and len(finalists) < ALIVE and race.enter(race.entered[name][0]):
            finalists.append(name)
    if len(finalists) == 1 or race.objective == "memory":
        return race.run(finalists, RUNGS[0])
    for _ in range(FINALS):
        finalists = race.run(finalists, FINAL)
        if not race.undecided(finalists):
            break
    return finalists


def _result(race: _Race, finalists: Sequence[str], seconds: float) -> Tuned:
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
    if any(passed.aside == NO_BUDGET for passed in race.passed.values()):
        reason += f"; narrower precisions were not tried: {NO_BUDGET}"
    rows = [race.tried(name, winner, tied) for name in race.entered]
    rows += [
        Tried(c.label, c.adapter, c.precision, dict(c.knobs), "not tried", c.aside)
        for c in race.passed.values()
        if c.label not in race.entered
    ]
    return Tuned(candidate.config, race.objective, reason, tuple(rows), round(seconds, 1))


def _none(race: _Race) -> NotAvailable:
    rows = [f"{name}: {c.error.problem}" for name, (_, c) in race.entered.items() if c.error is not None]
    rows += [f"{name}: {c.aside}" for name, c in race.passed.items() if name not in race.entered]
    return NotAvailable(
        "no candidate could be deployed", candidates=rows, remedy="`paddock doctor` says what each adapter needs"
    )
