"""Whose a volume is, however it is named: an attach voids every token of it, and two gateways do not write to one."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.block.lib.gateway import POOL, Cache, cache, gateway, refused
from tests.block.lib.handshake import opened
from tests.block.lib.protocol import Cmd
from tests.block.lib.servers import program
from tests.block.lib.stream import PATIENCE
from tests.lib.retry import eventually
from tests.lib.support import noise

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = 4096
SIZE = 16 << 20
AT = 5 * PAGE
"""Where it is written: no sample of the volume has it."""
FLAGS = ("--exclusive", "--trust-detach", "--max-delay=2")


@dataclass
class Host:
    """A tmemd with a volume, which is also where it is cached, and a second place for that."""

    folder: Path
    cache: Cache
    other: Cache

    @property
    def port(self) -> str:
        return self.cache.daemon._said(r"exports on .*tcp:127\.0\.0\.1:(\d+)")

    def spelled(self, how: str) -> str:
        """A way to the volume."""
        return {
            "tcp": f"nbd://127.0.0.1:{self.port}/volume",
            "name": f"nbd://localhost:{self.port}/volume",
            "encoded": f"nbd://127.0.0.1:{self.port}/%76olume",
            "mapped": f"nbd://[::ffff:127.0.0.1]:{self.port}/volume",
            "socket": f"nbd+unix:///volume?socket={self.folder}/cache.sock",
        }[how]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("host")
    (folder / "other").mkdir()
    with cache(folder, flags=("--nbd=tcp:127.0.0.1:0",)) as first, cache(folder / "other") as second:
        first.tmem("export", "create", "volume", "--size", SIZE, "--multi-conn")
        first.tmem("pool", "create", "elsewhere", "--kind=ephemeral", "--inclusive")
        yield Host(folder, first, second)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A file, and a loop device that has it."""
    volume = tmp_path / "volume"
    volume.write_bytes(noise(1) * (SIZE // PAGE))
    made = subprocess.run(
        [program("losetup"), "--find", "--show", volume], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    yield volume, made.stdout.strip()
    subprocess.run([program("losetup"), "--detach", made.stdout.strip()], timeout=PATIENCE, check=True)


def fill(folder: Path, backing: str, where: Cache) -> None:
    """Read a page through a gateway until it is cached, and end well."""
    with gateway(folder, backing, where.address, *FLAGS) as attached:
        before = _pages(where)
        with attached.client() as client:
            eventually(lambda: client.read(AT, PAGE) != b"" and _pages(where) > before)
        attached.detach()


def write(folder: Path, backing: str, where: Cache, *flags: str) -> None:
    """Write the page through a gateway, and end well."""
    with gateway(folder, backing, where.address, *FLAGS, *flags) as attached:
        with attached.client() as client:
            client.write(AT, noise(7))
            client.do(Cmd.FLUSH)
        attached.detach()


def look(folder: Path, backing: str, where: Cache) -> tuple[bool, bytes]:
    """Whether a gateway starts warm, and the page as it gives it."""
    with gateway(folder, backing, where.address, *FLAGS) as attached:
        with attached.client() as client:
            client.read(0, PAGE)
            page = client.read(AT, PAGE)
        attached.detach()
        return ", warm)" in attached.said, page


def _pages(where: Cache) -> int:
    return int(where.tmem.json("stat", POOL)["stats"]["pages"])


def test_nobody_in_between_leaves_it_warm(host: Host, tmp_path: Path) -> None:
    fill(tmp_path, host.spelled("tcp"), host.cache)
    assert look(tmp_path, host.spelled("tcp"), host.cache)[0]


@pytest.mark.parametrize(
    "between", ["pool", "server", "state", "page size", "name", "encoded", "mapped", "socket", "symlink"]
)
def test_an_attach_voids_every_token_of_the_volume(host: Host, tmp_path: Path, between: str) -> None:
    with opened(f"unix:{host.folder}/cache.sock", "volume", contexts=()) as client:
        client.write(AT, noise(3))
    fill(tmp_path, host.spelled("tcp"), host.cache)
    way, where, flags = host.spelled("tcp"), host.cache, ["--pool=elsewhere"]
    match between:
        case "pool":
            pass
        case "server":
            where, flags = host.other, []
        case "state":
            flags = [f"--state={tmp_path}/elsewhere"]
        case "page size":
            flags = ["--pool=large", "--page-size=8192"]
        case "symlink":
            link = tmp_path / "link.sock"
            link.symlink_to(host.folder / "cache.sock")
            way = f"nbd+unix:///volume?socket={link}"
        case _:
            way = host.spelled(between)
    write(tmp_path, way, where, *flags)
    assert look(tmp_path, host.spelled("tcp"), host.cache) == (False, noise(7))


@pytest.mark.parametrize("between", ["another node", "the file", "no gateway", "nobody"])
def test_a_device_tells_that_it_was_written_to(
    host: Host, tmp_path: Path, device: tuple[Path, str], between: str
) -> None:
    volume, loop = device
    fill(tmp_path, loop, host.cache)
    match between:
        case "another node":
            write(tmp_path, _node(tmp_path, loop), host.other)
        case "the file":
            write(tmp_path, os.fspath(volume), host.other)
            subprocess.run([program("blockdev"), "--flushbufs", loop], check=True, timeout=PATIENCE)
        case "no gateway":
            with open(loop, "r+b", buffering=0) as raw:
                os.pwrite(raw.fileno(), noise(7), AT)
    expected = (True, noise(1)) if between == "nobody" else (False, noise(7))
    assert look(tmp_path, loop, host.cache) == expected


@pytest.mark.parametrize("how", ["same", "hard link", "symlink", "relative", "device", "node"])
def test_a_second_gateway_of_a_volume_does_not_start(
    host: Host, tmp_path: Path, how: str, request: pytest.FixtureRequest
) -> None:
    if how in ("device", "node"):
        volume, loop = request.getfixturevalue("device")
    else:
        volume = tmp_path / "volume"
        volume.write_bytes(noise(1) * 64)
    first = os.fspath(volume)
    match how:
        case "same":
            second = first
        case "hard link":
            second = f"{first}.hard"
            os.link(first, second)
        case "symlink":
            second = f"{first}.soft"
            os.symlink(first, second)
        case "relative":
            second = os.path.relpath(first)
        case "device":
            second = loop
        case "node":
            first, second = loop, _node(tmp_path, loop)
    _one_at_a_time(host, tmp_path, first, second)


@pytest.mark.parametrize("how", ["tcp", "name", "mapped"])
def test_a_second_gateway_of_an_export_does_not_start(host: Host, tmp_path: Path, how: str) -> None:
    _one_at_a_time(host, tmp_path, host.spelled("tcp"), host.spelled(how))


def _one_at_a_time(host: Host, folder: Path, first: str, second: str) -> None:
    other = folder / "second"
    other.mkdir()
    with gateway(folder, first, host.cache.address, "--exclusive") as running:
        for kind in (["--exclusive"], ["--shared", "--volume-id=x"]):
            said = refused(other, second, host.other.address, *kind)
            assert second in said
            assert f"process {running.pid}" in said
        running.kill()
        with gateway(other, second, host.other.address, "--exclusive"):
            pass


def test_gateways_share_a_volume_that_none_writes_to(host: Host, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.write_bytes(noise(1) * 64)
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    flags = ("--shared", "--volume-id=golden")
    with ExitStack() as stack:
        for folder in folders[:2]:
            stack.enter_context(gateway(folder, volume, host.cache.address, *flags))
        assert "--shared" in refused(folders[2], os.fspath(volume), host.cache.address, "--exclusive")


def test_what_another_program_has_locked_is_not_served(host: Host, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.write_bytes(noise(1) * 64)
    with volume.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "holds a lock" in refused(tmp_path, os.fspath(volume), host.cache.address)


def _node(folder: Path, device: str) -> str:
    """Another node of a device."""
    node = folder / "node"
    os.mknod(node, stat.S_IFBLK | 0o600, os.stat(device).st_rdev)
    return os.fspath(node)
