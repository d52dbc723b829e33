"""What TensorRT tells while it builds, as one line that grows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import SupportsInt

from paddock_tensorrt.sdk import trt

WIDTH = 24
"""Characters of the bar."""


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Bar:
    """The share of a build that is done, from the phases that TensorRT starts, steps through and finishes.

    Phases nest: a step of one is done bit by bit as those within it are. TensorRT may tell from several threads.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._shown = ""
        self.failed: BaseException | None = None
        """What was raised while it was told: Ctrl-C, or what is wrong with whom it tells."""

    def hear(self, told: Callable[[], None]) -> bool:
        """`told()`, and whether all went well so far: TensorRT's bindings print what is raised through them, and go
        on."""
        try:
            told()
        except BaseException as error:
            self.failed = self.failed or error
        return self.failed is None

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase begins, of so many steps."""
        with self._lock:
            self._phases[phase] = _Phase(parent, max(1, steps))
            self._show(phase)

    def step(self, phase: str, step: int) -> None:
        """One step of a phase, counted from 0, is done."""
        with self._lock:
            if phase in self._phases:
                self._phases[phase].done = max(self._phases[phase].done, step + 1)
                self._show(phase)

    def finish(self, phase: str) -> None:
        """A phase is over, be it that not all of its steps were told."""
        with self._lock:
            self._phases.pop(phase, None)

    def share(self) -> float:
        """How much is done of what was started at the outermost: 0 to 1."""
        roots = [name for name, phase in self._phases.items() if phase.parent not in self._phases]
        return self._of(roots[0]) if roots else 0.0

    def _of(self, name: str) -> float:
        phase = self._phases[name]
        inner = [self._of(other) for other, found in self._phases.items() if found.parent == name and other != name]
        return min(1.0, (phase.done + (max(inner) if inner else 0.0)) / phase.steps)

    def _show(self, phase: str) -> None:
        share = self.share()
        filled = round(share * WIDTH)
        line = f"TensorRT: building {'#' * filled}{'.' * (WIDTH - filled)} {share:4.0%} {phase}"
        if line != self._shown:
            self._shown = line
            self._tell(line)


def monitor(bar: Bar) -> trt.IProgressMonitor:
    """The bar as what a build is given to tell."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: SupportsInt) -> None:
            bar.hear(lambda: bar.start(phase_name, parent_phase, int(num_steps)))

        def phase_finish(self, phase_name: str) -> None:
            bar.hear(lambda: bar.finish(phase_name))

        def step_complete(self, phase_name: str, step: SupportsInt) -> bool:
            return bar.hear(lambda: bar.step(phase_name, int(step)))  # False ends the build

    return Monitor()
