"""TLS over real sockets: who gets in, who they are, and certificates that change while the daemon runs."""

from __future__ import annotations

import os
import re
import select
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from cryptography import x509

import tmem
from tests.lib.blocking import blocking
from tests.lib.certificates import Authority
from tests.lib.daemon import Client, Daemon, daemon
from tests.lib.support import PATIENCE, page
from tmem_proto.v1 import admin_pb2 as admin
from tmem_proto.v1 import tmem_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
UNAVAILABLE, UNAUTHENTICATED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def mutual(authority: Authority) -> Iterator[Daemon]:
    with daemon(*authority.flags(authority.server())) as running:
        yield running


@contextmanager
def connected(address: str, credentials: grpc.ChannelCredentials | None) -> Iterator[Client]:
    client = Client(address, credentials)
    try:
        yield client
    finally:
        client.close()


def who(address: str, credentials: grpc.ChannelCredentials | None) -> str:
    """As the daemon sees it."""
    with connected(address, credentials) as client:
        return client.admin.Stats(admin.StatsRequest(), timeout=PATIENCE).client


def refusal(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        who(address, credentials)
    assert isinstance(caught.value, grpc.Call)
    return caught.value.code()


def test_a_client_is_the_name_in_its_certificate(authority: Authority, mutual: Daemon) -> None:
    for name, also, known in (
        ("alice", (), "alice"),
        ("alice", ("web.example",), "web.example"),
        ("", ("web.example", "spiffe.example"), "web.example"),
        ("ä" * 32, (), "ä" * 32),
    ):
        assert who(mutual.address, authority.credentials(authority.client(name, also=also))) == known


@pytest.mark.parametrize(
    "name", ["local", "network", "two\nlines", "x" * 33 + "." + "y" * 31, "x" * 60 + "." + "y" * 60]
)
def test_a_name_that_cannot_be_a_clients_is_refused(authority: Authority, mutual: Daemon, name: str) -> None:
    pair = authority.client("", also=(name,)) if "." in name else authority.client(name)
    assert refusal(mutual.address, authority.credentials(pair)) == UNAUTHENTICATED


@pytest.mark.parametrize("where", ["common name", "DNS name", "neither"])
def test_a_part_of_a_name_is_no_name(authority: Authority, mutual: Daemon, where: str) -> None:
    """GRPC shows `alice` of `alice` + zero byte + `.example`; a certificate of an address only shows none."""
    cut = "alice\0.example"
    other: x509.GeneralName = x509.DNSName(cut) if where == "DNS name" else x509.RFC822Name("alice@example.com")
    credentials = authority.credentials(authority.odd(cut if where == "common name" else None, [other]))
    assert refusal(mutual.address, credentials) == UNAUTHENTICATED
    with connected(mutual.address, credentials) as client:
        with pytest.raises(grpc.RpcError) as caught:
            next(client.tmem.Exchange(iter([pb.Command(id=1)]), timeout=PATIENCE))
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() == UNAUTHENTICATED


def test_without_a_good_certificate_nobody_gets_in(authority: Authority, mutual: Daemon, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "stranger")
    cert, key = stranger.client("alice").pem
    ours = authority.file.read_bytes()
    for credentials in (
        authority.credentials(None),
        grpc.ssl_channel_credentials(ours, key, cert),
        authority.credentials(authority.client("alice", expired=True)),
        stranger.credentials(authority.client("alice")),
        None,
    ):
        assert refusal(mutual.address, credentials) == UNAVAILABLE
    assert who(mutual.address, authority.credentials(authority.client("alice"))) == "alice"


def test_connections_that_never_shake_hands_hold_up_nobody(authority: Authority, mutual: Daemon) -> None:
    host, _, port = mutual.address.rpartition(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(50)]
    for one in silent[:25]:
        one.sendall(b"\x16\x03\x01")
    assert who(mutual.address, authority.credentials(authority.client("alice"))) == "alice"
    for one in silent:
        one.close()


def test_tls_without_client_certificates(authority: Authority) -> None:
    server = authority.server("alone")
    with daemon(f"--tls-cert={server.cert}", f"--tls-key={server.key}") as running:
        assert who(running.address, authority.credentials(None)) == "local"
        assert who(running.address, authority.credentials(authority.client("alice"))) == "local"
        assert refusal(running.address, None) == UNAVAILABLE


def replace(source: Path, target: Path) -> None:
    """As renewers of certificates do it: in one step."""
    new = target.with_suffix(".new")
    new.write_bytes(source.read_bytes())
    os.replace(new, target)


def test_certificates_change_while_the_daemon_runs(tmp_path: Path) -> None:
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    live = Authority(tmp_path / "live")
    server, fresh = old.server(), new.server()
    replace(old.file, live.file)
    was, now = old.credentials(old.client("was")), new.credentials(new.client("now"))
    with daemon(*live.flags(server)) as running, connected(running.address, was) as kept:
        kept.open("kept")
        assert refusal(running.address, now) == UNAVAILABLE
        replace(fresh.key, server.key)
        for _ in range(2):
            assert who(running.address, was) == "was", "a key without its certificate changes nothing"
        live.file.write_bytes(b"no certificate")
        assert who(running.address, was) == "was"
        live.file.unlink()
        assert who(running.address, was) == "was"
        replace(new.file, live.file)
        replace(fresh.cert, server.cert)
        assert who(running.address, now) == "now"
        assert refusal(running.address, was) == UNAVAILABLE
        assert kept.put({1: page(1)}) == bytes([pb.PUT_OUTCOME_STORED]), "a connection goes on"
        running.process.terminate()
        _, said = running.process.communicate(timeout=PATIENCE)
    assert said.count("TLS keeps using its previous certificates") == 3
    assert said.count("TLS: certificates reloaded") == 1
    assert "PRIVATE" not in said


@pytest.mark.parametrize("flavour", ["sync", "async"])
def test_the_sdk_connects_by_files(authority: Authority, mutual: Daemon, flavour: str) -> None:
    alice = authority.client("alice")
    tls = tmem.Tls(ca=authority.file, cert=str(alice.cert), key=alice.key)
    open_store = tmem.connect if flavour == "sync" else blocking
    with open_store(mutual.address, tls=tls) as store:
        pool = store.pool(f"sdk-{flavour}")
        assert pool.put(1, {7: page(7)})[7].stored
        assert pool.get(1, [7]) == {7: page(7)}
        assert pool.settings.owner == "alice"
        assert f"sdk-{flavour}" in [one.name for one in store.pools()]
        for call in (store.stats, store.compact, lambda: store.memory):
            with pytest.raises(tmem.DeniedError, match="alice"):
                call()
    other = authority.client("bob")
    with open_store(mutual.address, tls=tmem.Tls(ca=authority.file, cert=other.cert, key=other.key)) as store:
        with pytest.raises(tmem.DeniedError, match=f"sdk-{flavour}"):
            store.find_pool(f"sdk-{flavour}")
        assert store.pools() == []


def test_the_sdk_says_so_where_the_server_is_not_trusted(mutual: Daemon, tmp_path: Path) -> None:
    stranger = Authority(tmp_path)
    tls = tmem.Tls(ca=stranger.file)
    with tmem.connect(mutual.address, tls=tls, timeout=0.5) as store, pytest.raises(tmem.UnavailableError):
        store.pools()


def test_grpcs_trusts_whom_the_system_trusts(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    server = authority.server("public")
    with daemon(f"--tls-cert={server.cert}", f"--tls-key={server.key}") as running:
        with tmem.connect(f"grpcs://{running.address}") as store:
            assert store.pools() == []
        monkeypatch.setenv("SSL_CERT_FILE", str(Authority(tmp_path).file))
        with tmem.connect(f"grpcs://{running.address}", timeout=0.5) as store, pytest.raises(tmem.UnavailableError):
            store.pools()


def test_files_of_the_sdk_that_cannot_be_used(authority: Authority, tmp_path: Path) -> None:
    alice, bob = authority.client("alice"), authority.client("bob")
    connect = partial(tmem.connect, "localhost:1")
    with pytest.raises(ValueError, match="are not a certificate and its key"):
        connect(tls=tmem.Tls(cert=alice.cert, key=bob.key))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        connect(tls=tmem.Tls(ca=tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="pair"):
        tmem.Tls(cert=alice.cert)
    with pytest.raises(TypeError, match="path"):
        tmem.Tls(ca=authority.file.read_bytes())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give tls or credentials, not both"):
        connect(tls=tmem.Tls(), credentials=authority.credentials(None))


def scrape(url: str, context: ssl.SSLContext) -> str:
    with urllib.request.urlopen(url.replace("0.0.0.0", "127.0.0.1"), timeout=PATIENCE, context=context) as response:
        body: str = response.read().decode()
    return body


def test_metrics_that_others_reach_are_for_those_who_are_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server = authority.server()
    flags = ["--metrics=0.0.0.0:0", "--admins=ops", "--metrics-clients=prometheus,web.example"]
    context = partial(ssl.create_default_context, cafile=str(authority.file))
    with daemon(*authority.flags(server), *flags) as running, ExitStack() as stack:
        assert running.metrics_url.startswith("https://0.0.0.0:")
        for pair in map(authority.client, ("prometheus", "ops")):
            (reader := context()).load_cert_chain(pair.cert, pair.key)
            assert "tmem_pages" in scrape(running.metrics_url, reader)
        pair = authority.client("", also=("web.example",))
        (reader := context()).load_cert_chain(pair.cert, pair.key)
        assert "tmem_pages" in scrape(running.metrics_url, reader)
        pair = authority.client("alice")
        (reader := context()).load_cert_chain(pair.cert, pair.key)
        with pytest.raises(urllib.error.HTTPError, match="403"):
            scrape(running.metrics_url, reader)
        with pytest.raises(urllib.error.HTTPError, match="403"):
            scrape(running.metrics_url, context())
        stranger = Authority(tmp_path / "elsewhere").client("ops")
        (reader := context()).load_cert_chain(stranger.cert, stranger.key)
        with pytest.raises(OSError, match=r"(?i)certificate|reset|eof|unknown ca"):
            scrape(running.metrics_url, reader)
        for health in ("/livez", "/readyz"):
            assert scrape(running.metrics_url.replace("/metrics", health), context()) == "ok\n"
        address = ("127.0.0.1", int(running.metrics_url.split("/")[2].rpartition(":")[2]))
        silent = [stack.enter_context(socket.create_connection(address)) for _ in range(10)]
        for one in silent:
            one.sendall(b"\x16")
        fresh = authority.server("fresh")
        replace(fresh.key, server.key)
        replace(fresh.cert, server.cert)
        pair = authority.client("ops")
        (reader := context()).load_cert_chain(pair.cert, pair.key)
        assert "tmem_pages" in scrape(running.metrics_url, reader)
        raw = stack.enter_context(socket.create_connection(address))
        seen = stack.enter_context(reader.wrap_socket(raw, server_hostname="localhost")).getpeercert()
        assert seen
        assert (("commonName", "fresh"),) in seen["subject"]


def test_metrics_take_few_requests_at_once(mutual: Daemon) -> None:
    """Beyond sixteen connections are closed; when these end the metrics go on."""
    host, _, port = mutual.metrics_url.split("/")[2].rpartition(":")
    with ExitStack() as stack:
        waiting = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(40)]
        while len(waiting) > 16:
            ended, _, _ = select.select(waiting, [], [], PATIENCE)
            assert ended, "too many are served at once"
            assert [one.recv(1) for one in ended] == [b""] * len(ended)
            waiting = [one for one in waiting if one not in ended]
        assert select.select(waiting, [], [], 0.2)[0] == []
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(mutual.metrics_url, timeout=PATIENCE) as response:
                assert response.status == 200
            return
        except OSError:
            assert time.monotonic() < deadline


def test_files_of_the_daemon_that_cannot_be_used(authority: Authority, tmp_path: Path) -> None:
    server, other = authority.server("one"), authority.server("two")
    junk = tmp_path / "junk"
    junk.write_text("no certificate")
    for cert, key, roots, why in (
        (server.cert, other.key, authority.file, "are not a certificate and its key"),
        (junk, server.key, authority.file, "are not a certificate and its key"),
        (tmp_path / "nowhere", server.key, authority.file, "No such file"),
        (server.cert, server.key, junk, "has no valid certificates"),
    ):
        flags = [f"--tls-cert={cert}", f"--tls-key={key}", f"--tls-client-ca={roots}"]
        command = [sys.executable, "-m", "tmemd", "--listen=127.0.0.1:0", "--memory=8MiB", *flags]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert ended.returncode == 2
        assert ended.stderr.startswith("tmemd: TLS: ")
        assert why in ended.stderr


def test_files_that_others_may_write_are_refused(tmp_path: Path) -> None:
    """By the daemon, the SDK and a gateway alike; a key that anyone may read is only warned of."""
    authority = Authority(tmp_path / "ca")
    server, alice = authority.server(), authority.client("alice")
    config = tmp_path / "tmemd.toml"
    config.write_text("memory = 8388608\n")
    flags = [f"--config={config}", *authority.flags(server)]
    tls = tmem.Tls(ca=authority.file, cert=alice.cert, key=alice.key)
    san = ["--ca", authority.file, "--cert", alice.cert, "--key", alice.key, "san", "--pool", "p", "--backing", config]
    for path, command, mode in (
        (config, "tmemd", 0o602),
        (server.cert, "tmemd", 0o620),
        (server.key, "tmemd", 0o602),
        (authority.file, "tmemd", 0o620),
        (alice.cert, "tmem", 0o602),
        (alice.key, "tmem", 0o620),
    ):
        whole = path.stat().st_mode
        path.chmod(mode)
        if mode == 0o620:
            os.chown(path, -1, 12345)
        why = f"may write it (mode 0{mode:03o}): chmod go-w {path}"
        if command == "tmemd":
            ended = _run("tmemd", "--listen=127.0.0.1:0", *flags)
            assert (ended.returncode, why in ended.stderr) == (2, True), ended.stderr
        else:
            with pytest.raises(ValueError, match="chmod go-w"):
                tmem.connect("localhost:1", tls=tls)
            gateway = _run("tmem.cli", "--server", "localhost:1", *map(str, san), "--listen", f"unix:{tmp_path}/s")
            assert (gateway.returncode != 0, why in gateway.stderr) == (True, True), gateway.stderr
        path.chmod(whole)
    server.key.chmod(0o604)
    with daemon(*flags) as running:
        running.process.terminate()
        assert "anyone may read this key (mode 0604): chmod o-r" in running.process.communicate()[1]


def _run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", module, *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_the_commands_of_the_operations_text_make_certificates(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    found = re.search(
        r"<!-- run by tests/integration/security/test_tls.py -->\n```sh\n(.*?)```\n\n```toml\n(.*?)```", text, re.DOTALL
    )
    assert found
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl")
    made = subprocess.run(["sh", "-euc", found[1]], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    settings = re.sub(r'= "(\w+\.(?:pem|key))"', rf'= "{tmp_path}/\1"', found[2])
    (tmp_path / "tmemd.toml").write_text(settings)
    tls = tmem.Tls(ca=tmp_path / "ca.pem", cert=tmp_path / "alice.pem", key=tmp_path / "alice.key")
    with daemon(f"--config={tmp_path}/tmemd.toml") as running, tmem.connect(running.address, tls=tls) as store:
        settings_of_a_pool = store.pool("made").settings
        assert (settings_of_a_pool.owner, settings_of_a_pool.weight) == ("alice", 2)
        assert settings_of_a_pool.quota == 1 << 30
        server = (tmp_path / "server.pem").read_bytes(), (tmp_path / "server.key").read_bytes()
        posing = grpc.ssl_channel_credentials((tmp_path / "ca.pem").read_bytes(), server[1], server[0])
        assert refusal(running.address, posing) == UNAVAILABLE, "a server's certificate is no client's"
