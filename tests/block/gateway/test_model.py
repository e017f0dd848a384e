"""Never a stale block: users of a gateway work while everything around them fails, and every byte they read is right.

`TMEM_SAN_SEED` is the first seed, to see one again; `TMEM_SAN_SECONDS` keeps on with further seeds.
"""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING

import pytest

from tests.block.lib.gateway import POOL, Cache, Gateway, cache, gateway
from tests.block.lib.san_model import BLOCK, User, settle
from tests.lib.support import noise, page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SIZE = 4 << 20
USERS = 4
ROUNDS = 10
BOUND = 10.0
"""Seconds that nothing takes, however badly the cache is off; that is far above what the gateway promises."""

FIRST = int(os.environ.get("TMEM_SAN_SEED", "1"))
SECONDS = float(os.environ.get("TMEM_SAN_SECONDS", "0"))


class Model:
    """The disk as it must be, the processes, and what happens to them."""

    def __init__(self, volume: Path, running: Cache, san: Gateway, seed: int) -> None:
        self.volume, self.cache, self.gateway = volume, running, san
        self.dice = random.Random(seed)
        self.seed = seed
        self.disk = bytearray(volume.read_bytes())
        self.told: list[str] = []

    def round(self) -> None:
        """Users at work, something happens to the cache or the gateway, and then all of the disk is looked at."""
        names = [f"{self.seed}/{len(self.told)}/{which}" for which in range(USERS)]
        users = [User(self.gateway, self.disk, which, USERS, name) for which, name in enumerate(names)]
        for user in users:
            user.start()
        happening = self.dice.choice(self._happenings())
        self.told.append(happening.__name__)
        happening(users)
        for user in users:
            user.enough()
        self._between()
        self._look(users)

    def _happenings(self) -> list[Callable[[list[User]], None]]:
        cache = [self._nothing, self._cache_killed, self._cache_stopped, self._frozen, self._evicted, self._pool_gone]
        return [*cache, self._gateway_killed, self._gateway_killed, self._both_killed]

    def _work(self, users: list[User], steps: int = 40) -> None:
        """Until the users got on with their work."""
        goal, end = sum(user.steps for user in users) + steps, time.monotonic() + 30
        while sum(user.steps for user in users) < goal and any(user.is_alive() for user in users):
            assert time.monotonic() < end, (self, "the users do not get on")
            time.sleep(0.001)

    def _nothing(self, users: list[User]) -> None:
        self._work(users, 200)

    def _cache_killed(self, users: list[User]) -> None:
        self._work(users)
        self.cache.kill()
        self._work(users)
        self.cache.start()
        self._work(users, 100)

    def _cache_stopped(self, users: list[User]) -> None:
        self._work(users)
        self.cache.stop()
        self._work(users)
        self.cache.go_on()
        self._work(users, 100)

    def _frozen(self, users: list[User]) -> None:
        self.cache.tmem("pool", "freeze", POOL)
        self._work(users, 100)
        self.cache.tmem("pool", "thaw", POOL)
        self._work(users, 100)

    def _evicted(self, users: list[User]) -> None:
        self.cache.tmem("pool", "quota", POOL, "64KiB")
        self._work(users, 100)
        self.cache.tmem("pool", "quota", POOL, "32MiB")
        self._work(users, 100)

    def _pool_gone(self, users: list[User]) -> None:
        self.cache.tmem("pool", "rm", POOL, "--yes")
        self._work(users, 100)
        self.cache.make_pool()
        self._work(users, 100)

    def _gateway_killed(self, users: list[User]) -> None:
        self._work(users, 100)
        self.gateway.kill()

    def _both_killed(self, users: list[User]) -> None:
        self._work(users, 100)
        self.cache.kill()
        self.gateway.kill()
        self.cache.start()

    def _between(self) -> None:
        """The gateway is attached again where it was killed, and at times detached and attached where it was not."""
        if self.gateway.process.poll() is None:
            if self.dice.random() < 0.4:
                return
            self.gateway.detach()
            self.told.append("detached")
        if self.dice.random() < 0.5:
            self.told.append("changed behind its back")
            self._change_behind()
        self.gateway.start()

    def _change_behind(self) -> None:
        before = os.stat(self.volume)
        on_disk = self.volume.read_bytes()
        with self.volume.open("r+b") as file:
            for _ in range(self.dice.choice((1, 20))):
                at = self.dice.randrange(SIZE // BLOCK) * BLOCK + self.dice.choice((0, 4096))
                if on_disk[at : at + 4096] != self.disk[at : at + 4096]:
                    continue
                file.seek(at)
                file.write(data := noise(self.dice.randrange(1 << 30)))
                self.disk[at : at + 4096] = data
        if self.dice.random() < 0.5:
            os.utime(self.volume, ns=(before.st_atime_ns, before.st_mtime_ns))

    def _look(self, users: list[User]) -> None:
        with self.gateway.client() as client:
            for user in users:
                assert user.wrong is None, (self, user.wrong)
                assert user.slowest < BOUND, (self, user.slowest)
                if user.doubt:
                    read = client.read(user.doubt.offset, len(user.doubt.new))
                    assert settle(self.disk, user.doubt, read) is None, self
            for _ in range(2):
                for at in range(0, SIZE, 1 << 18):
                    assert client.read(at, 1 << 18) == self.disk[at : at + (1 << 18)], (self, at)
        assert self.volume.read_bytes() == self.disk, self

    def __repr__(self) -> str:
        return f"TMEM_SAN_SEED={self.seed}: {', '.join(self.told)}"


def seeds() -> Iterator[int]:
    end, seed = time.monotonic() + SECONDS, FIRST
    while seed == FIRST or time.monotonic() < end:
        yield seed
        seed += 1


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "volume"
    path.write_bytes(b"".join(page(index) for index in range(SIZE // 4096)))
    return path


def test_every_block_is_right_whatever_happens(tmp_path: Path, volume: Path) -> None:
    for seed in seeds():
        print(f"TMEM_SAN_SEED={seed}")
        with cache(tmp_path) as running, gateway(tmp_path, volume, running.address, "--exclusive") as san:
            model = Model(volume, running, san, seed)
            for _ in range(ROUNDS):
                model.round()
            print(model)
