"""Where a gateway listens: who gets in, over TLS and in plain, and metrics that nobody holds up."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import urllib.request
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.block.lib.gateway import gateway, refused
from tests.block.lib.san import SIZE, fill
from tests.block.lib.servers import program
from tests.block.lib.stream import PATIENCE
from tests.block.nbd.test_rights import renew
from tests.lib.certificates import Authority
from tests.lib.retry import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.block.lib.gateway import Gateway
    from tests.lib.certificates import Pair

NOBODY = "unix:/nobody"


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    fill(tmp_path / "volume")
    return tmp_path / "volume"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


@pytest.mark.parametrize(
    "door", ["--listen=tcp:0.0.0.0:0", "--listen=tcp:[::]:0", "--listen=tcp:ram1:0", "--metrics=0.0.0.0:0"]
)
def test_what_other_machines_reach_is_not_served_in_plain(volume: Path, tmp_path: Path, door: str) -> None:
    said = refused(tmp_path, str(volume), NOBODY, door, status=2)
    address = door.partition("=")[2].removeprefix("tcp:")
    for word in (f"tcp:{address}", "--tls-cert", "--tls-key", "--tls-client-ca", "--insecure"):
        assert word in said
    assert not (tmp_path / "state").exists()


def test_insecure_serves_it_all_the_same(volume: Path, tmp_path: Path) -> None:
    doors = ("--listen=tcp:0.0.0.0:0", "--metrics=0.0.0.0:0", "--insecure")
    with gateway(tmp_path, volume, NOBODY, *doors) as attached:
        assert _info(_port(attached), tmp_path, "nbd") == SIZE
        assert b"tmem_san_reads_total" in _scrape(attached)


def test_tls_lets_in_whom_the_authority_vouches_for(volume: Path, tmp_path: Path, authority: Authority) -> None:
    own, alice = authority.server(), authority.client("alice")
    stranger = Authority(tmp_path / "other").client("alice")
    doors = ("--listen=tcp:0.0.0.0:0", "--metrics=0.0.0.0:0", *authority.flags(own))
    with gateway(tmp_path, volume, NOBODY, *doors) as attached:
        port = _port(attached)
        assert _info(port, _trust(tmp_path / "alice", authority, alice)) == SIZE
        assert _info(port, _trust(tmp_path / "stranger", authority, stranger)) is None
        assert _info(port, tmp_path, "nbd") is None
        assert b"tmem_san_reads_total" in _scrape(attached, _context(authority, alice))
        with pytest.raises(OSError, match=r"."):
            _scrape(attached, _context(authority, None))
        with attached.client() as client:  # a Unix socket's folder says who gets in
            assert len(client.read(0, 4096)) == 4096
        # A certificate that is renewed counts from the next connection on; one that is no use changes nothing.
        newer = Authority(tmp_path / "newer")
        renewed = newer.server()
        renew(renewed.cert, own.cert)
        renew(renewed.key, own.key)
        eventually(lambda: _info(port, _trust(tmp_path / "new", newer, alice)) == SIZE)
        own.cert.write_text("nothing")
        assert _info(port, _trust(tmp_path / "still", newer, alice)) == SIZE
        assert "previous certificates stay in use" in attached.told()


def test_files_of_certificates_that_are_no_use_are_named(volume: Path, tmp_path: Path, authority: Authority) -> None:
    own, other = authority.server(), authority.server("other")
    both = f"--tls-cert={own.cert}", f"--tls-key={own.key}"
    for doors, why in (
        ((f"--tls-cert={own.cert}",), "--tls-key"),
        ((f"--tls-cert={own.cert}", f"--tls-key={other.key}"), str(other.key)),
        ((f"--tls-cert={own.cert}", f"--tls-key={tmp_path}/none"), f"{tmp_path}/none: No such file"),
        ((*both, "--insecure"), "give either it or --tls-cert"),
    ):
        assert why in refused(tmp_path, str(volume), NOBODY, *doors, status=2)
    own.key.chmod(0o666)
    assert f"{own.key}: anyone may write it" in refused(tmp_path, str(volume), NOBODY, *both, status=2)


@pytest.mark.parametrize("how", ["silent", "half a request", "does not read"])
def test_slow_scrapers_hold_up_neither_others_nor_the_end(volume: Path, tmp_path: Path, how: str) -> None:
    with gateway(tmp_path, volume, NOBODY, "--metrics=127.0.0.1:0") as attached, ExitStack() as stack:
        for _ in range(40):
            slow = stack.enter_context(socket.socket())
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            slow.connect(("127.0.0.1", _metrics_port(attached)))
            slow.sendall({"silent": b"", "half a request": b"GET /me"}.get(how, b"GET /metrics HTTP/1.1\r\n\r\n"))
        for _ in range(3):
            assert b"tmem_san_reads_total" in _scrape(attached)
        attached.detach()


def test_only_metrics_are_served(volume: Path, tmp_path: Path) -> None:
    with gateway(tmp_path, volume, NOBODY, "--metrics=127.0.0.1:0") as attached:
        for request, status in (
            (b"GET /other HTTP/1.1\r\n\r\n", b"404"),
            (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
            (b"\x00\xff\r\n\r\n", b"405"),
            (b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", b"200"),
            (b"GET /" + b"x" * 20000, b""),
        ):
            with socket.create_connection(("127.0.0.1", _metrics_port(attached)), PATIENCE) as asked:
                asked.sendall(request)
                try:
                    said = asked.recv(100)
                except ConnectionResetError:
                    said = b""
                assert said.partition(b" ")[2][:3] == status
        page = _scrape(attached).decode()
        assert 'tmem_san_read_seconds_bucket{source="san",le="1.6e-05"} 0' in page


def _port(attached: Gateway) -> int:
    found = re.search(r"tcp:\S*:(\d+)", attached.said)
    assert found, attached.said
    return int(found[1])


def _metrics_port(attached: Gateway) -> int:
    return int(attached.said.rpartition(":")[2])


def _scrape(attached: Gateway, context: ssl.SSLContext | None = None) -> bytes:
    scheme = "https" if context else "http"
    address = f"{scheme}://127.0.0.1:{_metrics_port(attached)}/metrics"
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context or ssl.create_default_context())
    )
    with opener.open(address, timeout=PATIENCE) as answer:
        body: bytes = answer.read()
        return body


def _context(authority: Authority, own: Pair | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.file))
    if own is not None:
        context.load_cert_chain(own.cert, own.key)
    return context


def _trust(folder: Path, authority: Authority, own: Pair) -> Path:
    """A folder of certificates as libnbd wants it."""
    folder.mkdir(exist_ok=True)
    (folder / "ca-cert.pem").write_bytes(authority.file.read_bytes())
    (folder / "client-cert.pem").write_bytes(own.cert.read_bytes())
    (folder / "client-key.pem").write_bytes(own.key.read_bytes())
    return folder


def _info(port: int, trusted: Path, scheme: str = "nbds") -> int | None:
    """The size of the export at a port; None for who does not get in."""
    options = f"?tls-certificates={trusted}" if scheme == "nbds" else ""
    address = f"{scheme}://127.0.0.1:{port}/{options}"
    asked = subprocess.run(
        [program("nbdinfo"), "--size", address], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    return int(asked.stdout) if asked.returncode == 0 else None
