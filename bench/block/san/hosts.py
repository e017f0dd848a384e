"""Hosts that use one volume of a SAN, each a process of its own: straight, through gateways, or mere proxies."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

from bench.block.disks import NbdDaemon, NbdkitProxy, tmem_cli
from bench.block.san.gateway import POOL, Gateway
from bench.block.san.host import Played
from bench.block.san.volume import San, Served
from bench.lib.child import Child

SHARED = ("--shared", "--volume-id", "golden")
EXCLUSIVE = ("--exclusive",)

Beside = Callable[[NbdDaemon], AbstractContextManager[None]]


@dataclass(frozen=True)
class Plan:
    """What the hosts do: the same trace each, one beginning so many seconds after the other."""

    image: Path
    trace: str
    arguments: tuple[int, ...]
    hosts: int = 1
    apart: float = 0.0
    quota: int = 0
    flags: tuple[str, ...] = EXCLUSIVE


def _nothing(_daemon: NbdDaemon) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass
class Outcome:
    """What came of it. Seconds are those of the hosts' own work, not of waiting for their turn."""

    played: list[Played]
    served: Served
    san: str

    @property
    def seconds(self) -> float:
        """How long a host took, on average."""
        return statistics.fmean(each.seconds for each in self.played)

    @property
    def median_read(self) -> float:
        """Seconds of a read."""
        return statistics.median(taken for each in self.played for taken in each.reads)


def run(plan: Plan, *, cached: bool, proxied: bool = False, beside: Beside = _nothing) -> Outcome:
    """Carry it out on a copy of the volume, with what happens `beside` it on the daemon.

    `proxied`: where it is not cached, through an nbdkit for each host.
    """
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tmem-hosts-")))
        volume = home / "volume"
        shutil.copyfile(plan.image, volume)
        san = stack.enter_context(San(volume))
        sockets = [san.socket] * plan.hosts
        gateways: list[Gateway] = []
        if cached:
            daemon = stack.enter_context(NbdDaemon())
            gateways = _gateways(plan, san, daemon, home, stack)
            sockets = [gateway.socket for gateway in gateways]
            stack.enter_context(beside(daemon))
        elif proxied:
            sockets = [stack.enter_context(NbdkitProxy(san.socket)).socket for _ in sockets]
        children = [stack.enter_context(Child("bench.block.san.host", socket)) for socket in sockets]
        played = _play(plan, children)
        for gateway in gateways:
            gateway.stop()
        outcome = Outcome(played, san.served(), san.what)
    if wrong := sum(each.wrong for each in played):
        raise RuntimeError(f"{wrong} reads did not give what the volume has")
    return outcome


def _gateways(plan: Plan, san: San, daemon: NbdDaemon, home: Path, stack: ExitStack) -> list[Gateway]:
    kind = "--shared" if "--shared" in plan.flags else "--inclusive"
    quota = ("--quota", str(plan.quota)) if plan.quota else ()
    tmem_cli(daemon.address, "pool", "create", POOL, "--kind", "ephemeral", kind, *quota)
    gateways = []
    for number in range(plan.hosts):
        state = home / str(number)
        state.mkdir()
        gateways.append(stack.enter_context(Gateway(san.uri, daemon, state, *plan.flags)))
    return gateways


def _play(plan: Plan, children: list[Child]) -> list[Played]:
    order = {"trace": plan.trace, "arguments": plan.arguments, "image": str(plan.image)}
    for child in children:
        child.order(None)
        child.answer()
    begun = time.monotonic()
    for number, child in enumerate(children):
        time.sleep(max(begun + number * plan.apart - time.monotonic(), 0))
        child.order(order)
    return [Played(**child.answer()) for child in children]
