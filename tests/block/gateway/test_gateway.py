"""The SAN gateway, one promise at a time: warm and cold, shared and exclusive, and no harm while the cache is off."""

from __future__ import annotations

import json
import os
import statistics
import time
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.block.lib.gateway import POOL, Cache, cache, gateway
from tests.block.lib.protocol import Can, Cmd, Err
from tests.block.lib.san import PAGES, SIZE, San, fill, san
from tests.block.lib.servers import nbdkit, uri
from tests.lib.retry import eventually
from tests.lib.support import noise, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.block.lib.client import Client

PAGE = 4096
BOUND = 5.0
"""Seconds in which every read is answered, on a machine however slow; the gateway itself promises far less."""
PATIENT = "--max-delay=2"
"""For tests of what is cached: on a slow machine too the cache is waited for."""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Cache]:
    with cache(tmp_path) as started:
        yield started


@pytest.fixture
def backing(tmp_path: Path) -> Iterator[San]:
    with san(tmp_path, "10ms") as started:
        yield started


def read_through(client: Client, size: int = PAGE) -> bytes:
    """The whole disk, in no order that looks like a scan; every read within its bound."""
    count, data = SIZE // size, bytearray(SIZE)
    for at in (number * 389 % count * size for number in range(count)):
        start = time.monotonic()
        data[at : at + size] = client.read(at, size)
        assert time.monotonic() - start < BOUND
    return bytes(data)


def spared(client: Client, backing: San) -> float:
    """Of what a client reads, the part that the SAN was not asked for."""
    backing.reads()
    assert read_through(client, 4 * PAGE) == backing.volume.read_bytes()
    return 1 - backing.reads() / SIZE


def warm(client: Client, backing: San) -> None:
    """Read until the cache has it all but for what is on its way."""
    eventually(lambda: spared(client, backing) > 0.9)


def test_what_was_read_once_is_not_read_again(running: Cache, backing: San, tmp_path: Path) -> None:
    flags = ("--exclusive", PATIENT)
    with gateway(tmp_path, backing.uri, running.address, *flags) as attached, attached.client() as client:
        assert client.export.size == SIZE
        warm(client, backing)


def test_writes_are_on_the_san_when_they_are_answered(running: Cache, backing: San, tmp_path: Path) -> None:
    with gateway(tmp_path, backing.uri, running.address, "--exclusive") as attached, attached.client() as client:
        warm(client, backing)
        expected = bytearray(backing.volume.read_bytes())
        for step, (offset, length) in enumerate(
            [(0, PAGE), (5000, 100), (PAGE - 1, 2), (3 * PAGE, 9 * PAGE), (SIZE - 7, 7)]
        ):
            data = noise(step, 10 * PAGE)[:length]
            client.write(offset, data)
            expected[offset : offset + length] = data
            assert backing.volume.read_bytes() == expected
            assert client.read(0, SIZE) == expected
        client.do(Cmd.WRITE_ZEROES, 100 * PAGE, 3 * PAGE)
        assert client.read(100 * PAGE, 3 * PAGE) == bytes(3 * PAGE)
        client.do(Cmd.FLUSH)


def test_an_orderly_detach_keeps_the_cache_warm(running: Cache, backing: San, tmp_path: Path) -> None:
    with gateway(tmp_path, backing.uri, running.address, "--exclusive", "--trust-detach", PATIENT) as attached:
        with attached.client() as client:
            warm(client, backing)
        attached.detach()
        attached.start()
        with attached.client() as client:
            assert spared(client, backing) > 0.5
        attached.kill()
        attached.start()
        with attached.client() as client:
            assert spared(client, backing) < 0.5


@pytest.mark.parametrize("how", ["changed", "its times put back", "shrunk and grown", "replaced", "killed"])
def test_a_volume_that_may_have_changed_starts_cold(running: Cache, tmp_path: Path, how: str) -> None:
    volume = tmp_path / "volume"
    fill(volume)
    with gateway(tmp_path, volume, running.address, "--exclusive") as attached:
        with attached.client() as client:
            held(running, client)
        if how == "killed":
            attached.kill()
        else:
            attached.detach()
        _change(volume, how)
        attached.start()
        with attached.client() as client:
            assert read_through(client) == volume.read_bytes()


def test_a_token_is_used_once(running: Cache, tmp_path: Path) -> None:
    """Detached in order, attached, killed, changed while nobody looked: the older token does not count again."""
    volume = tmp_path / "volume"
    fill(volume)
    with gateway(tmp_path, volume, running.address, "--exclusive") as attached:
        with attached.client() as client:
            held(running, client)
        attached.detach()
        times = os.stat(volume)
        attached.start()
        with attached.client() as client:
            client.write(0, noise(5))
        attached.kill()
        with volume.open("r+b") as file:
            file.write(noise(6))
        os.utime(volume, ns=(times.st_atime_ns, times.st_mtime_ns))
        attached.start()
        with attached.client() as client:
            assert read_through(client) == volume.read_bytes()


@pytest.mark.parametrize("again", ["it goes on", "the gateway is killed", "both are killed"])
def test_writes_while_the_cache_is_away_are_not_forgotten(running: Cache, tmp_path: Path, again: str) -> None:
    volume = tmp_path / "volume"
    fill(volume)
    with gateway(tmp_path, volume, running.address, "--exclusive") as attached:
        with attached.client() as client:
            held(running, client)
            running.stop()
            for index in range(0, PAGES, 3):
                client.write(index * PAGE, noise(index))
            assert read_through(client) == volume.read_bytes()
            if again == "it goes on":
                running.go_on()
                for _ in range(3):
                    assert read_through(client) == volume.read_bytes()
                return
        attached.kill()
        running.go_on()
        if again == "both are killed":
            running.kill()
            running.start()
        attached.start()
        with attached.client() as client:
            for _ in range(3):
                assert read_through(client) == volume.read_bytes()


def test_a_stopped_cache_costs_a_bounded_delay(running: Cache, backing: San, tmp_path: Path) -> None:
    with gateway(tmp_path, backing.uri, running.address, "--exclusive") as attached, attached.client() as client:
        warm(client, backing)
        running.stop()
        times = []
        for index in range(200):
            start = time.monotonic()
            assert len(client.read(index * PAGE, PAGE)) == PAGE
            times.append(time.monotonic() - start)
        assert max(times) < BOUND
        assert statistics.median(times) < 0.1
        running.go_on()
        warm(client, backing)


def test_a_cache_that_dies_and_comes_back_is_used_again(running: Cache, backing: San, tmp_path: Path) -> None:
    with gateway(tmp_path, backing.uri, running.address, "--exclusive") as attached, attached.client() as client:
        warm(client, backing)
        running.kill()
        assert read_through(client) == backing.volume.read_bytes()
        running.start()
        warm(client, backing)


def test_a_gateway_needs_no_cache(backing: San, tmp_path: Path) -> None:
    with (
        gateway(tmp_path, backing.uri, f"unix:{tmp_path}/nobody", "--exclusive") as attached,
        attached.client() as client,
    ):
        assert read_through(client) == backing.volume.read_bytes()
        client.write(0, noise(1))
        assert client.read(0, PAGE) == noise(1) == backing.volume.read_bytes()[:PAGE]


@pytest.mark.parametrize("how", ["frozen", "no room", "gone"])
def test_a_cache_that_takes_nothing(running: Cache, backing: San, tmp_path: Path, how: str) -> None:
    with gateway(tmp_path, backing.uri, running.address, "--exclusive") as attached, attached.client() as client:
        warm(client, backing)
        match how:
            case "frozen":
                running.tmem("pool", "freeze", POOL)
            case "no room":
                running.tmem("pool", "quota", POOL, "4KiB")
            case "gone":
                running.tmem("pool", "rm", POOL, "--yes")
        for index in range(0, PAGES, 5):
            client.write(index * PAGE, noise(index))
        for _ in range(2):
            assert read_through(client) == backing.volume.read_bytes()


def test_hosts_share_what_one_of_them_read(tmp_path: Path) -> None:
    """The boot storm: three hosts, one image, and a SAN that is asked about once."""
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    with cache(tmp_path, "--shared") as running, san(tmp_path, "10ms") as backing:
        expected, flags = backing.volume.read_bytes(), ("--shared", "--volume-id=image", PATIENT)
        with gateway(folders[0], backing.uri, running.address, *flags) as first, first.client() as client:
            assert Can.READ_ONLY in client.export.can
            assert client.command(Cmd.WRITE, 0, PAGE, data=noise(1)).error == Err.PERM
            warm(client, backing)

            def new_host(folder: Path) -> bool:
                """Whether it is spared what the first has read; where the machine stood still meanwhile, another is."""
                with gateway(folder, backing.uri, running.address, *flags) as other, other.client() as reader:
                    return spared(reader, backing) > 0.8

            for folder in folders[1:]:
                eventually(partial(new_host, folder))
        assert backing.volume.read_bytes() == expected


def test_a_second_gateway_fences_the_first(running: Cache, tmp_path: Path) -> None:
    """A host that was thought dead writes on; what it does to the cache is not seen by the host that took over."""
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    volume = tmp_path / "volume"
    fill(volume)
    with ExitStack() as stack:
        ways = [stack.enter_context(nbdkit(folder, "file", os.fspath(volume)))[0] for folder in folders]
        old, new = (
            stack.enter_context(gateway(folder, uri(way, ""), running.address, "--exclusive"))
            for folder, way in zip(folders, ways, strict=True)
        )
        slow = stack.enter_context(old.client())
        held(running, slow)
        client = stack.enter_context(new.client())
        held(running, client)
        for index in range(0, PAGES, 7):
            client.write(index * PAGE, noise(index))
            slow.read(index * PAGE, PAGE)
        for _ in range(2):
            assert read_through(client) == volume.read_bytes()


def held(running: Cache, client: Client) -> None:
    """Read until the cache holds most of the disk, or does not want to: a file here may be the faster one."""
    for _ in range(20):
        read_through(client)
        if cached(running) > PAGES * 9 // 10:
            return


def cached(running: Cache) -> int:
    """Pages in the pool."""
    return _stat(running, "pages")


def _stat(running: Cache, name: str) -> int:
    said = running.tmem.run("stat", POOL, "--json")
    return int(json.loads(said.stdout)["stats"][name]) if said.exit_code == 0 else 0


def _change(volume: Path, how: str) -> None:
    before = os.stat(volume)
    match how:
        case "changed" | "its times put back" | "killed":
            with volume.open("r+b") as file:
                for index in range(0, PAGES, 2):
                    file.seek(index * PAGE)
                    file.write(noise(index))
        case "shrunk and grown":
            os.truncate(volume, SIZE // 2)
            os.truncate(volume, SIZE)
        case "replaced":
            other = volume.with_suffix(".new")
            other.write_bytes(run(5000, PAGES // 8) * 8)
            other.replace(volume)
    if how != "changed":
        os.utime(volume, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_blocks_are_as_the_san_has_them(running: Cache, tmp_path: Path) -> None:
    """Clients are told of the SAN's smallest block; what the gateway asks by itself has its sizes, too."""
    block, volume = 65536, tmp_path / "volume"
    fill(volume)
    sizes = "blocksize-minimum=64K", "blocksize-preferred=64K", "blocksize-maximum=128K", "blocksize-error-policy=error"
    with (
        nbdkit(tmp_path, "--filter=blocksize-policy", "file", os.fspath(volume), *sizes) as (address, _),
        gateway(tmp_path, uri(address, ""), running.address, "--exclusive", "--trust-detach", PATIENT) as attached,
    ):
        with attached.client() as client:
            assert client.export.blocks is not None
            assert client.export.blocks[:2] == (block, block)
            assert client.command(Cmd.WRITE, 0, PAGE, data=noise(1)).error == Err.INVAL
            for turn in range(3):
                data = noise(turn) * (8 * block // PAGE)
                client.write(block, data)
                assert client.read(0, SIZE) == volume.read_bytes()
                assert client.read(block, len(data)) == data
                for at in range(0, SIZE, block):
                    assert client.read(at, block) == volume.read_bytes()[at : at + block]
            client.do(Cmd.WRITE_ZEROES, 0, 4 * block)
            assert client.read(0, 4 * block) == bytes(4 * block)
        attached.detach()
        assert "next start is warm" in attached.told()
