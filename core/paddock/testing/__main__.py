"""`python -m paddock.testing`: ONNX's own backend node tests through Paddock, on the adapters named.

Ends with 1 where an answer is wrong that is not on the list of what the reference itself gets wrong, or where a case of
that list came out right; with 2 where it cannot begin.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from paddock.errors import PaddockError
from paddock.registry import Registry
from paddock.testing.cases import node_cases
from paddock.testing.known import stale, unexpected
from paddock.testing.matrix import as_json, show_matrix
from paddock.testing.nodes import Result, Settings, check_adapters, run_nodes


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the tests and prints the matrix; returns the exit status."""
    asked = _parser().parse_args(arguments)
    notes = Console(stderr=True)
    try:
        cases = node_cases(asked.only)
        registry = Registry.discover()
        adapters = check_adapters(registry, asked.adapter)
        chain = check_adapters(registry, [name for name in asked.chain.split(",") if name])
        settings = Settings(chain, asked.repair, asked.max_error)
        done, total = 0, len(cases) * len(adapters)

        def told(result: Result) -> None:
            nonlocal done
            done += 1
            if done % 100 == 0 or done == total:
                notes.print(f"{done} of {total}, at {result.case}", highlight=False)

        results = run_nodes(cases, adapters, settings, asked.workers, told)
        if asked.json is not None:
            asked.json.write_text(json.dumps(as_json(results, settings), indent=1) + "\n")
    except (PaddockError, OSError) as error:
        notes.print(str(error), style="red", markup=False, soft_wrap=True)
        return 2
    show_matrix(Console(), results)
    return 1 if unexpected(results) or stale(results) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m paddock.testing", description=__doc__)
    parser.add_argument("--adapter", action="append", required=True, help="hardware/backend under test; repeatable")
    parser.add_argument("--chain", default="", help="adapters that may help, in order, as in a,b")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="names of cases, as in 'test_*softmax*'")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every result here")
    parser.add_argument("--workers", type=_positive, default=2, help="processes side by side (default 2)")
    parser.add_argument("--max-error", type=float, help="Paddock's own budget; its default where left out")
    parser.add_argument("--no-repair", dest="repair", action="store_false", help="deploy without repair")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
