"""Where daemon and gateway listen: IPv4, IPv6, Unix sockets, several at once; what cannot be had is named."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.block.lib.gateway import POOL, gateway
from tests.block.lib.handshake import opened
from tests.block.lib.servers import program, uri
from tests.block.lib.stream import PATIENCE
from tests.lib.command import Command
from tests.lib.daemon import daemon
from tests.lib.retry import eventually
from tests.lib.support import page

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 1 << 20
PROGRAMS = ("tmemd", "gateway")
ENVIRONMENT = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C"}


@pytest.fixture
def loopback() -> str:
    """The IPv6 loopback; the test is skipped where there is none."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("there is no ::1")
    return "[::1]"


def listening(said: str) -> list[str]:
    """The addresses in what a program says when it is ready."""
    return re.findall(r"(?:unix|tcp):[^\s,;]+", said)


def size(address: str, name: str) -> int:
    """The size of an export as nbdinfo has it."""
    line = [program("nbdinfo"), "--size", uri(address, name)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_an_export_at_several_addresses_at_once(tmp_path: Path, loopback: str) -> None:
    asked = [f"unix:{tmp_path}/a", "tcp:127.0.0.1:0", f"tcp:{loopback}:0", f"unix:{tmp_path}/b"]
    with daemon(*(f"--nbd={address}" for address in asked)) as running, ExitStack() as stack:
        Command(running.address)("export", "create", "disk", "--size", SIZE, "--multi-conn")
        addresses = listening(running._said(r"exports on (.*)"))
        assert {re.sub(r":\d+$", ":0", address) for address in addresses} == set(asked)
        clients = [stack.enter_context(opened(address, "disk")) for address in addresses]
        for number, client in enumerate(clients):
            client.write(number * 4096, page(number))
        for client in clients:
            assert client.read(0, 4 * 4096) == b"".join(page(number) for number in range(4))
        assert [size(address, "disk") for address in addresses] == [SIZE] * 4


def test_everything_over_ipv6(tmp_path: Path, loopback: str) -> None:
    """Volume, cache and gateway, all at `::1`; and one gateway at several addresses at once."""
    with daemon(f"--nbd=tcp:{loopback}:0") as running:
        tmem = Command(running.address)
        tmem("export", "create", "volume", "--size", SIZE)
        (place,) = (address.removeprefix("tcp:") for address in listening(running._said(r"exports on (.*)")))
        flags = ("--exclusive", f"--listen=tcp:{loopback}:0", "--listen=tcp:127.0.0.1:0")
        with gateway(tmp_path, f"nbd://{place}/volume", place, *flags) as attached, ExitStack() as stack:
            addresses = listening(attached.said.rpartition(" at ")[2])
            assert [address[:8] for address in addresses] == [f"unix:{tmp_path}"[:8], "tcp:[::1", "tcp:127."]
            clients = [stack.enter_context(opened(address, "", contexts=())) for address in addresses]
            for number, client in enumerate(clients):
                client.write(number * 4096, page(number))
            for client in clients:
                assert client.read(0, 3 * 4096) == b"".join(page(number) for number in range(3))
            assert [size(address, "") for address in addresses] == [SIZE] * 3
            eventually(lambda: clients[0].read(0, SIZE) and tmem.json("stat", POOL)["stats"]["pages"] > 0)


def start(which: str, folder: Path, address: str) -> str:
    """Start a program that is not to start; why it does not."""
    volume = folder / "volume"
    volume.write_bytes(bytes(SIZE))
    if which == "tmemd":
        line = ["tmemd", "--listen=127.0.0.1:0", "--memory=64MiB", f"--nbd={address}"]
    else:
        where = (f"--backing={volume}", f"--pool={POOL}", f"--state={folder}", f"--listen={address}")
        line = ["tmem.cli", "--server", f"unix:{folder}/nobody", "san", *where]
    command = [sys.executable, "-m", *line]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE, check=False)
    assert ended.returncode == (2 if which == "tmemd" else 1), (ended.stdout, ended.stderr)
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert address in ended.stderr
    return ended.stderr


@pytest.mark.parametrize("which", PROGRAMS)
def test_a_path_that_is_no_socket_is_left_alone(tmp_path: Path, which: str) -> None:
    for path in (tmp_path / "file", tmp_path / "folder"):
        if path.name == "file":
            path.write_text("precious")
        else:
            path.mkdir()
        assert "what is there is not a socket" in start(which, tmp_path, f"unix:{path}")
    assert (tmp_path / "file").read_text() == "precious"
    assert (tmp_path / "folder").is_dir()


@pytest.mark.parametrize("which", PROGRAMS)
def test_an_address_in_use_stays_with_who_has_it(tmp_path: Path, which: str) -> None:
    with daemon(f"--nbd=unix:{tmp_path}/sock", "--nbd=tcp:127.0.0.1:0") as running:
        Command(running.address)("export", "create", "disk", "--size", SIZE, "--multi-conn")
        unix, tcp = listening(running._said(r"exports on (.*)"))
        assert "a server listens there" in start(which, tmp_path, unix)
        assert "Address already in use" in start(which, tmp_path, tcp)
        for address in (unix, tcp):
            opened(address, "disk").close()


@pytest.mark.parametrize("which", PROGRAMS)
def test_a_path_that_cannot_be(tmp_path: Path, which: str) -> None:
    long = tmp_path / ("x" * 108)
    assert "the path of a socket can have at most 107 bytes" in start(which, tmp_path, f"unix:{long}")
    assert "No such file or directory" in start(which, tmp_path, f"unix:{tmp_path}/missing/sock")


def test_a_socket_that_a_killed_server_left_is_taken_over(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.write_bytes(bytes(SIZE))
    for left in (tmp_path / "nbd.sock", tmp_path / "san.sock"):
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(str(left))
            gone.listen()
    with daemon(f"--nbd=unix:{tmp_path}/nbd.sock") as running:
        Command(running.address)("export", "create", "disk", "--size", SIZE)
        opened(f"unix:{tmp_path}/nbd.sock", "disk").close()
        with gateway(tmp_path, volume, f"unix:{tmp_path}/nbd.sock") as attached:
            attached.client().close()
    assert not (tmp_path / "nbd.sock").exists()
