"""A gateway whose SAN goes away: what was asked waits for it, and what was kept of the volume is not believed after."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.block.lib import servers
from tests.block.lib.gateway import POOL, Cache, Gateway, cache, gateway
from tests.block.lib.protocol import Cmd, Err
from tests.block.lib.san import PAGES, SIZE, fill
from tests.lib.retry import eventually
from tests.lib.support import noise

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.block.lib.client import Client

PAGE = 4096
FLAGS = ("--trust-detach", "--max-delay=5", "--readahead=0")


class Volume:
    """A file that nbdkit serves at one address, whenever it is started."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "volume"
        fill(self.file)
        self._folder, self._log, self._running = folder, folder / "san.log", ExitStack()
        self.start()

    def start(self, *arguments: str) -> None:
        (self._folder / "backing.sock").unlink(missing_ok=True)
        (self._folder / "backing.pid").unlink(missing_ok=True)
        arguments = arguments or ("rdelay=50ms",)  # slower than the cache
        line = ["--filter=log", "--filter=delay", "file", os.fspath(self.file), f"logfile={self._log}", *arguments]
        self.address, self.pid = self._running.enter_context(servers.nbdkit(self._folder, *line, name="backing"))

    def begun(self, what: str) -> int:
        """Commands of a kind that it ever began with."""
        return self._log.read_text().count(f" {what} id=")

    def kill(self) -> None:
        servers.end(self.pid, signal.SIGKILL)

    def stop(self) -> None:
        self._running.close()


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    made = Volume(tmp_path)
    yield made
    made.stop()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Cache]:
    with cache(tmp_path) as started:
        yield started


@pytest.fixture
def attached(volume: Volume, running: Cache, tmp_path: Path) -> Iterator[Gateway]:
    with gateway(tmp_path, servers.uri(volume.address, ""), running.address, *FLAGS) as started:
        yield started


@pytest.fixture
def client(attached: Gateway) -> Iterator[Client]:
    with attached.client() as connected:
        yield connected


def hits(running: Cache) -> int:
    """Pages that the cache has given."""
    return int(running.tmem.json("stat", POOL)["stats"]["gets_hit"])


def warm(running: Cache, client: Client) -> None:
    """Have most of the volume read from the cache."""

    def most_hit() -> bool:
        before = hits(running)
        for cookie in [client.submit(Cmd.READ, at * 389 % PAGES * PAGE, PAGE) for at in range(PAGES)]:
            assert client.answer(cookie).error == Err.OK
        return hits(running) - before >= PAGES * 3 // 4

    eventually(most_hit)


def test_what_is_asked_while_the_san_is_away_is_answered_when_it_is_back(
    volume: Volume, attached: Gateway, client: Client
) -> None:
    expected = bytearray(volume.file.read_bytes())
    volume.kill()
    eventually(lambda: "the SAN is unreachable" in attached.told())
    reads = [client.submit(Cmd.READ, at * PAGE, PAGE) for at in range(8)]
    writes = [client.submit(Cmd.WRITE, (16 + at) * PAGE, PAGE, data=noise(at)) for at in range(8)]
    flush = client.submit(Cmd.FLUSH)
    volume.start()
    for at, cookie in enumerate(reads):
        answer = client.answer(cookie)
        assert (answer.error, answer.data) == (Err.OK, bytes(expected[at * PAGE : (at + 1) * PAGE]))
    for cookie in (*writes, flush):
        assert client.answer(cookie).error == Err.OK
    for at in range(8):
        expected[(16 + at) * PAGE : (17 + at) * PAGE] = noise(at)
    assert volume.file.read_bytes() == expected
    assert client.read(0, SIZE) == expected
    eventually(lambda: "the SAN is reachable again" in attached.told())


def test_commands_under_way_when_the_san_dies_are_carried_out_by_the_next(volume: Volume, client: Client) -> None:
    volume.kill()
    volume.start("rdelay=2", "wdelay=2")
    assert client.read(0, PAGE) == volume.file.read_bytes()[:PAGE]
    reads = [client.submit(Cmd.READ, (SIZE >> 1) + at * PAGE, PAGE) for at in range(4)]
    writes = [client.submit(Cmd.WRITE, at * PAGE, PAGE, data=noise(at)) for at in range(4)]
    eventually(lambda: volume.begun("Write") == 4)
    volume.kill()
    volume.start()
    for cookie in (*reads, *writes):
        assert client.answer(cookie).error == Err.OK
    assert volume.file.read_bytes()[: 4 * PAGE] == b"".join(noise(at) for at in range(4))


def test_a_volume_that_changed_meanwhile_is_not_read_from_the_cache(
    volume: Volume, running: Cache, client: Client
) -> None:
    warm(running, client)
    become_another(volume, client)


def test_a_volume_that_changed_meanwhile_is_not_read_from_what_was_read_ahead(
    volume: Volume, running: Cache, tmp_path: Path
) -> None:
    with gateway(tmp_path, servers.uri(volume.address, ""), running.address) as attached, attached.client() as client:
        for at in range(0, SIZE // 2, PAGE):
            client.read(at, PAGE)
        become_another(volume, client)


def become_another(volume: Volume, client: Client) -> None:
    """Have the volume be another when it comes back; reads must all be of that one."""
    volume.kill()
    volume.file.write_bytes(b"".join(noise(1000 + at) for at in range(PAGES)))
    volume.start()
    for _ in range(2):
        for index in range(PAGES):
            assert client.read(index * PAGE, PAGE) == noise(1000 + index)


def test_a_san_that_stays_away_fails_commands_until_it_is_back(volume: Volume, running: Cache, tmp_path: Path) -> None:
    uri = servers.uri(volume.address, "")
    with gateway(tmp_path, uri, running.address, "--san-timeout=1") as attached, attached.client() as client:
        volume.kill()
        begun = time.monotonic()
        cookies = [client.submit(Cmd.READ, 0, PAGE), client.submit(Cmd.WRITE, 0, PAGE, data=noise(1))]
        assert [client.answer(cookie).error for cookie in cookies] == [Err.IO] * 2
        assert time.monotonic() - begun >= 0.9
        volume.start()
        eventually(lambda: client.command(Cmd.READ, 0, PAGE).error == Err.OK)
        client.write(0, noise(2))
        assert volume.file.read_bytes()[:PAGE] == noise(2)


def test_what_the_san_acknowledged_and_lost_is_written_again(volume: Volume, client: Client) -> None:
    """As of a machine that loses power: what no flush covered is gone."""
    before = volume.file.read_bytes()
    for at, number in ((0, 1), (1, 2), (0, 3)):
        client.write(at * PAGE, noise(number))
    client.do(Cmd.WRITE_ZEROES, 2 * PAGE, PAGE)
    volume.kill()
    volume.file.write_bytes(before)
    volume.start()
    assert client.read(0, SIZE) == noise(3) + noise(2) + bytes(PAGE) + before[3 * PAGE :]
    client.do(Cmd.FLUSH)
    volume.kill()
    volume.file.write_bytes(before)
    volume.start()
    assert client.read(0, SIZE) == before, "what was flushed is the SAN's to keep"


def test_a_volume_of_another_size_is_another_volume(volume: Volume, running: Cache, tmp_path: Path) -> None:
    uri, before = servers.uri(volume.address, ""), volume.file.read_bytes()
    with gateway(tmp_path, uri, running.address, "--san-timeout=1") as attached, attached.client() as client:
        volume.kill()
        volume.file.write_bytes(noise(1))
        volume.start()
        assert client.command(Cmd.WRITE, 0, PAGE, data=noise(2)).error == Err.IO
        assert volume.file.read_bytes() == noise(1)
        eventually(lambda: f"the export had {SIZE} bytes, and has {PAGE} now" in attached.told())
        volume.kill()
        volume.file.write_bytes(before)
        volume.start()
        eventually(lambda: client.command(Cmd.READ, 0, PAGE).error == Err.OK)


def test_a_detach_after_an_outage_leaves_a_token_of_what_is_there(
    volume: Volume, running: Cache, attached: Gateway, client: Client
) -> None:
    warm(running, client)
    volume.kill()
    volume.start()
    warm(running, client)
    client.close()
    attached.detach()
    attached.start()
    assert "warm" in attached.said
    with attached.client() as again:
        assert again.read(0, SIZE) == volume.file.read_bytes()
