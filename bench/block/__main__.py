"""Measure the block front and the SAN gateway: `python -m bench.block [--quick] [--only PART]...`.

Lines of JSON go to standard output, the first of them naming machine and image; progress and, at the end, a table with
bounds go to standard error.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from bench.block import fio, image
from bench.block.bounds import BOUNDS
from bench.block.figures import blocks, held, random_pages, saved, streams
from bench.block.setting import Setting
from bench.lib import ending, machine
from bench.lib.figures import Figure, table
from bench.rpc.setting import say

_BY_FIO: dict[str, Callable[[Setting], Iterator[Figure]]] = {
    "random": random_pages.made,
    "real": random_pages.real,
    "blocks": blocks.reads,
    "polling": random_pages.polling,
    "connections": streams.connections,
    "sequential": streams.sequential,
}
_PARTS = _BY_FIO | {
    "held": held.measure,
    "boot": saved.boot,
    "squeezed": saved.squeezed,
    "zipf": saved.skewed,
    "cold": saved.cold,
}
"""Each group of figures."""


def _print(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _line(figure: Figure) -> dict[str, Any]:
    bound = BOUNDS.get(figure.name)
    return figure.line() | {"bound": None if bound is None else str(bound)}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.block", description="Measure the block front and the SAN gateway."
    )
    parser.add_argument("--quick", action="store_true", help="a small image and few pairs: a look, not a record")
    parser.add_argument("--pairs", type=int, default=5, help="how often each is measured in turn (5)")
    parser.add_argument("--only", action="append", choices=_PARTS, metavar="PART", help=", ".join(_PARTS))
    return parser.parse_args()


def _parts(only: list[str] | None) -> Iterator[str]:
    reason = fio.missing()
    for name in _PARTS:
        if only and name not in only:
            continue
        if name in _BY_FIO and reason is not None:
            say(f"{name}: skipped, {reason}")
        else:
            yield name


def main() -> int:
    """Make the image, measure, and show the table."""
    arguments = _arguments()
    quick: bool = arguments.quick
    say("making the image")
    setting = Setting(
        pairs=2 if quick else arguments.pairs,
        seconds=0.7 if quick else 1.5,
        quick=quick,
        image=image.make(64 if quick else 256),
    )
    _print({"machine": machine.describe(), "image": setting.image.describe()})
    figures = []
    for name in _parts(arguments.only):
        say(f"measuring {name}")
        for figure in _PARTS[name](setting):
            _print(_line(figure))
            figures.append(figure)
    say(f"\n{machine.in_words()}\n\n{table(figures, BOUNDS)}")
    return 0


if __name__ == "__main__":
    ending.run(main)
