"""A gateway and its tmemd over TLS: who is trusted, who is told why not, and certificates that are renewed."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

import tmem
from tests.block.lib.gateway import POOL, Gateway, gateway, need_gateway
from tests.block.lib.san import SIZE, fill
from tests.block.lib.stream import PATIENCE
from tests.block.nbd.test_rights import renew
from tests.lib.certificates import Authority
from tests.lib.daemon import Daemon
from tests.lib.retry import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.lib.certificates import Pair


class Far:
    """A tmemd with mutual TLS, with a pool of alice."""

    def __init__(self, folder: Path) -> None:
        need_gateway()
        self.authority = Authority(folder / "ca")
        self.server = self.authority.server()
        self.alice = self.authority.client("alice")
        self._flags = [*self.authority.flags(self.server), "--admins=ops", f"--arena={folder}/arena"]
        self.address = ""
        self.start()
        with self.store() as store:
            store.pool(POOL, kind="ephemeral", inclusive=True)

    def store(self) -> tmem.Store:
        """As alice sees it."""
        tls = tmem.Tls(ca=self.authority.file, cert=self.alice.cert, key=self.alice.key)
        return tmem.connect(self.daemon.address, tls=tls)

    def start(self) -> None:
        """Start it, at the same address as before."""
        self.daemon = Daemon(f"--nbd=tcp:{self.address or '127.0.0.1:0'}", *self._flags)
        self.address = self.daemon._said(r"exports on tcp:(.*)")


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    made = Far(tmp_path_factory.mktemp("far"))
    yield made
    made.daemon.kill()


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    fill(tmp_path / "volume")
    return tmp_path / "volume"


def flags(authority: Authority, own: Pair | None) -> list[str]:
    return [f"--ca={authority.file}", *([f"--cert={own.cert}", f"--key={own.key}"] if own else [])]


def says(attached: Gateway, what: str) -> None:
    eventually(lambda: what in attached.told())


def refused(folder: Path, volume: Path, address: str, tls: Sequence[str], why: str) -> None:
    """The gateway says why it has no cache, and the volume is served all the same."""
    with gateway(folder, volume, address, tls=tls) as attached, attached.client() as client:
        says(attached, f"the cache is not used: {why}")
        assert client.read(0, SIZE) == volume.read_bytes()


def test_a_gateway_is_the_client_that_its_certificate_names(far: Far, volume: Path, tmp_path: Path) -> None:
    with gateway(tmp_path, volume, far.address, tls=flags(far.authority, far.alice)) as attached:
        with attached.client() as client:
            says(attached, "the cache is used")
            for at in range(0, SIZE, 65536):
                client.write(at, client.read(at, 65536)[::-1])
            assert client.read(0, SIZE) == volume.read_bytes()
        attached.detach()
        assert "next start is warm" in attached.told()
    bob = flags(far.authority, far.authority.client("bob"))
    why = f"{far.address} refuses pool \"{POOL}\": the server does not allow it: client 'bob' may not use pool '{POOL}'"
    refused(tmp_path, volume, far.address, bob, why)


def test_who_is_not_trusted_is_told_why(far: Far, volume: Path, tmp_path: Path) -> None:
    stranger, begin = Authority(tmp_path / "stranger"), f"no connection to {far.address}: "
    refused(tmp_path, volume, far.address, (), begin + "the server demands TLS")
    for number, (tls, why) in enumerate(
        (
            (flags(stranger, far.alice), "the server's certificate is not from a trusted authority"),
            (flags(far.authority, None), "the server requires a client certificate"),
            (flags(far.authority, stranger.client("alice")), "the server ended TLS: "),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        refused(folder, volume, far.address, tls, begin + why)


def test_a_server_of_another_name_is_not_trusted(volume: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    own = authority.server("elsewhere", ("elsewhere.example",))
    running = Daemon("--nbd=tcp:127.0.0.1:0", f"--tls-cert={own.cert}", f"--tls-key={own.key}", "--admins=network")
    try:
        address = running._said(r"exports on tcp:(.*)")
        why = f"no connection to {address}: the server's certificate is not valid: "
        refused(tmp_path, volume, address, flags(authority, None), why)
        plain = Daemon("--nbd=tcp:127.0.0.1:0")
        try:
            address = plain._said(r"exports on tcp:(.*)")
            (folder := tmp_path / "plain").mkdir()
            why = f"no connection to {address}: there is no TLS: "
            refused(folder, volume, address, flags(authority, None), why)
        finally:
            plain.kill()
    finally:
        running.kill()


def test_files_that_cannot_be_used_are_an_error_at_the_start(far: Far, volume: Path, tmp_path: Path) -> None:
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nothing")
    other = far.authority.client("other")
    for server, tls, why in (
        (far.address, [f"--ca={nonsense}"], "nonsense.pem: there is none in the file"),
        (
            far.address,
            [*flags(far.authority, far.alice)[:2], f"--key={other.key}"],
            "are not a certificate and its key",
        ),
        (f"unix:{tmp_path}/x", flags(far.authority, None), "is a Unix socket, and TLS is for TCP"),
    ):
        command = [sys.executable, "-m", "tmem.cli", "--server", server, *tls, "san", f"--backing={volume}"]
        command += [f"--pool={POOL}", f"--listen=unix:{tmp_path}/sock", f"--state={tmp_path}"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert ended.returncode != 0
        assert why in ended.stderr


def test_a_gateway_connects_again_with_renewed_certificates(volume: Path, tmp_path: Path) -> None:
    far, new = Far(tmp_path), Authority(tmp_path / "new")
    try:
        with ExitStack() as stack:
            tls = flags(far.authority, far.alice)
            attached = stack.enter_context(gateway(tmp_path, volume, far.address, tls=tls))
            client = stack.enter_context(attached.client())
            says(attached, "the cache is used")
            with far.store() as store:
                pool = store.find_pool(POOL)
                eventually(lambda: client.read(0, SIZE) and pool.stats()["pages"])
            far.daemon.kill()
            eventually(lambda: client.read(0, SIZE) and "the cache is not used" in attached.told())
            server, alice = new.server(), new.client("alice")
            for old, fresh in ((far.server, server), (far.alice, alice)):
                renew(fresh.cert, old.cert)
                renew(fresh.key, old.key)
            renew(new.file, far.authority.file)
            far.start()
            eventually(lambda: attached.told().count("the cache is used") == 2)
    finally:
        far.daemon.kill()
