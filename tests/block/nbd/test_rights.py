"""Whose an export is: clients known by certificates, what they see and open, and certificates that are renewed."""

from __future__ import annotations

import os
import ssl
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

import tmem
from tests.block.lib.handshake import Wire, info_query, meta_query, opened
from tests.block.lib.protocol import Info, Opt, Rep
from tests.block.lib.stream import PATIENCE, EndedError
from tests.lib.certificates import Authority
from tests.lib.command import Command
from tests.lib.daemon import Daemon, daemon
from tests.lib.retry import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.block.lib.client import Client
    from tests.lib.certificates import Pair

MIB = 1 << 20
OBJECT, SESSION = "0" * 48, "1" * 32
PAGES = "tmem:pages"


class Site:
    """A tmemd with mutual TLS and the certificates of its clients; `ops` is its administrator."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.authority = folder, Authority(folder / "ca")
        self.server = self.authority.server()
        self.pairs = {name: self.authority.client(name) for name in ("alice", "bob", "ops")}
        self._flags = [*self.authority.flags(self.server), "--admins=ops", f"--arena={folder}/arena"]
        config = folder / "tmemd.toml"
        config.write_text('[clients.bob]\nshared = ["photos-*"]\n')
        self._flags += [f"--config={config}", "--nbd=tcp:127.0.0.1:0", f"--nbd=unix:{folder}/sock"]
        self.start()

    def start(self) -> None:
        self.daemon = Daemon(*self._flags)
        self.unix, self.tcp = self.daemon._said(r"exports on (.*)").split(", ")

    def store(self, name: str) -> tmem.Store:
        """As a client of that name sees it."""
        pair = self.pairs[name]
        return tmem.connect(self.daemon.address, tls=tmem.Tls(ca=self.authority.file, cert=pair.cert, key=pair.key))

    def command(self, *arguments: object) -> Any:
        """The command `tmem` of the administrator; what it says."""
        ended = self.run(*arguments)
        assert ended.exit_code == 0, ended.output
        return ended.stdout

    def run(self, *arguments: object) -> Any:
        pair = self.pairs["ops"]
        tls = f"--ca={self.authority.file}", f"--cert={pair.cert}", f"--key={pair.key}"
        return Command(self.daemon.address).run(*tls, *arguments)

    def wire(self, name: str) -> Wire:
        """A client of that name, over TLS, in its handshake."""
        return Wire(self.tcp).begin().encrypt(context(self.authority, self.pairs[name]))

    def opened(self, name: str, export: str) -> Client:
        return self.wire(name).use_structured().go(export)


def context(authority: Authority, pair: Pair | None = None) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(authority.file))
    if pair is not None:
        made.load_cert_chain(pair.cert, pair.key)
    return made


def refusal(wire: Wire, option: int, query: bytes) -> tuple[int, str]:
    (reply,) = wire.option(option, query)
    return reply.kind, reply.data.decode()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"))
    yield made
    made.daemon.kill()


@pytest.fixture
def store(site: Site) -> Iterator[tmem.Store]:
    """The administrator's. Exports are gone afterwards."""
    with site.store("ops") as connected:
        yield connected
        for export in connected.exports():
            connected.remove_export(export.name, force=True)


def test_an_export_is_seen_and_opened_by_those_it_names(site: Site, store: tmem.Store) -> None:
    assert store.create_export("everybodys", MIB, allow=["*"], multi_conn=True).allowed is None
    assert store.create_export("hers", MIB, allow=["alice"], multi_conn=True).allowed == ["alice"]
    store.create_export("the-machines", MIB, allow=["local"])
    store.create_export("nobodys", MIB, allow=[])
    with site.wire("alice") as alice, site.wire("bob") as bob, site.wire("ops") as ops:
        assert set(alice.names()) == {"everybodys", "hers"}
        assert set(bob.names()) == set(ops.names()) == {"everybodys"}
        for wire, name in ((bob, "bob"), (ops, "ops")):
            for option, query in (
                (Opt.GO, info_query("hers")),
                (Opt.INFO, info_query("hers")),
                (Opt.LIST_META_CONTEXT, meta_query("hers")),
            ):
                wire.structured or wire.use_structured()
                kind, why = refusal(wire, option, query)
                assert kind == Rep.ERR_UNKNOWN
                assert why == f'there is no export "hers", or client "{name}" may not open it'
        with bob.go("everybodys") as both, alice.go("hers") as her:
            both.write(0, b"\1" * 4096)
            her.write(0, b"\2" * 4096)
            assert her.read(0, 4096) == b"\2" * 4096
        with site.wire("bob") as late:
            late.ask(Opt.EXPORT_NAME, b"hers")
            with pytest.raises(EndedError):
                late.receive(1)
    with Wire(site.unix).begin() as here:
        assert set(here.names()) == {"everybodys", "the-machines"}
        assert here.refused(Opt.GO, info_query("hers")) == Rep.ERR_UNKNOWN
        here.go("the-machines").close()


def test_an_export_that_names_nobody_is_its_creators_and_the_administrators(site: Site, store: tmem.Store) -> None:
    """And of those here: the folder of a Unix socket has let them in."""
    made = store.create_export("mine", MIB, multi_conn=True)
    assert made.allowed == ["ops", "local"]
    assert "ops, local" in site.command("export", "ls")
    site.opened("ops", "mine").close()
    opened(site.unix, "mine").close()
    with site.wire("alice") as alice:
        assert alice.names() == {}
        assert alice.refused(Opt.GO, info_query("mine")) == Rep.ERR_UNKNOWN
    assert store.allow_export("mine", "*").allowed is None
    site.opened("alice", "mine").close()
    with pytest.raises(ValueError, match="name it alone"):
        store.allow_export("mine", "*", "alice")
    with pytest.raises(ValueError, match="name it alone"):
        store.create_export("more", MIB, allow=["*", "alice"])


def test_a_right_that_is_taken_away_ends_connections(site: Site, store: tmem.Store) -> None:
    store.create_export("disk", MIB, allow=["*"], multi_conn=True)
    with site.opened("alice", "disk") as alice, site.opened("bob", "disk") as bob, opened(site.unix, "disk") as here:
        bob.write(0, b"\1" * 4096)
        assert store.allow_export("disk", "alice", "bob").allowed == ["alice", "bob"]
        with pytest.raises(EndedError):
            here.read(0, 4096)
        assert bob.read(0, 4096) == b"\1" * 4096
        found = store.allow_export("disk", "bob", undo=True)
        assert (found.allowed, [one.identity for one in found.clients]) == (["alice"], ["alice"])
        with pytest.raises((EndedError, ssl.SSLError)):
            bob.read(0, 4096)
        assert alice.read(0, 4096) == b"\1" * 4096
        assert store.allow_export("disk", "alice", undo=True).allowed == []
        with pytest.raises((EndedError, ssl.SSLError)):
            alice.read(0, 4096)
    assert store.allow_export("disk", anyone=True).allowed is None
    site.opened("bob", "disk").close()


def test_rights_outlive_the_daemon(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with site.store("ops") as store:
        store.create_export("made", MIB, allow=["alice", "é\U0001f600"])
        store.create_export("changed", MIB, allow=["*"])
        store.allow_export("changed", "bob")
    for end in (Daemon.kill, Daemon.stop):
        end(site.daemon)
        site.start()
        with site.store("ops") as store:
            assert {one.name: one.allowed for one in store.exports()} == {
                "made": ["alice", "é\U0001f600"],
                "changed": ["bob"],
            }
        with site.wire("alice") as alice:
            assert set(alice.names()) == {"made"}
            assert alice.refused(Opt.GO, info_query("changed")) == Rep.ERR_UNKNOWN
    assert site.daemon.stop() == 0


def test_names_that_make_no_sense_are_refused(store: tmem.Store) -> None:
    store.create_export("disk", MIB, allow=["alice"])
    for names in (["x" * 65], [""], ["a\0b"]):
        with pytest.raises(ValueError, match="not a valid client name: it must be 1 to 64 printable bytes"):
            store.allow_export("disk", *names)
        with pytest.raises(ValueError, match="is not a valid client name"):
            store.create_export("other", MIB, allow=names)
    most = [f"{at:02}" + 62 * '"' for at in range(24)]
    assert store.create_export("x" * 57, MIB, allow=most).allowed == most
    with pytest.raises(ValueError, match="at most 24 clients, not 25"):
        store.allow_export("x" * 57, "one more")
    with pytest.raises(ValueError, match="either name the clients"):
        store.allow_export("disk")
    with pytest.raises(ValueError, match="either name the clients"):
        store.allow_export("disk", "alice", anyone=True)
    with pytest.raises(TypeError, match="names in a list"):
        store.create_export("other", MIB, allow="alice")
    with pytest.raises(tmem.UnknownExportError):
        store.allow_export("other", "alice")
    assert {one.name: one.allowed for one in store.exports()} == {"disk": ["alice"], "x" * 57: most}


def test_the_command_says_who_may(site: Site, store: tmem.Store) -> None:
    site.command("export", "create", "disk", "--size=1MiB", "--allow=alice", "--allow", "bob")
    assert "alice, bob" in site.command("export", "ls")
    assert site.command("export", "allow", "disk", "bob", "--undo").strip() == "export 'disk' may be opened by alice"
    assert "by nobody" in site.command("export", "allow", "disk", "alice", "--undo")
    assert "by anyone" in site.command("export", "allow", "disk", "--anyone")
    refused = site.run("export", "allow", "disk", "bob", "--undo")
    assert refused.exit_code == 2
    assert "anyone may open export 'disk': first name the clients that may" in refused.stderr
    assert store.exports()[0].allowed is None


def test_a_pool_is_a_cache_for_its_owner_and_those_it_is_shared_with(site: Site) -> None:
    with site.store("alice") as alice:
        alice.pool("hers", kind="ephemeral", inclusive=True)
        alice.pool("photos-1", kind="ephemeral", shared=True)
        alice.pool("letters", kind="ephemeral", shared=True)
    names = {
        "hers": f"cache/hers/{OBJECT}/{SESSION}",
        "photos-1": f"cache/photos-1/{OBJECT}",
        "letters": f"cache/letters/{OBJECT}",
        "new": f"cache/new/{OBJECT}/{SESSION}",
        ".exports": f"cache/.exports/{OBJECT}/{SESSION}",
    }
    may = {"alice": {"hers", "photos-1", "letters"}, "bob": {"photos-1"}, "ops": {"hers", "photos-1", "letters"}}
    for client, pools in may.items():
        for pool, name in names.items():
            with site.wire(client) as wire:
                wire.use_structured()
                if pool in pools:
                    wire.meta(Opt.SET_META_CONTEXT, name, PAGES)
                    wire.go(name, Info.BLOCK_SIZE).close()
                    continue
                if client == "ops" and pool == "new":
                    continue
                for option, query in (
                    (Opt.SET_META_CONTEXT, meta_query(name, PAGES)),
                    (Opt.GO, info_query(name, Info.BLOCK_SIZE)),
                ):
                    kind, why = refusal(wire, option, query)
                    assert kind == Rep.ERR_POLICY
                    assert "belongs to the daemon" in why if pool == ".exports" else f"client '{client}' may not" in why
    with Wire(site.unix).begin().use_structured() as here:
        query = meta_query(names["hers"], PAGES)
        assert refusal(here, Opt.SET_META_CONTEXT, query) == (
            Rep.ERR_POLICY,
            "client 'local' may not use pool 'hers'",
        )
    with site.store("ops") as ops:
        assert "new" not in {pool.name for pool in ops.pools()}


def renew(source: Path, target: Path) -> None:
    """As renewers of certificates do it: in one step."""
    new = target.with_suffix(".new")
    new.write_bytes(source.read_bytes())
    os.replace(new, target)


def test_certificates_change_while_exports_are_in_use(tmp_path: Path) -> None:
    old, new, live = (Authority(tmp_path / name) for name in ("old", "new", "live"))
    server, fresh = old.server(), new.server()
    renew(old.file, live.file)
    was, now = context(old, old.client("was")), context(new, new.client("now"))
    with ExitStack() as stack:
        running = stack.enter_context(daemon(*live.flags(server), "--admins=was", "--nbd=tcp:127.0.0.1:0"))
        address = running._said(r"exports on (.*)")
        ops = old.client("was")
        with tmem.connect(running.address, tls=tmem.Tls(ca=old.file, cert=ops.cert, key=ops.key)) as store:
            store.create_export("disk", MIB, allow=["*"], multi_conn=True)

        def disk(using: ssl.SSLContext) -> Client:
            return stack.enter_context(Wire(address).begin().encrypt(using).use_structured().go("disk"))

        kept = disk(was)
        with pytest.raises(ssl.SSLError, match="certificate verify failed"):
            disk(now)
        renew(fresh.key, server.key)
        for _ in range(2):
            disk(was)
        live.file.write_bytes(b"no certificate")
        disk(was)
        renew(new.file, live.file)
        renew(fresh.cert, server.cert)
        disk(now).write(0, b"\1" * 4096)
        with pytest.raises(ssl.SSLError, match="certificate verify failed"):
            disk(was)
        assert kept.read(0, 4096) == b"\1" * 4096, "a connection goes on"
        running.process.terminate()
        _, said = running.process.communicate(timeout=PATIENCE)
    assert said.count("TLS keeps using its previous certificates") == 2
    assert said.count("TLS: certificates reloaded") == 1
    assert "PRIVATE" not in said


def test_clients_are_told_apart_in_lists(site: Site, store: tmem.Store) -> None:
    store.create_export("disk", MIB, allow=["*"], multi_conn=True)
    with site.opened("alice", "disk"), opened(site.unix, "disk"):
        (found,) = store.exports()
        assert sorted((one.identity, one.tls) for one in found.clients) == [("", False), ("alice", True)]
    eventually(lambda: not store.exports()[0].clients)


def test_where_certificates_tell_clients_apart_a_socket_has_no_administrator_of_its_own(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    with daemon(*authority.flags(authority.server()), f"--nbd=unix:{tmp_path}/sock"):
        with Wire(f"unix:{tmp_path}/sock").begin().use_structured() as here:
            kind, why = refusal(here, Opt.SET_META_CONTEXT, meta_query(f"cache/new/{OBJECT}/{SESSION}", PAGES))
        assert kind == Rep.ERR_POLICY
        assert "client 'local' may not have it created" in why
