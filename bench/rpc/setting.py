"""What a run measures with, and how a figure is made of what was measured."""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.lib.figures import Figure
from bench.lib.servers import Memcached, Redis, Server
from bench.rpc.pages import Pages
from bench.rpc.turns import better, ratio

PEERS: tuple[type[Redis | Memcached], ...] = (Redis, Memcached)


@dataclass(frozen=True)
class Setting:
    """Pages, how often, and how much."""

    pages: Pages
    pairs: int
    quick: bool
    held_pages: int
    calls: int
    gib: float

    def scaled(self, count: int) -> int:
        """A number of pages or calls, less of them for a quick look."""
        return count // 4 if self.quick else count


@contextlib.contextmanager
def peers() -> Iterator[dict[type[Server], Server]]:
    """The peers that this machine has, running; the others are skipped with a word."""
    with contextlib.ExitStack() as stack:
        running: dict[type[Server], Server] = {}
        for kind in PEERS:
            reason = kind.missing()
            if reason is None:
                running[kind] = stack.enter_context(kind())
            else:
                say(f"{kind.name}: skipped, {reason}")
        yield running


def against_better(
    setting: Setting,
    name: str,
    unit: str,
    ours: Sequence[float],
    theirs: Mapping[str, Sequence[float]],
    *,
    more_is_better: bool,
) -> Iterator[Figure]:
    """Ours against the better of the peers; nothing where there is no peer."""
    if not theirs:
        say(f"{name}: skipped, there is no peer")
        return
    peer = better(theirs, more_is_better=more_is_better)
    yield against(setting, name, unit, ours, peer, theirs[peer])


def against(
    setting: Setting, name: str, unit: str, ours: Sequence[float], peer: str, theirs: Sequence[float]
) -> Figure:
    """Ours against one peer, measured in turn."""
    medians = statistics.median(ours), statistics.median(theirs)
    return Figure(name, medians[0], unit, peer, medians[1], ratio(ours, theirs), setting.pages.name)


def say(text: str) -> None:
    """Progress, for whoever watches."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
