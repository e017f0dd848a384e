"""Measure the daemon and its clients: `python -m bench.rpc [--quick] [--only FIGURE]...`.

Lines of JSON go to standard output, the first of them naming machine and corpus; progress and, at the end, a table with
bounds go to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from bench.lib import corpus as corpora
from bench.lib import ending, machine
from bench.lib.figures import Figure, table
from bench.rpc.bounds import BOUNDS
from bench.rpc.figures import batches, crowd, front, held, latency, restart, soak, tasks
from bench.rpc.pages import Pages
from bench.rpc.setting import Setting, say

_FIGURES: dict[str, Callable[[Setting], Iterator[Figure]]] = {
    "batches": batches.measure,
    "tasks": tasks.measure,
    "held": held.measure,
    "latency": latency.measure,
    "front": front.measure,
    "crowd": crowd.measure,
    "workers": crowd.workers,
    "restart": restart.measure,
    "soak": soak.measure,
}
"""Each group of figures."""


def _setting(arguments: argparse.Namespace, corpus: corpora.Corpus) -> Setting:
    quick: bool = arguments.quick
    return Setting(
        pages=Pages.of(corpus),
        pairs=3 if quick else arguments.pairs,
        quick=quick,
        held_pages=int(os.environ.get("PAGES", 32_768 if quick else 524_288)),
        calls=int(os.environ.get("CALLS", 40_000 if quick else 300_000)),
        gib=float(os.environ.get("GIB", 0.25 if quick else 2)),
    )


def _print(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _line(figure: Figure) -> dict[str, Any]:
    bound = BOUNDS.get(figure.name)
    return figure.line() | {"bound": None if bound is None else str(bound)}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.rpc",
        description="Measure the daemon and its clients.",
        epilog="Environment: PAGES that `held` fills the servers with, CALLS of `soak`, GIB of pages for `restart`.",
    )
    parser.add_argument("--quick", action="store_true", help="few pages and pairs: a look, not a record")
    parser.add_argument("--pairs", type=int, default=7, help="how often each is measured in turn (7)")
    parser.add_argument("--corpus", choices=corpora.NAMES, default="libraries", help="the pages that are sent")
    parser.add_argument("--only", action="append", choices=_FIGURES, metavar="FIGURE", help=", ".join(_FIGURES))
    return parser.parse_args()


def main() -> int:
    """Make the corpus, measure, and show the table."""
    arguments = _arguments()
    say(f"making the corpus of {arguments.corpus}")
    corpus = corpora.make(arguments.corpus, corpora.QUICK_MEGABYTES if arguments.quick else corpora.MEGABYTES)
    setting = _setting(arguments, corpus)
    _print({"machine": machine.describe(), "corpora": [corpus.describe()]})
    figures = []
    for name in [name for name in _FIGURES if not arguments.only or name in arguments.only]:
        say(f"measuring {name}")
        for figure in _FIGURES[name](setting):
            _print(_line(figure))
            figures.append(figure)
    say(f"\n{machine.in_words()}\n\n{table(figures, BOUNDS)}")
    return 0


if __name__ == "__main__":
    ending.run(main)
