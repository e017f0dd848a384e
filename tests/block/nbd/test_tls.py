"""TLS as real clients speak it: each does its work over TLS, and who has no business there is turned away.

fio is not among them: it has no way to say where its certificates are. Who may open which export, and new certificates
for a running daemon, are tested elsewhere.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

import grpc
import pytest

from tests.block.lib.handshake import Wire, info_query, opened
from tests.block.lib.protocol import Opt, Rep
from tests.block.lib.servers import program
from tests.lib.certificates import Authority, Pair
from tests.lib.daemon import Client as Admin
from tests.lib.daemon import Daemon, daemon
from tests.lib.retry import eventually
from tests.lib.support import PATIENCE, noise, run
from tmem_proto.v1 import admin_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 4 << 20
NAME = "disk"
OPERATOR = "operator"
ENVIRONMENT = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C"}


@dataclass
class Place:
    """A daemon with an export, and what its clients need."""

    daemon: Daemon
    authority: Authority
    folder: Path
    tcp: str
    unix: str

    def uri(self, certificates: Path | None, scheme: str = "nbds") -> str:
        asked = f"?tls-certificates={quote(str(certificates))}" if certificates else ""
        return f"{scheme}://{self.tcp.removeprefix('tcp:')}/{NAME}{asked}"

    def certificates(self, name: str, pair: Pair | None, authority: Authority | None = None) -> Path:
        """A folder as libnbd and qemu want it: who vouches for the server, and perhaps a certificate of one's own."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / "ca-cert.pem").write_bytes((authority or self.authority).file.read_bytes())
        if pair:
            (folder / "client-cert.pem").write_bytes(pair.cert.read_bytes())
            (folder / "client-key.pem").write_bytes(pair.key.read_bytes())
        return folder

    def is_well(self) -> None:
        """It serves, and what ended has left nothing behind."""
        good = self.certificates("good", self.authority.client(OPERATOR))
        assert ask("nbdinfo", "--size", self.uri(good)).stdout.strip() == str(SIZE)
        eventually(lambda: not self.connections())

    def connections(self) -> list[str]:
        """Threads of connections that there are."""
        tasks = f"/proc/{self.daemon.process.pid}/task"
        names = []
        for task in os.listdir(tasks):
            try:
                with open(f"{tasks}/{task}/comm") as comm:
                    names.append(comm.read().strip())
            except (FileNotFoundError, ProcessLookupError):
                pass
        return [name for name in names if name.startswith("nbd-") and name != "nbd-accept"]


def ask(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    line = [program(name), *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=2 * PATIENCE, env=ENVIRONMENT, check=False)


def call(name: str, *arguments: object) -> str:
    """Run a program that must succeed; what it says."""
    ended = ask(name, *arguments)
    assert ended.returncode == 0, (ended.args, ended.stdout, ended.stderr)
    return ended.stdout


@contextmanager
def place(folder: Path, *flags: str, mutual: bool = True) -> Iterator[Place]:
    authority = Authority(folder / "ca")
    server = authority.server()
    tls = authority.flags(server)[: None if mutual else 2]
    where = ("--nbd=tcp:127.0.0.1:0", f"--nbd=unix:{folder}/sock")
    with daemon(*tls, *where, *flags) as running:
        credentials = authority.credentials(authority.client(OPERATOR) if mutual else None)
        create(running, credentials)
        tcp, unix = sorted(running._said(r"exports on (.*)").split(", "))
        yield Place(running, authority, folder, tcp, unix)


def create(running: Daemon, credentials: grpc.ChannelCredentials | None) -> None:
    admin = Admin(running.address, credentials)
    admin.admin.CreateExport(pb.CreateExportRequest(name=NAME, size=SIZE, multi_conn=True), timeout=PATIENCE)
    admin.close()


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Clients must show a certificate."""
    with place(tmp_path_factory.mktemp("mutual"), f"--admins={OPERATOR}") as made:
        yield made


@pytest.fixture(scope="module")
def one_sided(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Only the daemon has a certificate."""
    with place(tmp_path_factory.mktemp("one"), mutual=False) as made:
        yield made


@pytest.fixture(params=["mutual", "one_sided"])
def secured(request: pytest.FixtureRequest) -> Place:
    made: Place = request.getfixturevalue(request.param)
    return made


@pytest.fixture
def certificates(secured: Place) -> Path:
    """Those of a client that is let in."""
    return secured.certificates("good", secured.authority.client(OPERATOR))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes((run(0, 128) + noise(1, 1 << 19) + bytes(1 << 20)).ljust(SIZE, b"x"))
    return path


def test_nbdinfo(secured: Place, certificates: Path) -> None:
    document = json.loads(call("nbdinfo", "--json", secured.uri(certificates)))
    assert document["TLS"] is True
    assert document["exports"][0]["export-size"] == SIZE


@pytest.mark.parametrize("connections", [1, 4])
def test_nbdcopy(secured: Place, certificates: Path, image: Path, tmp_path: Path, connections: int) -> None:
    uri, flag = secured.uri(certificates), f"--connections={connections}"
    call("nbdcopy", flag, image, uri)
    call("nbdcopy", flag, uri, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == image.read_bytes()


def test_qemu_img(secured: Place, certificates: Path, image: Path, tmp_path: Path) -> None:
    host, _, port = secured.tcp.removeprefix("tcp:").rpartition(":")
    tls = ("--object", f"tls-creds-x509,id=tls0,endpoint=client,dir={certificates}")
    disk = f"driver=nbd,host={host},port={port},export={NAME},tls-creds=tls0"
    call(
        "qemu-img", "convert", *tls, "-n", "--image-opts", "--target-image-opts", f"driver=file,filename={image}", disk
    )
    call("qemu-img", "convert", *tls, "-O", "raw", "--image-opts", disk, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == image.read_bytes()


def test_a_plain_client_is_told_to_begin_tls(secured: Place) -> None:
    assert ask("nbdinfo", secured.uri(None, "nbd")).returncode != 0
    host, _, port = secured.tcp.removeprefix("tcp:").rpartition(":")
    ended = ask("qemu-img", "info", "--image-opts", f"driver=nbd,host={host},port={port},export={NAME}")
    assert "requires TLS" in ended.stderr, ended.stderr
    with Wire(secured.tcp).begin() as plain:
        (reply,) = plain.option(Opt.GO, info_query(NAME))
    assert reply.kind == Rep.ERR_TLS_REQD
    assert reply.data == b"this server requires TLS: begin with STARTTLS"
    secured.is_well()


@pytest.mark.parametrize("who", ["nobody", "of another authority", "expired"])
def test_a_client_without_a_good_certificate_is_turned_away(mutual: Place, who: str) -> None:
    stranger = Authority(mutual.folder / "other")
    pair = {
        "nobody": None,
        "of another authority": stranger.client(OPERATOR),
        "expired": mutual.authority.client(OPERATOR, expired=True),
    }[who]
    certificates = mutual.certificates(who, pair)
    for name, arguments in (("nbdinfo", ("--size",)), ("nbdcopy", ("/dev/zero",))):
        ended = ask(name, *arguments, mutual.uri(certificates))
        assert ended.returncode != 0, (name, ended.stdout)
        assert ended.stderr
    mutual.is_well()
    with opened(mutual.unix, NAME) as local:
        assert local.export.size == SIZE


def test_a_client_turns_away_a_server_that_it_does_not_trust(secured: Place) -> None:
    stranger = Authority(secured.folder / "other")
    certificates = secured.certificates("distrustful", secured.authority.client(OPERATOR), stranger)
    ended = ask("nbdinfo", "--size", secured.uri(certificates))
    assert ended.returncode != 0
    assert "certificate" in ended.stderr, ended.stderr
    secured.is_well()


@pytest.mark.parametrize(
    ("who", "why"),
    [
        ("in plain", "it does not start TLS"),
        ("silent", "it disconnected during the TLS handshake"),
        ("nobody", "TLS: .*certificate"),
        ("of another authority", "TLS: .*certificate"),
        ("expired", "TLS: .*certificate"),
        ("distrustful", "it disconnected during the TLS handshake"),
    ],
)
def test_who_is_turned_away_is_written_down_seldom(tmp_path: Path, who: str, why: str) -> None:
    with place(tmp_path, f"--admins={OPERATOR}") as made:
        stranger = Authority(tmp_path / "other")
        if who == "silent":
            with Wire(made.tcp).begin() as leaving:
                leaving.option(Opt.STARTTLS)
        else:
            pair = {
                "of another authority": stranger.client(OPERATOR),
                "expired": made.authority.client(OPERATOR, expired=True),
                "distrustful": made.authority.client(OPERATOR),
            }.get(who)
            certificates = made.certificates(who, pair, stranger if who == "distrustful" else None)
            uri = made.uri(None, "nbd") if who == "in plain" else made.uri(certificates)
            for _ in range(3):
                assert ask("nbdinfo", "--size", uri).returncode != 0
        made.is_well()
        made.daemon.process.terminate()
        _, log = made.daemon.process.communicate(timeout=PATIENCE)
    line = rf"WARNING tmemd: an NBD client was turned away: 127\.0\.0\.1:\d+: {why}"
    assert re.search(line, log, re.IGNORECASE), log
    assert log.count("turned away") == 1, log


@pytest.mark.parametrize("scheme", ["nbd", "nbds"])
def test_a_daemon_without_tls(tmp_path: Path, scheme: str) -> None:
    with daemon("--nbd=tcp:127.0.0.1:0") as running:
        create(running, None)
        made = Place(running, Authority(tmp_path / "ca"), tmp_path, running._said(r"exports on (.*)"), "")
        certificates = made.certificates("any", None) if scheme == "nbds" else None
        ended = ask("nbdinfo", "--size", made.uri(certificates, scheme))
        if scheme == "nbd":
            assert ended.stdout.strip() == str(SIZE)
        else:
            assert ended.returncode != 0
            assert "TLS" in ended.stderr, ended.stderr
        eventually(lambda: not made.connections())
