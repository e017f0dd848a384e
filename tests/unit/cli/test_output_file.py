"""Files that a user names: whole or as they were, devices written and not replaced, rights never wider."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from tmem.cli.base.failures import Failed
from tmem.cli.base.output_file import BY_UMASK, PRIVATE, replaces, writing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="takes root")


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def write(name: Path | str, data: bytes = b"new", mode: int = BY_UMASK) -> None:
    with writing(str(name), mode) as sink:
        sink.write(data)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("mode", "mask", "gets"), [(BY_UMASK, 0o022, 0o644), (BY_UMASK, 0o077, 0o600), (PRIVATE, 0, 0o600)]
)
def test_a_new_file_has_the_mode_it_is_given_and_never_a_wider_one(
    tmp_path: Path, mode: int, mask: int, gets: int
) -> None:
    file = tmp_path / "file"
    with umask(mask), writing(str(file), mode) as sink:
        (part,) = tmp_path.iterdir()
        assert mode_of(part) == 0o600
        sink.write(b"new")
        assert not file.exists()
    assert (mode_of(file), file.read_bytes()) == (gets, b"new")
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o4755])
def test_a_file_that_was_there_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")
    file.chmod(mode)
    write(file)
    assert (mode_of(file), file.read_bytes()) == (mode & 0o777, b"new")


@ROOT
def test_root_leaves_a_users_file_to_the_user(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")
    os.chown(file, 12345, 54321)
    file.chmod(0o640)
    write(file)
    found = file.stat()
    assert (found.st_uid, found.st_gid, mode_of(file), file.read_bytes()) == (12345, 54321, 0o640, b"new")


@ROOT
def test_where_the_group_cannot_be_kept_another_one_gets_no_right(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    file = tmp_path / "file"
    file.write_bytes(b"old")
    os.chown(file, 12345, 54321)
    file.chmod(0o664)
    other = os.fork()
    if not other:
        with suppress(BaseException):
            os.chdir(tmp_path)
            os.setgroups([])
            os.setgid(777)
            os.setuid(777)
            write("file")
            os._exit(0)
        os._exit(1)
    assert os.waitpid(other, 0)[1] == 0
    found = file.stat()
    assert (found.st_uid, found.st_gid, mode_of(file), file.read_bytes()) == (777, 777, 0o644, b"new")


def test_a_symlink_stays_and_what_it_points_to_is_replaced_in_its_folder(tmp_path: Path) -> None:
    folder, link = tmp_path / "folder", tmp_path / "link"
    folder.mkdir()
    link.symlink_to("folder/file")
    for data in (b"first", b"second"):  # at first it points to nothing
        with writing(str(link), BY_UMASK) as sink:
            sink.write(data)
            assert any(path.name.startswith(".tmem-") for path in folder.iterdir())
        assert link.is_symlink()
        assert (folder / "file").read_bytes() == data
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "link"]


def test_names_that_others_use_for_parts_are_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    (tmp_path / "file.part").symlink_to(precious)
    write(tmp_path / "file")
    assert (precious.read_bytes(), (tmp_path / "file.part").is_symlink()) == (b"precious", True)


def test_a_pipe_is_written_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert not replaces(str(pipe))
    with subprocess.Popen(["wc", "-c", pipe], stdout=subprocess.PIPE) as reader:
        write(pipe, b"x" * 200_000)
        assert reader.communicate()[0].split()[0] == b"200000"
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@ROOT
def test_a_device_is_written_and_stays(tmp_path: Path) -> None:
    null, full = tmp_path / "null", tmp_path / "full"
    os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(full, stat.S_IFCHR | 0o666, os.makedev(1, 7))
    try:
        write(null)
    except PermissionError:
        pytest.skip("the file system has no devices")
    with pytest.raises(OSError, match="No space left") as caught:
        write(full)
    assert caught.value.filename == str(full)
    assert [path.stat().st_rdev for path in (null, full)] == [os.makedev(1, 3), os.makedev(1, 7)]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, None])
def test_what_was_there_is_whole_after_a_failure(tmp_path: Path, number: int | None) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")

    def failing() -> None:
        with writing(str(file), BY_UMASK) as sink:
            sink.write(b"new")
            raise KeyboardInterrupt if number is None else OSError(number, "failed")

    with pytest.raises((OSError, KeyboardInterrupt)):
        failing()
    assert (file.read_bytes(), list(tmp_path.iterdir())) == (b"old", [file])


@ROOT
def test_a_full_file_system_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "file"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"mount -t tmpfs -o size=64k tmpfs {tmp_path} && exec {sys.executable} -"],
        input=f"""
import os
from pathlib import Path
from tmem.cli.base.output_file import PRIVATE, writing
Path({str(file)!r}).write_bytes(b"old")
try:
    with writing({str(file)!r}, PRIVATE) as sink:
        sink.write(bytes(1 << 20))
except OSError as error:
    print(error.filename, error.strerror, Path({str(file)!r}).read_bytes(), os.listdir({str(tmp_path)!r}))
""",
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("no mount namespace here")
    assert done.stdout == f"{file} No space left on device b'old' ['file']\n", done.stderr


@pytest.mark.parametrize(
    ("name", "why"),
    [("folder", "Is a directory"), ("folder/", "Is a directory"), ("", "Is a directory"), ("loop", "symbolic links")],
)
def test_a_name_that_cannot_be_a_file_is_named_with_the_reason(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    given = f"{tmp_path}/{name}" if name else ""
    with pytest.raises(OSError, match=why) as caught:
        write(given)
    assert caught.value.filename == given


def test_a_folder_that_takes_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"nowhere/file: cannot create a file in .*nowhere: No such file"):
        write(tmp_path / "nowhere" / "file")


def test_other_hard_links_keep_the_old_content_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, other = tmp_path / "file", tmp_path / "other"
    file.write_bytes(b"old")
    other.hardlink_to(file)
    write(file)
    assert (file.read_bytes(), other.read_bytes()) == (b"new", b"old")
    assert f"{file} had other hard links" in capsys.readouterr().err


def test_of_two_at_once_each_is_whole_and_the_last_is_there(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with writing(str(file), BY_UMASK) as first, writing(str(file), BY_UMASK) as second:
        first.write(b"1" * 5000)
        second.write(b"2" * 3000)
    assert file.read_bytes() == b"1" * 5000
    assert list(tmp_path.iterdir()) == [file]
