"""One rule for the names of clients: certificates of every kind, shown to all three fronts of one daemon."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from contextlib import closing
from typing import TYPE_CHECKING

import grpc
import pytest
from cryptography import x509

from tests.block.lib.handshake import Wire
from tests.lib.certificates import Authority
from tests.lib.daemon import Client, Daemon, daemon
from tests.lib.support import PATIENCE
from tmem_proto.v1 import admin_pb2 as admin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lib.certificates import Pair

CLIENT_USAGE, SERVER_USAGE = "1.3.6.1.5.5.7.3.2", "1.3.6.1.5.5.7.3.1"
READER = "metrics.example"


def _dns(name: str) -> x509.GeneralName:
    return x509.DNSName(name)


def _uri(name: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(name)


# Common name, other names, and who that is: nobody where it is empty.
CERTIFICATES: list[tuple[str | None, list[x509.GeneralName], str]] = [
    ("alice", [], "alice"),
    ("O'Brien", [], "O'Brien"),
    ("\u00e4" * 32, [], "\u00e4" * 32),
    ("web.example", [], "web.example"),
    (None, [_dns("web.example"), _dns("b.example")], "web.example"),
    (None, [_uri("spiffe://example/web")], "spiffe://example/web"),
    ("alice", [x509.RFC822Name("alice@example.com")], "alice"),
    ("gw", [_dns("gw")], "gw"),
    ("b.example", [_dns("a.example"), _dns("b.example")], "b.example"),
    # Where they disagree, the common name does not count; and nobody has the name of another kind.
    ("ops", [_dns("web.example")], "web.example"),
    ("ops", [_uri("spiffe://example/web")], "spiffe://example/web"),
    (None, [_dns("alice")], ""),
    ("ops", [_dns("alice")], ""),
    ("spiffe://example/web", [], ""),
    # No names for a client.
    ("local", [], ""),
    ("network", [], ""),
    ("*", [], ""),
    (None, [_dns("*.example")], ""),
    (None, [_dns("x" * 60 + ".example")], ""),
    (None, [x509.RFC822Name("alice@example.com")], ""),
    # What does not show.
    ("ali\u200bce", [], ""),
    ("\u202eecila", [], ""),
    ("alice\u2066", [], ""),
    ("alice\ufeff", [], ""),
    ("ali\u00adce", [], ""),
    ("alice\u00a0", [], ""),
    ("alice ", [], ""),
    ("two\nlines", [], ""),
    ("\u007f", [], ""),
    ("alice\0.example", [], ""),
    (None, [_dns("alice\0.example")], ""),
]


class Fronts:
    """A daemon with all of them."""

    def __init__(self, running: Daemon, authority: Authority) -> None:
        self.running, self.authority = running, authority
        self.tcp = running._said(r"exports on (\S+)")

    def by_calls(self, pair: Pair) -> str:
        with closing(Client(self.running.address, self.authority.credentials(pair))) as client:
            answered = client.admin.Stats.future(admin.StatsRequest(), timeout=PATIENCE)
            if answered.exception() is None:
                return answered.result().client
            assert answered.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE)
            return ""

    def by_exports(self, pair: Pair) -> str:
        """It is told its name where it asks for an export that there is not."""
        try:
            with Wire(self.tcp).begin().encrypt(self._context(pair)) as wire:
                (reply,) = wire.option(7, b"\0\0\0\1x\0\0")
        except OSError:
            return ""
        said = reply.data.decode()
        _, known, rest = said.partition("or client ")
        return rest.removesuffix(" may not open it").strip('"') if known else ""

    def by_metrics(self, pair: Pair) -> str:
        """It is told its name where it may not read them."""
        url = self.running.metrics_url.replace("0.0.0.0", "localhost")
        try:
            urllib.request.urlopen(url, timeout=PATIENCE, context=self._context(pair))
        except urllib.error.HTTPError as error:
            said = error.read().decode()
            return said.partition("client ")[2].removesuffix(" may not read the metrics\n")[1:-1]
        except OSError:
            return ""
        raise AssertionError("it may read the metrics")

    def _context(self, pair: Pair) -> ssl.SSLContext:
        made = ssl.create_default_context(cafile=str(self.authority.file))
        made.load_cert_chain(pair.cert, pair.key)
        return made


@pytest.fixture(scope="module")
def fronts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fronts]:
    authority = Authority(tmp_path_factory.mktemp("authority"))
    flags = authority.flags(authority.server())
    with daemon(*flags, "--nbd=tcp:127.0.0.1:0", "--metrics=0.0.0.0:0") as running:
        yield Fronts(running, authority)


@pytest.mark.parametrize(("common", "others", "name"), CERTIFICATES)
def test_all_fronts_know_a_client_by_the_same_name(
    fronts: Fronts, common: str | None, others: list[x509.GeneralName], name: str
) -> None:
    pair = fronts.authority.odd(common, others)
    assert (fronts.by_calls(pair), fronts.by_exports(pair), fronts.by_metrics(pair)) == (name, name, name)


@pytest.mark.parametrize(
    ("authority", "usage", "name"), [(True, "", ""), (False, SERVER_USAGE, ""), (False, CLIENT_USAGE, "a")]
)
def test_a_certificate_that_is_for_something_else_is_no_clients(
    fronts: Fronts, authority: bool, usage: str, name: str
) -> None:
    pair = fronts.authority.odd("a", authority=authority, usage=usage)
    assert (fronts.by_calls(pair), fronts.by_exports(pair), fronts.by_metrics(pair)) == (name, name, name)
