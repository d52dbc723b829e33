"""The vendor's whole test file:

    class TestAcme(AdapterConformance):
        adapter = AcmeAdapter

Each check is a test of its own. A check that is known to fail stands in `expected` with the reason, strict: it fails
when it starts passing. `PADDOCK_CONFORMANCE=full` in the environment runs more sizes, runs and operators, and ONNX's
own node tests.
"""

from __future__ import annotations

import os
import unittest
from collections.abc import Mapping
from typing import Any, ClassVar

from paddock.errors import UsageError
from paddock.registry import Registry
from paddock.spi import Adapter
from paddock.testing.outcomes import Outcome, Result
from paddock.testing.runner import Runner, checks_for, chosen

VARIABLE = "PADDOCK_CONFORMANCE"


class AdapterConformance:
    """Base class of a vendor's tests under pytest: one adapter, held to all that it declares.

    The adapter's class has to be importable from another process: from the plugin, not from the test file.
    """

    adapter: ClassVar[type[Adapter]]
    expected: ClassVar[Mapping[str, str]] = {}
    """By check the reason why it fails."""
    only: ClassVar[tuple[str, ...]] = ()
    """Areas, or globs of checks; all by default."""
    _runner: ClassVar[Runner | None] = None

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """One test for each check; called by pytest."""
        if "check" in metafunc.fixturenames:
            table = checks_for(self.adapter, Registry.discover())
            metafunc.parametrize("check", [check.name for check in chosen(table, self.only, _quick())])

    @classmethod
    def teardown_class(cls) -> None:
        """Ends the process that the checks ran in; called by pytest."""
        runner, cls._runner = cls._runner, None
        if runner is not None:
            runner.close()

    def test_expectations_name_checks(self) -> None:
        """What is expected to fail is a check that there is."""
        unknown = sorted(set(self.expected) - set(self._own_runner().table(self.adapter)))
        assert not unknown, f"expected names no check: {', '.join(unknown)}"

    def test_conforms(self, check: str) -> None:
        """One check; skipped where it does not apply, with the reason."""
        runner = self._own_runner()
        result = runner.run(self.adapter, runner.table(self.adapter)[check])
        reason = self.expected.get(check)
        if result.outcome is Outcome.SKIPPED:
            raise unittest.SkipTest(result.reason)
        if result.outcome.bad and reason is not None:
            _expected_failure(f"{reason} ({result.outcome}: {result.reason})")
        assert reason is None or result.outcome.bad, f"{check} passes, and is expected to fail ({reason}): take it off"
        assert not result.outcome.bad, told(result)

    @classmethod
    def _own_runner(cls) -> Runner:
        if cls._runner is None:
            cls._runner = Runner(_quick())
        return cls._runner


def _quick() -> bool:
    asked = os.environ.get(VARIABLE, "quick")
    if asked not in ("quick", "full"):
        raise UsageError(f"is {asked!r}", where=VARIABLE, candidates=("quick", "full"))
    return asked == "quick"


def told(result: Result) -> str:
    """A result in a line: what was promised, and what came of it."""
    return f"{result.check} {result.outcome}: {result.reason}; promised: {result.promise}"


def _expected_failure(reason: str) -> None:
    import pytest

    pytest.xfail(reason)
