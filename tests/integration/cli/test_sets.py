"""`tmem save --all` and `tmem restore --all`: every persistent pool and export of a store, in sets."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from typing import TYPE_CHECKING

import pytest

import tmem
from tests.lib.command import Command
from tests.lib.daemon import daemon
from tests.lib.support import noise, page, run
from tmem.cli.archive.save import save
from tmem.cli.archive.sets import save_all
from tmem.cli.base.failures import Failed
from tmem.cli.base.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tmem.cli.archive.save import Saved
    from tmem.cli.base.target import PoolView

LAST = "photos/2026 é"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with daemon("--memory", "64MiB") as running:
        yield running.address


@pytest.fixture
def store(server: str) -> Iterator[tmem.Store]:
    """A store of two persistent pools, a cache and an export."""
    with tmem.connect(server) as store:
        store.pool("swap").put_range(1, 0, run(0, 300))
        store.pool(LAST, page_size=16384, codec="zstd").put(2, {9: page(9) * 4})
        store.pool("cache", kind="ephemeral").put(1, {0: page(1)})
        store.create_export("disk", "1MiB", allow=["somebody"])
        yield store
        empty(store)


@pytest.fixture
def cli(server: str, store: tmem.Store) -> Command:  # noqa: ARG001 it has pools
    return Command(server)


def empty(store: tmem.Store) -> None:
    for export in store.exports():
        store.remove_export(export.name, force=True)
    for pool in store.pools():
        if pool.name != ".exports":
            pool.destroy()


def sets(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_all_persistent_pools_are_saved_and_come_back(cli: Command, store: tmem.Store, tmp_path: Path) -> None:
    folder = tmp_path / "saves"
    assert "saved 3 pools to" in cli("save", "--all", folder)
    (made,) = sets(folder)
    names = ["export%2Fdisk.tmem", "manifest.json", "photos%2F2026%20%C3%A9.tmem", "swap.tmem"]
    assert sorted(path.name for path in made.iterdir()) == names
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, made)} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in made.iterdir()} == {0o600}
    manifest = json.loads((made / "manifest.json").read_text())
    assert {one["pool"]: one["pages"] for one in manifest["saved"]} == {"export/disk": 0, LAST: 1, "swap": 300}
    empty(store)
    said = cli.json("restore", "--all", folder)
    assert sorted((one["pool"], one["put"]) for one in said["restored"]) == [
        ("export/disk", 0),
        (LAST, 1),
        ("swap", 300),
    ]
    assert store.find_pool("swap").get_range(1, 0, 300)[0] == run(0, 300)
    assert store.find_pool(LAST).get(2, [9]) == {9: page(9) * 4}
    assert [(one.name, one.size, list(one.allowed or ())) for one in store.exports()] == [
        ("disk", 1 << 20, ["somebody"])
    ]


def test_a_pool_that_cannot_be_saved_stops_no_other_and_no_set_is_removed(
    cli: Command, server: str, tmp_path: Path
) -> None:
    cli("save", "--all", tmp_path)
    session = Session()
    session.options.server = server

    def one_fails(view: PoolView, file: str) -> Saved:
        if view.name == LAST:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file)
        return save(session.target, view, file, lambda _: None)

    with pytest.raises(Failed, match=r"1 of 3 pools could not be saved completely: photos/2026 é: .*No space left"):
        save_all(session, tmp_path, 1, one_fails)
    session.close()
    before, made = sets(tmp_path)
    assert sorted(path.name for path in made.iterdir()) == ["export%2Fdisk.tmem", "manifest.json", "swap.tmem"]
    (failed,) = json.loads((made / "manifest.json").read_text())["failed"]
    assert failed["pool"] == LAST
    cli("save", "--all", tmp_path, "--keep", "1")
    assert before not in sets(tmp_path)


def test_a_file_that_cannot_be_restored_stops_no_other(cli: Command, store: tmem.Store, tmp_path: Path) -> None:
    """A file is cut, and one is gone."""
    cli("save", "--all", tmp_path)
    (made,) = sets(tmp_path)
    (made / "swap.tmem").write_bytes((made / "swap.tmem").read_bytes()[:-1])
    (made / "export%2Fdisk.tmem").unlink()
    empty(store)
    done = cli.run("restore", "--all", tmp_path)
    assert done.exit_code == 1
    assert "swap.tmem: " in done.stderr
    assert "truncated" in done.stderr
    assert "export%2Fdisk.tmem: the file is missing" in done.stderr
    assert [pool.name for pool in store.pools() if not pool.name.startswith(".")] == [LAST]


def test_pages_that_are_refused_are_named_and_the_rest_restored(
    cli: Command, store: tmem.Store, tmp_path: Path
) -> None:
    store.find_pool("swap").put_range(3, 0, b"".join(map(noise, range(200))))
    cli("save", "--all", tmp_path)
    empty(store)
    store.pool("swap", quota="128KiB")
    assert "swap.tmem" in (said := cli.fails("restore", "--all", tmp_path))
    assert "for quota" in said
    assert store.find_pool(LAST).stats()["pages"] == 1


def test_so_many_sets_are_kept_and_nothing_else_is_touched(cli: Command, tmp_path: Path) -> None:
    stranger = tmp_path / "2020-01-01T00-00-00.000Z"
    stranger.mkdir()
    (stranger / "mine").touch()
    for name in ("2021-01-01T00-00-00.000Z", "notes"):  # not finished, and no set
        (tmp_path / name).mkdir()
    for _ in range(3):
        cli("save", "--all", tmp_path)
    before = sets(tmp_path)
    assert len(before) == 6
    said = cli.json("save", "--all", tmp_path, "--keep", "2")
    assert sorted(said["removed"]) == sorted(path.name for path in before[1:4])
    assert [path.name for path in sets(tmp_path)] == sorted(
        [stranger.name, before[4].name, os.path.basename(said["folder"]), "notes"]
    )
    assert (stranger / "mine").exists()


def test_the_newest_set_that_was_finished_is_restored(cli: Command, store: tmem.Store, tmp_path: Path) -> None:
    cli("save", "--all", tmp_path)
    store.find_pool("swap").put(1, {0: page(999)})
    newer = cli.json("save", "--all", tmp_path)["folder"]
    unfinished = tmp_path / "2999-01-01T00-00-00.000Z"
    unfinished.mkdir()
    (unfinished / "swap.tmem").write_bytes(b"half")
    empty(store)
    assert cli.json("restore", "--all", tmp_path)["folder"] == newer
    assert store.find_pool("swap").get(1, [0]) == {0: page(999)}
    empty(store)
    assert cli.json("restore", "--all", sets(tmp_path)[0])["folder"] == str(sets(tmp_path)[0])
    assert store.find_pool("swap").get(1, [0]) == {0: page(0)}


def test_damaged_pages_and_what_a_set_lacks_are_failures_that_name_it(
    cli: Command, store: tmem.Store, tmp_path: Path
) -> None:
    cli("save", "--all", tmp_path)
    (made,) = sets(tmp_path)
    manifest = json.loads((made / "manifest.json").read_text())
    manifest["failed"] = [{"pool": "swap", "why": "3 pages failed their checksum"}]
    (made / "manifest.json").write_text(json.dumps(manifest))
    empty(store)
    assert "swap: not saved: 3 pages failed their checksum" in cli.fails("restore", "--all", made)
    (made / "manifest.json").write_text("[]")
    assert "is not a valid manifest" in cli.fails("restore", "--all", made)


def test_invalid_options_with_all_are_refused(cli: Command, tmp_path: Path) -> None:
    assert "--all" in cli.fails("save", status=2)
    assert "--all" in cli.fails("save", "swap", tmp_path / "x", "--keep", "2", status=2)
    assert "--all" in cli.fails("save", "swap", "x", "--all", tmp_path, status=2)
    assert "neither saved pools" in cli.fails("restore", "--all", tmp_path)
    assert "nowhere" in cli.fails("restore", "--all", tmp_path / "nowhere")
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        assert "another `tmem save --all`" in cli.fails("save", "--all", tmp_path)
    finally:
        os.close(folder)
    assert list(tmp_path.iterdir()) == []
