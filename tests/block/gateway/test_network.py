"""A gateway whose cache is across a network with faults: reads and writes go on, and no block is ever stale.

`TMEM_OUTAGE_SECONDS` is how long the cache is out of reach at least; without it, until the gateway has noticed.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import TYPE_CHECKING

import pytest

from tests.block.gateway.test_gateway import BOUND, PAGE, read_through, spared, warm
from tests.block.gateway.test_model import ROUNDS, SIZE, Model, seeds
from tests.block.lib.gateway import Gateway, gateway
from tests.block.lib.san import PAGES, San, san
from tests.faults.link import Link, link
from tests.lib.daemon import Daemon
from tests.lib.retry import eventually
from tests.lib.support import noise, page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.block.lib.client import Client
    from tests.block.lib.san_model import User

PORT = 10809
SECONDS = float(os.environ.get("TMEM_OUTAGE_SECONDS", "0"))


@pytest.fixture
def network() -> Iterator[Link]:
    """A tmemd at the far end."""
    with link() as made:
        running = Daemon(f"--nbd=tcp:{made.far_address}:{PORT}", "--insecure", within=made.inside(made.far))
        try:
            yield made
        finally:
            running.kill()


@pytest.fixture
def backing(tmp_path: Path) -> Iterator[San]:
    with san(tmp_path, "2ms") as started:
        yield started


def cache(network: Link) -> str:
    return f"{network.far_address}:{PORT}"


class Times:
    """How long requests took."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._taken: list[float] = []

    def take(self, work: Callable[[], None]) -> None:
        start = time.monotonic()
        work()
        self._taken.append(time.monotonic() - start)

    def check(self) -> None:
        """All within the bound, most of them about as fast as the SAN. Said in milliseconds."""
        ordered = sorted(self._taken)
        median, late = (1000 * ordered[int(len(ordered) * part)] for part in (0.5, 0.99))
        print(f"{self._what}: {len(ordered)}, median {median:.1f}, p99 {late:.1f}, most {1000 * ordered[-1]:.1f} ms")
        assert ordered[-1] < BOUND
        assert statistics.median(ordered) < 0.1


class Work:
    """Reads of all the disk, one after the other, and writes of every fifth page as they come by."""

    def __init__(self, client: Client, expected: bytearray) -> None:
        self._client, self._expected = client, expected
        self.reads, self.writes = Times("reads"), Times("writes")
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        at = self.steps * 389 % PAGES * PAGE
        if self.steps % 5 == 0:
            data = noise(self.steps)
            self._expected[at : at + PAGE] = data
            self.writes.take(lambda: self._client.write(at, data))
        self.reads.take(lambda: self._right(at))

    def _right(self, at: int) -> None:
        assert self._client.read(at, PAGE) == self._expected[at : at + PAGE]


def test_a_cache_that_is_out_of_reach_for_long(network: Link, backing: San, tmp_path: Path) -> None:
    near = network.inside(network.near)
    flags = ("--exclusive", "--max-delay=0.02")
    with (
        gateway(tmp_path, backing.uri, cache(network), *flags, within=near) as attached,
        attached.client() as client,
    ):
        warm(client, backing)
        network.cut, cut = True, time.monotonic()
        work = Work(client, bytearray(backing.volume.read_bytes()))
        while "the cache is not used" not in attached.told() or time.monotonic() < cut + SECONDS or work.steps < PAGES:
            work.step()
            assert time.monotonic() < cut + SECONDS + 60, attached.told()
        work.reads.check()
        work.writes.check()
        network.cut = False
        eventually(lambda: spared(client, backing) > 0.9)
        for _ in range(2):
            assert read_through(client) == work._expected == backing.volume.read_bytes()
        eventually(lambda: attached.told().endswith("the cache is used\n"))


class NetworkModel(Model):
    """The same users as of any gateway; what happens, happens to the network."""

    def __init__(self, volume: Path, network: Link, gateway: Gateway, seed: int) -> None:
        super().__init__(volume, None, gateway, seed)  # type: ignore[arg-type]
        self._network = network

    def _happenings(self) -> list[Callable[[list[User]], None]]:
        return [self._nothing, self._delay, self._loss, self._disorder, self._cut, self._cuts, self._gateway_killed]

    def _delay(self, users: list[User]) -> None:
        self._with(users, delay=self.dice.choice((0.001, 0.01, 0.1)))

    def _loss(self, users: list[User]) -> None:
        self._with(users, loss=self.dice.choice((0.01, 0.1, 0.3)))

    def _disorder(self, users: list[User]) -> None:
        self._with(users, jitter=0.02, duplicates=0.2, loss=self.dice.choice((0.0, 0.02)))

    def _cut(self, users: list[User]) -> None:
        self._with(users, cut=True)

    def _cuts(self, users: list[User]) -> None:
        for _ in range(5):
            self._with(users, 20, cut=True)

    def _with(self, users: list[User], steps: int = 150, **faults: float) -> None:
        """Users at work before, during and after."""
        self._work(users, steps)
        before = {name: getattr(self._network, name) for name in faults}
        vars(self._network).update(faults)
        self._work(users, steps)
        vars(self._network).update(before)
        self._work(users, steps)


def test_every_block_is_right_whatever_the_network_does(network: Link, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.write_bytes(b"".join(page(index) for index in range(SIZE // PAGE)))
    near = network.inside(network.near)
    for seed in seeds():
        with gateway(tmp_path, volume, cache(network), "--exclusive", within=near) as attached:
            model = NetworkModel(volume, network, attached, seed)
            for _ in range(ROUNDS):
                model.round()
            print(model)
