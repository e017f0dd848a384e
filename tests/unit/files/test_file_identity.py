"""When a file's identity says what its bytes are, and which key it gives."""

import os
from pathlib import Path

import pytest

from tmem._files.identity import SKEW, Identity, Origin, SettledRule, identify, origin
from tmem._files.source import FileSource

NOW = 1_700_000_000.0


class Clocks:
    wall = NOW
    monotonic = 0.0


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def settled(clocks: Clocks, *, local: bool) -> SettledRule:
    return SettledRule(2.0, local, lambda: clocks.wall, lambda: clocks.monotonic)


def changed(seconds_ago: float, size: int = 1) -> Identity:
    stamp = int((NOW - seconds_ago) * 1e9)
    return Identity(inode=7, size=size, mtime_ns=stamp, ctime_ns=stamp)


def test_a_local_file_must_have_rested(clocks: Clocks) -> None:
    rule = settled(clocks, local=True)
    assert [rule(changed(ago)) for ago in (-1, 0, 1.9, 2.1)] == [False, False, False, True]
    clocks.monotonic = 1000.0
    assert not rule(changed(1.9))


def test_mtime_says_nothing_as_anybody_can_set_it(clocks: Clocks) -> None:
    rule = settled(clocks, local=True)
    assert not rule(changed(0)._replace(mtime_ns=0))
    assert rule(changed(10)._replace(mtime_ns=int((NOW + 1000) * 1e9)))


def test_where_another_clock_stamps_skew_is_allowed_for_or_the_file_is_watched(clocks: Clocks) -> None:
    rule = settled(clocks, local=False)
    assert rule(changed(SKEW + 2.1))
    assert not rule(changed(SKEW))
    clocks.monotonic = 1.9
    assert not rule(changed(SKEW))
    clocks.monotonic = 2.1
    assert rule(changed(SKEW))
    assert not rule(changed(SKEW, size=2)), "another identity has to be watched anew"
    clocks.monotonic = 4.0
    assert not rule(changed(SKEW, size=2))


def test_every_part_of_an_identity_counts() -> None:
    here = Origin(b"volume", local=True, cacheable=True)
    base = changed(10)
    others = [base._replace(**{name: getattr(base, name) + 1}) for name in Identity._fields]
    oids = [here.oid(identity) for identity in (base, *others)]
    assert len({*oids, Origin(b"other", local=True, cacheable=True).oid(base)}) == 6
    assert {len(oid) for oid in oids} == {24}
    assert here.oid(base._replace(mtime_ns=2**64)) != here.oid(base._replace(mtime_ns=2**65)), "years to come"


def test_a_named_volume_does_not_depend_on_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"bytes")
    with path.open("rb") as file:
        named, here = origin(file.fileno(), "san7"), origin(file.fileno(), None)
        monkeypatch.setattr("tmem._files.identity._here", lambda _: ("another boot", 0, 0, ""))
        assert origin(file.fileno(), "san7") == named
        assert origin(file.fileno(), None).key != here.key
        assert origin(file.fileno(), "san8").key != named.key


def test_a_changed_file_has_another_identity_though_size_and_mtime_are_set_back(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with path.open("rb") as file:
        before = identify(file.fileno())
        while identify(file.fileno()).ctime_ns == before.ctime_ns:
            path.write_bytes(b"new")
            os.utime(path, ns=(before.mtime_ns, before.mtime_ns))
        after = identify(file.fileno())
        assert after._replace(ctime_ns=before.ctime_ns) == before


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_files_that_are_made_up_are_not_cacheable() -> None:
    with Path("/proc/self/status").open("rb") as file:
        assert not origin(file.fileno(), "any").cacheable


def test_what_is_no_regular_file_is_refused_and_does_not_block(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        FileSource(tmp_path, None)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="fifo' is not a regular file"):
        FileSource(tmp_path / "fifo", None)
    with pytest.raises(FileNotFoundError):
        FileSource(tmp_path / "none", None)


def test_a_descriptor_is_closed_after_its_last_reader(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"bytes")
    source = FileSource(path, None)
    with source._open() as fd:
        source.close()
        assert os.pread(fd, 5, 0) == b"bytes"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    with pytest.raises(ValueError, match="closed file"):
        source.read_into(memoryview(bytearray(1)), 0)
