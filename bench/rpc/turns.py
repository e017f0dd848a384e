"""Taking turns: whoever is compared is measured again and again, one after another, and the pairs' ratios count."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def in_turn(runs: Mapping[K, Callable[[], V]], pairs: int) -> dict[K, list[V]]:
    """What each run measured, `pairs` times, each time in the other order."""
    measured: dict[K, list[V]] = {name: [] for name in runs}
    for turn in range(pairs):
        names = list(runs)
        for name in names if turn % 2 == 0 else reversed(names):
            measured[name].append(runs[name]())
    return measured


def better(peers: Mapping[K, Sequence[float]], *, more_is_better: bool) -> K:
    """The peer with the best median."""
    choose = max if more_is_better else min
    return choose(peers, key=lambda name: statistics.median(peers[name]))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the pairs' ratios."""
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
