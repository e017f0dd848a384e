"""Exports saved and restored: as exports, whole or refused before anything is written, with nobody in meanwhile."""

from __future__ import annotations

import io
import json
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest

import tmem
from tests.block.lib.handshake import Wire, info_query, opened
from tests.block.lib.protocol import Opt, Rep
from tests.lib.command import Command
from tests.lib.daemon import daemon
from tests.lib.retry import eventually
from tests.lib.support import noise, page
from tmem.cli.archive.exports import restored
from tmem.cli.archive.format import MAGIC, Reader, Writer
from tmem.cli.base.target import Target

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tmem._protocol.export_ops import Export

MIB = 1 << 20
BLOCK = 16384
LAYOUT: dict[str, Any] = {
    "reserve": 64 * 1024,
    "codec": "zstd:3",
    "block_size": BLOCK,
    "multi_conn": True,
    "allow": ["local", "somebody"],
}


@contextmanager
def served(folder: Path, name: str) -> Iterator[tuple[Command, tmem.Store, str]]:
    """A daemon with NBD: its command, a connection, and where the exports are."""
    address = f"unix:{folder / name}.nbd"
    with daemon("--memory=64MiB", f"--nbd={address}") as running, tmem.connect(running.address) as store:
        yield Command(running.address), store, address


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Command, tmem.Store, str]]:
    with served(tmp_path_factory.mktemp("here"), "here") as found:
        yield found


@pytest.fixture
def cli(here: tuple[Command, tmem.Store, str]) -> Iterator[Command]:
    yield here[0]
    for export in here[1].exports():
        here[1].remove_export(export.name, force=True)


@pytest.fixture
def store(here: tuple[Command, tmem.Store, str]) -> tmem.Store:
    return here[1]


@pytest.fixture
def nbd(here: tuple[Command, tmem.Store, str]) -> str:
    return here[2]


@pytest.fixture
def file(cli: Command, store: tmem.Store, nbd: str, tmp_path: Path) -> Path:
    """A saved export of 3 MiB and a half block, written to its end. It is gone from the store."""
    store.create_export("disk", 3 * MIB + BLOCK // 2, **LAYOUT)
    with opened(nbd, "disk") as client:
        client.write(0, page(1) * 4)
        client.write(3 * MIB, noise(2) * 2)
    eventually(lambda: not found(store, "disk").clients)
    cli("save", "export/disk", tmp_path / "saved")
    store.remove_export("disk")
    return tmp_path / "saved"


def found(store: tmem.Store, name: str) -> Export:
    return next(one for one in store.exports() if one.name == name)


def lets_in(nbd: str, name: str) -> bool:
    with Wire(nbd).begin() as wire:
        return wire.option(Opt.GO, info_query(name))[-1].kind == Rep.ACK


def holds_what_was_saved(nbd: str, name: str) -> None:
    with opened(nbd, name) as client:
        assert client.read(0, 20480) == page(1) * 4 + bytes(4096)
        assert client.read(3 * MIB, BLOCK // 2) == noise(2) * 2


def as_made(export: Export) -> dict[str, Any]:
    return {name: value for name, value in asdict(export).items() if name not in ("counters", "footprint_bytes")}


def test_a_saved_export_is_restored_as_one_by_another_daemon(file: Path, tmp_path: Path) -> None:
    with served(tmp_path, "there") as (cli, store, nbd):
        assert "to export 'disk'" in cli("restore", file)
        assert "to export 'copy'" in cli("restore", file, "--as", "copy")
        for name in ("disk", "copy"):
            export = found(store, name)
            assert (export.size, export.reserve, export.codec) == (3 * MIB + BLOCK // 2, 65536, "zstd:3")
            assert (export.block_size, export.multi_conn, export.draining) == (BLOCK, True, False)
            assert list(export.allowed or ()) == ["local", "somebody"]
            holds_what_was_saved(nbd, name)
        cli("restore", file, "--pool", "pages")
        assert store.find_pool("pages").stats()["pages"] == 2


def test_who_may_open_it_is_restored_where_that_is_anyone(cli: Command, store: tmem.Store, tmp_path: Path) -> None:
    store.create_export("open", MIB)
    cli("save", "export/open", tmp_path / "saved")
    assert "tmem export allow copy" in cli.run("restore", tmp_path / "saved", "--as", "copy").stderr
    assert found(store, "copy").allowed is None


@pytest.mark.parametrize(("size", "old"), [(MIB, False), (3 * MIB, True), (3 * MIB, False)])
def test_an_export_that_is_too_small_is_refused_with_both_sizes_before_anything_is_written(
    cli: Command, store: tmem.Store, file: Path, size: int, old: bool
) -> None:
    if old:
        without_description(file)
    store.create_export("disk", size, block_size=BLOCK)
    said = cli.fails("restore", file, "--merge")
    assert f"{size:,} bytes" in said
    assert f"{3 * MIB + (BLOCK if old else BLOCK // 2):,} bytes" in said
    assert "tmem export resize disk" in said
    assert (found(store, "disk").pages, found(store, "disk").draining) == (0, False)


def test_a_file_of_before_needs_an_export_that_is_there(cli: Command, store: tmem.Store, nbd: str, file: Path) -> None:
    without_description(file)
    assert "tmem export create disk --size SIZE --codec zstd:3 --block-size 16384" in cli.fails("restore", file)
    store.create_export("disk", 3 * MIB + BLOCK // 2, block_size=BLOCK)
    assert "(existing)" in cli("restore", file)
    holds_what_was_saved(nbd, "disk")


def test_an_export_that_a_client_has_open_is_left_alone(cli: Command, store: tmem.Store, nbd: str, file: Path) -> None:
    store.create_export("disk", 4 * MIB, block_size=BLOCK)
    with opened(nbd, "disk") as client:
        client.write(0, page(9) * 4)
        for options in ((), ("--merge",)):
            said = cli.fails("restore", file, *options)
        assert "is in use by unix" in said
        assert client.read(0, BLOCK) == page(9) * 4
    assert not found(store, "disk").draining
    eventually(lambda: not found(store, "disk").clients)
    assert "--merge" in cli.fails("restore", file)
    cli("restore", file, "--merge")
    holds_what_was_saved(nbd, "disk")


@pytest.mark.parametrize("into", ["pages", "export/disk"])
def test_what_is_frozen_keeps_what_it_holds(cli: Command, store: tmem.Store, file: Path, into: str) -> None:
    """A put that is refused would take the older page away."""
    cli("restore", file, "--pool", into)
    cli("pool", "freeze", into)
    assert "is frozen, so nothing was written" in cli.fails("restore", file, "--merge", "--pool", into)
    assert store.find_pool(into).stats()["pages"] == 2
    cli("pool", "thaw", into)
    cli("restore", file, "--merge", "--pool", into)
    if into == "pages":
        store.find_pool(into).destroy()


@pytest.mark.parametrize("before", ["none", "empty", "draining"])
def test_nobody_gets_in_while_it_is_restored_nor_after_a_restore_that_failed(
    cli: Command, store: tmem.Store, nbd: str, file: Path, before: str
) -> None:
    if before != "none":
        store.create_export("disk", 4 * MIB, block_size=BLOCK)
    if before == "draining":
        store.drain_export("disk")
    said: list[str] = []
    with file.open("rb") as source:
        reader = Reader(source, "saved")
        reader.check()
        target = Target(store, "server")

        def held(fails: bool) -> None:
            with restored(target, reader, "disk", True, said.append) as (_, made):
                assert made == (before == "none" and not fails)
                assert not lets_in(nbd, "disk")
                if fails:
                    raise KeyboardInterrupt

        held(False)
        assert lets_in(nbd, "disk") == (before != "draining")
        eventually(lambda: not found(store, "disk").clients)
        with pytest.raises(KeyboardInterrupt):
            held(True)
    assert not lets_in(nbd, "disk")
    assert "tmem export drain disk --undo" in said[-1]
    cli("export", "drain", "disk", "--undo")
    assert lets_in(nbd, "disk")


def test_pages_that_are_refused_leave_it_closed(cli: Command, store: tmem.Store, nbd: str, tmp_path: Path) -> None:
    file = tmp_path / "saved"
    store.create_export("disk", MIB)
    with opened(nbd, "disk") as client:
        client.write(0, b"".join(map(noise, range(256))))
    cli("save", "export/disk", file)
    cli("restore", file, "--as", "copy")
    store.create_export("small", MIB)
    cli("pool", "quota", "export/small", "256KiB")
    done = cli.run("restore", file, "--as", "small")
    assert done.exit_code == 1
    assert "for quota" in done.stderr
    assert "admits no clients" in done.stderr
    assert not lets_in(nbd, "small")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"size": BLOCK}, "beyond the end of the export"),
        ({"size": "large"}, "does not describe an export"),
        ({"allowed": "local"}, "does not describe an export"),
        (None, "does not describe an export"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(
    cli: Command, store: tmem.Store, file: Path, change: dict[str, Any] | None, why: str
) -> None:
    rewrite(file, lambda header: header | {"export": {} if change is None else header["export"] | change})
    assert why in cli.fails("restore", file)
    assert store.exports() == []


def test_what_a_newer_version_says_besides_is_passed_over(cli: Command, store: tmem.Store, file: Path) -> None:
    rewrite(file, lambda header: header | {"more": 1, "export": header["export"] | {"more": 2}})
    cli("restore", file)
    assert found(store, "disk").pages == 2


def test_pages_of_several_objects_are_no_exports(cli: Command, store: tmem.Store, tmp_path: Path) -> None:
    store.pool("swap").put(7, {0: page(1)})
    store.create_export("disk", MIB)
    cli("save", "swap", tmp_path / "saved")
    assert "--pool NAME" in cli.fails("restore", tmp_path / "saved", "--pool", "export/disk")
    assert found(store, "disk").pages == 0
    store.find_pool("swap").destroy()


def test_an_arena_without_its_server_takes_no_export(file: Path, tmp_path: Path) -> None:
    with tmem.open(memory="8MiB", arena=tmp_path / "arena") as store:
        cli = Command(f"shm://{tmp_path / 'arena'}")
        assert "--server HOST:PORT" in cli.fails("restore", file)
        cli("restore", file, "--pool", "pages")
        assert store.find_pool("pages").stats()["pages"] == 2


def rewrite(file: Path, change: Any) -> None:
    """The same file with another header."""
    whole = file.read_bytes()
    length = int.from_bytes(whole[len(MAGIC) + 1 :][:4], "little")
    header = json.loads(whole[len(MAGIC) + 5 :][:length])
    sink = io.BytesIO()
    Writer(sink, change(header))
    file.write_bytes(sink.getvalue() + whole[len(MAGIC) + 9 + length :])


def without_description(file: Path) -> None:
    """The file as versions before wrote it."""
    rewrite(file, lambda header: {name: value for name, value in header.items() if name != "export"})
