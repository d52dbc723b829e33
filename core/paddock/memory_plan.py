"""The memory plan as data: what each segment's sessions and Paddock's own buffers take, at least and at most."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a runtime takes beside the bytes that the graph tells: an upper bound, until a run was measured.

    Over the runtime as it is once its libraries are loaded, sessions take at most

    `process + instances * (session + nodes * node + weights * kept + largest intermediates * intermediates + workspace)
    + weights * loading`

    bytes, where weights and intermediates are those of the segment. An adapter states the figures that it was
    measured by (`Adapter.footprint`).
    """

    process: int
    """Bytes once in a process, when the first session is loaded and run: pools, kernels, caches."""
    session: int
    """Bytes for each session."""
    node: int = 0
    """Bytes for each node of each session."""
    kept: float = 1.0
    """Copies of the weights that each session keeps."""
    loading: float = 1.0
    """Further copies that are alive while one session is being loaded."""
    intermediates: float = 1.0
    """Bytes for each byte of the best layout of the intermediates; of their sum, where nothing is reused."""
    workspace: int = 0
    """Bytes of scratch that the kernels of one session take."""


@dataclass(frozen=True, slots=True)
class PlannedBuffer:
    """One buffer of a layout: `[lower, upper)` are positions in the order of execution, the rest is in bytes.

    `values` are the names of the values that live in it, one after another or as views of each other; `op` is the
    operator that makes the first.
    """

    values: tuple[str, ...]
    op: str
    lower: int
    upper: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class SegmentMemory:
    """Predicted bytes of one segment, every bounded dimension at its largest; of one instance unless said otherwise."""

    segment: int = 0
    adapter: str = ""
    kind: str = "host"
    """Where it lies: "host", or the device's own memory."""
    nodes: int = 0
    weights: int = 0
    arena: int = 0
    """Height of the best layout of the intermediates that was found."""
    bound: int = 0
    """The largest sum of intermediates alive at once: no layout is lower."""
    proven: bool = True
    """Whether `arena` is known to be the least possible."""
    unshared: int = 0
    """The sum of all intermediates: what they take where nothing is reused."""
    io: int = 0
    """What it reads from and gives to the outside."""
    unknown: int = 0
    """Values whose size the graph does not tell; they are in none of the sums."""
    planned_by: str = "backend"
    """Who lays out the intermediates: the "backend", "paddock", or "none" where nothing is reused."""
    instances: int = 1
    shares_weights: bool = False
    """Whether all instances live on one copy of the weights."""
    footprint: Footprint | None = None
    """None where the adapter does not tell: then nothing bounds it from above until it was measured."""
    layout: tuple[PlannedBuffer, ...] = ()
    """The intermediates' best layout: what a backend that plans its own cannot undercut by much."""
    isolated: bool = False
    """Whether each instance has a process of its own: then its inputs and outputs also lie in memory shared with it."""

    @property
    def copies(self) -> int:
        """Copies of the weights that the instances keep."""
        return 1 if self.shares_weights else self.instances

    @property
    def least(self) -> int:
        """Bytes that all its instances take at least.

        Weights, inputs and outputs alone: a backend may fuse operators, and never make the values between them.
        """
        return self.weights * self.copies + self.io * self.instances * (2 if self.isolated else 1)

    @property
    def most(self) -> int | None:
        """Bytes that all its instances take at most, by the adapter's own figures; None where sizes are unknown."""
        found = self.footprint
        if found is None or self.unknown:
            return None
        base = self.unshared if self.planned_by == "none" else self.arena
        each = found.session + found.node * self.nodes + found.workspace + self.io + round(found.intermediates * base)
        weights = self.copies * found.kept + found.loading
        shared = self.io + self.io // 4 if self.isolated else 0  # which has room to grow
        processes = self.instances if self.isolated else 1
        return found.process * processes + self.instances * (each + shared) + round(weights * self.weights)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Predicted bytes of one deployment: its segments', and what Paddock itself allocates on `kind`.

    `owned` is exact: the one allocation, in the host's memory, that holds what crosses borders between segments, and
    staging copies.
    `measured` is the peak of a run in a process of its own, over the loaded runtimes, where one was kept.
    """

    segments: tuple[SegmentMemory, ...] = ()
    owned: int = 0
    instances: int = 1
    kind: str = "host"
    limit: int | None = None
    measured: int | None = None

    @property
    def here(self) -> tuple[SegmentMemory, ...]:
        """The segments in memory of `kind`, where the budget is."""
        return tuple(segment for segment in self.segments if segment.kind == self.kind)

    @property
    def least(self) -> int:
        """Bytes that it takes at least; pages of Paddock's own memory that nobody writes take none."""
        return sum(segment.least for segment in self.here)

    @property
    def most(self) -> int | None:
        """Bytes that it takes at most; None where an adapter tells no bound, or sizes are unknown."""
        bounds = [segment.most for segment in self.here]
        owned = self.owned if self.kind == "host" else 0
        return None if None in bounds else owned + sum(bound for bound in bounds if bound is not None)

    @property
    def beside(self) -> int:
        """Bytes that the segments elsewhere take at least of the host's memory: fallbacks of a device."""
        return sum(segment.least for segment in self.segments if self.kind != "host" and segment.kind == "host")

    def within(self, budget: int) -> bool | None:
        """Whether it stays within `budget` bytes: as measured or, before that, by its ends; None if a run must tell."""
        if self.measured is not None:
            return self.measured <= budget
        if self.least > budget:
            return False
        return True if self.most is not None and self.most <= budget else None

    @property
    def unknown(self) -> int:
        """Values of unknown size, in none of the sums."""
        return sum(segment.unknown for segment in self.segments)
