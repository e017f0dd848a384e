"""The command `tmem` against a real daemon: what it says, what it changes, how it fails."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

import tmem
from tests.lib.command import Command
from tests.lib.daemon import daemon
from tests.lib.support import noise, page, run
from tmem.cli.archive.stored_file import LABEL_INDEX

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with daemon("--memory", "64MiB", "--inject", "") as running:
        yield running.address


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that ends within a page."""
    path = tmp_path / "file"
    path.write_bytes(run(0, 1500)[:-1000])
    return path


def test_pools_are_made_listed_changed_and_removed(cli: Command, store: tmem.Store) -> None:
    assert "no pools" in cli("pool", "ls")
    cli("pool", "create", "swap", "--codec", "zstd:3", "--quota", "2MiB", "--max-zpage", "4000")
    cli("pool", "create", "cache", "--kind", "ephemeral", "--shared", "--weight", "3", "--page-size", "8KiB")
    settings = store.find_pool("swap").settings
    assert (settings.codec, settings.quota, settings.max_zpage) == ("zstd:3", 2 << 20, 4000)
    assert store.find_pool("cache").settings.shared
    heading, cache, swap = cli("pool", "ls").splitlines()
    assert heading.split()[:3] == ["POOL", "KIND", "CODEC"]
    assert (cache.split()[0], swap.split()[:3]) == ("cache", ["swap", "persistent", "zstd:3"])
    assert swap.index("2.00 MiB") + len("2.00 MiB") == heading.index("QUOTA") + len("QUOTA")
    cli("pool", "quota", "swap", "1MiB")
    cli("pool", "weight", "cache", "9")
    assert (store.find_pool("swap").quota, store.find_pool("cache").weight) == (1 << 20, 9)
    cli("pool", "quota", "swap", "none")
    assert store.find_pool("swap").quota == 0
    cli("pool", "freeze", "swap")
    assert store.find_pool("swap").frozen
    assert "frozen" in cli("pool", "ls")
    cli("pool", "thaw", "swap")
    assert not store.find_pool("swap").frozen
    cli("pool", "rm", "swap", "--yes")
    assert [pool.name for pool in store.pools()] == ["cache"]


def test_a_pool_is_not_removed_unless_that_was_meant(cli: Command, store: tmem.Store) -> None:
    pool = store.pool("kept")
    pool.put(1, {7: page(7)})
    for answer in ("n\n", ""):
        ended = cli.run("pool", "rm", "kept", given=answer)
        assert (ended.exit_code, "with 1 page?" in ended.stderr) == (1, True)
    assert pool.get(1, [7]) == {7: page(7)}
    assert cli.run("pool", "rm", "kept", given="y\n").exit_code == 0
    assert store.pools() == []


def test_json_has_the_exact_numbers(cli: Command, store: tmem.Store) -> None:
    pool = store.pool("swap", codec="zstd")
    pool.put_range(1, 0, run(0, 700))
    (listed,) = cli.json("pool", "ls")
    assert listed["stats"] == pool.stats()
    assert (listed["name"], listed["frozen"]) == ("swap", False)
    assert listed["settings"]["quota"] == 0
    assert cli.json("pool", "show", "swap") == cli.json("stat", "swap") == listed
    whole = cli.json("stat")
    assert whole["store"]["pages"] == 700
    assert whole["version"] == tmem.__version__
    assert cli.json("version") == {"tmem": tmem.__version__, "server": tmem.__version__}
    assert json.loads(cli("--json", "pool", "ls")) == [listed]


def test_stat_gives_every_number_its_unit(cli: Command, store: tmem.Store) -> None:
    pool = store.pool("swap")
    pool.put_range(1, 0, run(0, 700))
    shown = {line.split()[0]: line for line in cli("stat").splitlines() if line.startswith("  ")}
    assert set(store.stats()) <= shown.keys()
    assert shown["memory_bytes"].split()[1:4] == ["64.0", "MiB", "67,108,864"]
    assert shown["pages"].split()[1:3] == ["700", "pages"]
    of_pool = cli("stat", "swap")
    assert "payload_bytes" in of_pool
    assert "Size classes" not in of_pool
    assert "Size classes" in cli("stat", "swap", "--classes")


@pytest.mark.parametrize("columns", ["80", "120"])
def test_what_is_shown_fits_the_terminal(cli: Command, store: tmem.Store, columns: str) -> None:
    store.pool("a-pool-whose-name-is-as-long-as-a-name-of-a-pool-can-be-here-ok", codec="lz4:65537").put(
        1, {1: page(1)}
    )
    for line in (["stat"], ["pool", "ls"], ["top", "--once", "--interval", "0.05"], ["bench", "--pages", "64"]):
        assert max(map(len, cli(*line, COLUMNS=columns).splitlines())) <= int(columns), line


def test_a_file_goes_in_and_comes_back(cli: Command, store: tmem.Store, file: Path, tmp_path: Path) -> None:
    store.pool("files", codec="zstd")
    said = cli("put", "files", "a file", file)
    assert "5.86 MiB as 1,501 pages" in said
    assert "ratio" in said
    payload = store.find_pool("files").stats()["payload_bytes"]
    copy = tmp_path / "copy"
    assert "wrote 5.86 MiB" in cli("get", "files", "a file", "-o", copy)
    assert copy.read_bytes() == file.read_bytes()
    assert cli.run("get", "files", "a file").stdout_bytes == file.read_bytes()
    document = json.loads(cli("put", "files", "a file", file, "--json"))
    assert document == {"name": "a file", "bytes": file.stat().st_size, "pages": 1501, "payload_bytes": payload}
    assert "1,501 pages" in cli("flush", "files", "a file")
    assert "was not there" in cli("flush", "files", "a file")
    assert "no file 'a file'" in cli.fails("get", "files", "a file")


@pytest.mark.parametrize("data", [b"", b"x", noise(1), noise(1) + b"x"], ids=["empty", "byte", "page", "page and byte"])
def test_bytes_of_any_length_come_back_through_a_pipe(cli: Command, store: tmem.Store, data: bytes) -> None:
    store.pool("files", page_size=65536 if len(data) == 1 else 4096)
    assert cli.run("put", "files", "n", "-", given=data).exit_code == 0
    assert cli.run("get", "files", "n").stdout_bytes == data


def test_a_shorter_file_leaves_nothing_of_the_longer(cli: Command, store: tmem.Store, file: Path) -> None:
    pool = store.pool("files")
    cli("put", "files", "n", file)
    cli.run("put", "files", "n", "-", given=b"short")
    assert cli.run("get", "files", "n").stdout == "short"
    assert pool.stats()["pages"] == 2


def test_a_refused_page_is_an_error_that_names_the_reason(cli: Command, store: tmem.Store, tmp_path: Path) -> None:
    pool = store.pool("small", quota="256KiB")
    cli.run("put", "small", "n", "-", given=b"older")
    path = tmp_path / "noise"
    path.write_bytes(b"".join(map(noise, range(200))))
    said = cli.fails("put", "small", "n", path)
    assert "was refused: quota: " in said
    assert "tmem pool quota small SIZE" in said
    assert pool.stats()["pages"] == 0


def test_an_incomplete_or_changed_file_is_detected(cli: Command, store: tmem.Store, file: Path, tmp_path: Path) -> None:
    pool = store.pool("files")
    cli("put", "files", "n", file)
    pool.put(tmem.oid("n"), {3: page(99)})
    copy = tmp_path / "copy"
    assert "fails its checksum" in cli.fails("get", "files", "n", "-o", copy)
    pool.flush(tmem.oid("n"), [3, 1200])
    assert "are gone" in cli.fails("get", "files", "n", "-o", copy)
    pool.put(tmem.oid("n"), {LABEL_INDEX: page(1)})
    assert "was not stored by `tmem put`" in cli.fails("get", "files", "n", "-o", copy)
    assert list(tmp_path.iterdir()) == [file]


def test_an_unknown_pool_is_reported_with_similar_names(cli: Command, store: tmem.Store) -> None:
    assert "nor any other" in cli.fails("stat", "photos")
    for name in ("photos", "photos-old", "zebra"):
        store.pool(name)
    assert "did you mean 'photos'" in cli.fails("get", "fotos", "x")
    assert "lists all 3" in cli.fails("pool", "freeze", "qqqq")
    assert "'photos' exists" in cli.fails("pool", "create", "photos")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["pool", "lss"], "Did you mean 'ls'"),
        (["--sever"], "--server"),
        (["pool", "create"], "POOL"),
        (["pool", "create", "x", "--codec", "lzo"], "lzo"),
        (["pool", "create", "x", "--quota", "12x"], "12x"),
        (["pool", "create", ""], "name"),
        (["relinquish", "much"], "much"),
        (["inject", "Put"], "METHOD:PART"),
        (["--server", "here:there", "stat"], "HOST:PORT"),
        (["put", "x", "y", "/nonexistent"], "/nonexistent"),
        (["restore", "/nonexistent"], "/nonexistent"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_line_that_makes_no_sense_is_status_2(cli: Command, line: list[str], says: str) -> None:
    assert says in cli.fails(*line, status=2)


def test_an_unavailable_server_is_reported_at_once() -> None:
    gone = Command("127.0.0.1:1")
    said = gone.fails("put", "pool", "name", os.devnull)
    assert "nothing answers at 127.0.0.1:1: is tmemd running?" in said
    assert "cannot resolve the host of no.such.host.invalid" in Command("no.such.host.invalid").fails("stat")


@pytest.mark.parametrize("line", [["-h"], ["pool", "-h"], ["pool", "create", "-h"]], ids=" ".join)
def test_help_has_a_short_name(cli: Command, line: list[str]) -> None:
    assert cli(*line) == cli(*line[:-1], "--help")


def test_an_export_that_is_not_there_is_said_with_where_to_look(cli: Command) -> None:
    assert "export 'disk' does not exist: `tmem export ls` lists" in cli.fails("export", "drain", "disk")


def test_an_arena_of_this_machine_does_as_well(tmp_path: Path, file: Path) -> None:
    arena = tmp_path / "arena"
    cli = Command(f"shm://{arena}")
    assert str(arena) in cli.fails("stat")
    with tmem.open(memory="32MiB", arena=arena):
        cli("pool", "create", "files")
        cli("put", "files", "n", file)
        assert cli.run("get", "files", "n").stdout_bytes == file.read_bytes()
        assert cli.json("stat")["store"]["pages"] == 1501
        assert "shm" in cli("bench", "--pages", "64")
        assert "needs a server" in cli.fails("worker", "ls")
        assert "needs a server" in cli.fails("events")
        assert "files" in cli("top", "--once", "--interval", "0.05")
        assert "exists" in cli.fails("pool", "create", "files")


def test_check_compact_and_relinquish(cli: Command, store: tmem.Store) -> None:
    pool = store.pool("cache", kind="ephemeral")
    pool.put_range(1, 0, b"".join(map(noise, range(1000))))
    assert "consistent" in cli("check")
    assert cli.json("check")["violations"] == []
    assert set(cli.json("compact")) == {"moved_pages", "freed_bytes"}
    given = cli.json("relinquish", "1MiB")
    assert given["asked_bytes"] == 1 << 20 <= given["given_back_bytes"]
    assert "nothing more can be evicted" in cli("relinquish", "1GiB")
    assert pool.stats()["pages"] == 0


def test_faults_are_injected_and_ended(cli: Command) -> None:
    assert "50 ms" in cli("inject", "Flush:delay=50ms,fraction=0.1", "Check:code=UNAVAILABLE")
    assert "cannot be reached" in cli.fails("check")
    assert [fault["method"] for fault in cli.json("inject")["before"]] == ["Flush", "Check"]
    assert cli.json("check")["violations"] == []


def test_workers(cli: Command, server: str) -> None:
    (worker,) = cli.json("worker", "ls")
    assert worker["port"] == int(server.rpartition(":")[2])
    assert str(worker["process"]) in cli("worker", "ls")


def test_bench_measures_both_encodings_and_leaves_nothing(cli: Command, store: tmem.Store, file: Path) -> None:
    found = cli.json("bench", "--pages", "300", "--batch", "16", "--codec", "zstd", "--from", file)
    assert [(one["encoding"], one["operation"]) for one in found["timed"]] == [
        (encoding, operation) for encoding in ("lz4", "raw") for operation in ("put", "get")
    ]
    assert all(0 < one["p50_seconds"] <= one["p99_seconds"] <= one["max_seconds"] for one in found["timed"])
    assert found["ratios"]["payload_bytes"] > 1.5
    assert store.pools() == []


def test_bench_that_does_not_fit_says_so_and_leaves_nothing(cli: Command, store: tmem.Store, tmp_path: Path) -> None:
    path = tmp_path / "noise"
    path.write_bytes(b"".join(map(noise, range(2000))))
    assert "were refused: memory" in cli.fails("bench", "--pages", "20000", "--from", path)
    assert store.pools() == []


def test_top_gives_rates_as_lines_of_json(cli: Command, store: tmem.Store) -> None:
    store.pool("swap").put_range(1, 0, run(0, 100))
    looks = [json.loads(line) for line in cli("top", "--json", "--iterations", "2", "--interval", "0.05").splitlines()]
    assert [look["pools"][0]["pages"] for look in looks] == [100, 100]
    assert all(look["seconds"] >= 0.05 and look["latency_seconds"] > 0 for look in looks)
