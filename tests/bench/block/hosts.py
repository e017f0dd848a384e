"""Hosts that use one volume of a SAN, each a process of its own: straight, or through gateways with one daemon."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.bench.block.disks import tmem_cli
from tests.bench.block.gateway import POOL, Gateway
from tests.bench.block.host import Played
from tests.bench.block.san import San, Served
from tests.bench.child import Child
from tests.bench.servers import Tmemd

_MEMORY = "512MiB"


@dataclass(frozen=True)
class Plan:
    """What the hosts do: the same trace each, one beginning so many seconds after the other."""

    image: Path
    trace: str
    arguments: tuple[int, ...]
    hosts: int = 1
    apart: float = 0.0
    quota: int = 0
    flags: tuple[str, ...] = ("--exclusive",)


@dataclass
class Outcome:
    """What came of it. Seconds are those of the hosts' own work, not of waiting for their turn."""

    played: list[Played]
    served: Served
    gateways_cpu: float = 0.0

    @property
    def seconds(self) -> float:
        """How long a host took, on average."""
        return statistics.fmean(each.seconds for each in self.played)

    @property
    def median_read(self) -> float:
        """Seconds of a read."""
        return statistics.median(taken for each in self.played for taken in each.reads)


def run(plan: Plan, *, cached: bool) -> Outcome:
    """Carry it out, on a copy of the volume where hosts write."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tmem-hosts-")))
        volume = home / "volume"
        shutil.copyfile(plan.image, volume)
        san = stack.enter_context(San(volume))
        sockets = [san.socket] * plan.hosts
        gateways: list[Gateway] = []
        if cached:
            daemon = stack.enter_context(Tmemd("--nbd=tcp:127.0.0.1:0", memory=_MEMORY))
            gateways = [_gateway(plan, san, daemon, home / str(n), stack) for n in range(plan.hosts)]
            if plan.quota:
                tmem_cli(daemon.address, "pool", "quota", POOL, str(plan.quota))
            sockets = [gateway.socket for gateway in gateways]
        children = [stack.enter_context(Child("tests.bench.block.host", socket)) for socket in sockets]
        played = _play(plan, children)
        cpu = sum(gateway.cpu_seconds() for gateway in gateways)
        for gateway in gateways:
            gateway.stop()
        outcome = Outcome(played, san.served(), cpu)
    if wrong := sum(each.wrong for each in played):
        raise RuntimeError(f"{wrong} reads did not give what the volume has")
    return outcome


def _gateway(plan: Plan, san: San, daemon: Tmemd, state: Path, stack: ExitStack) -> Gateway:
    state.mkdir()
    return stack.enter_context(Gateway(san.uri, daemon.address, state, *plan.flags))


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
