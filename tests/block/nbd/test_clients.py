"""Programs that speak NBD and that we did not write, each as its users run it."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.block.conftest import cleared
from tests.block.lib.protocol import LARGEST
from tests.block.lib.servers import LARGE, LARGE_SIZE, NAME, SIZE, program, uri
from tests.lib.support import noise, run

if TYPE_CHECKING:
    from tests.block.lib.servers import Server

MIB = 1 << 20
PATIENCE = 120
# The system's own Python: the one that knows libnbd.
ENVIRONMENT = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C"}


def call(name: str, *arguments: object, status: int = 0) -> str:
    """Run a program; what it says. It must end as `status` says, and complain of nothing that it can do without."""
    line = [program(name), *map(str, arguments)]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE, env=ENVIRONMENT, check=False)
    assert ended.returncode == status, (line, ended.stdout, ended.stderr)
    return ended.stdout + ended.stderr if status else ended.stdout


def fio(server: Server, folder: Path, *flags: str) -> list[Any]:
    """Run jobs, each on a connection and a quarter of the disk of its own; what became of each."""
    where = ("--ioengine=nbd", f"--uri={server.uri}", f"--size={SIZE // 4}", f"--offset_increment={SIZE // 4}")
    said = call("fio", "--name=job", *where, "--thread", f"--aux-path={folder}", "--output-format=json", *flags)
    jobs: list[Any] = json.loads(said[said.index("{") :])["jobs"]
    assert all(job["error"] == 0 for job in jobs)
    return jobs


def nbdsh(server: Server, *lines: str) -> None:
    """A script for a handle `h` that is connected with everything agreed on."""
    script = [f'h.connect_uri("{server.uri}")', *lines, "h.shutdown()"]
    call("nbdsh", "--base-allocation", *(part for line in script for part in ("-c", line)))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk's content: data that compress and data that do not, and holes of every size."""
    path = tmp_path / "image"
    dice = random.Random(7)
    with path.open("wb") as file:
        file.truncate(SIZE)
        for _ in range(60):
            count = dice.choice((1, 2, 7, 60))
            file.seek(dice.randrange(SIZE // 4096 - count) * 4096 + dice.choice((0, 0, 512)))
            file.write(
                dice.choice((run, lambda seed, many: noise(seed, many * 4096)))(dice.randrange(999), count)[:-512]
            )
    return path


@pytest.fixture
def empty(server: Server) -> Server:
    """The server, with its export empty."""
    with cleared(server):
        return server


def test_nbdinfo_lists(server: Server) -> None:
    listed = json.loads(call("nbdinfo", "--list", "--json", uri(server.address, "")))
    exports: dict[str, Any] = {export["export-name"]: export for export in listed["exports"]}
    if server.kind == "tmemd":
        assert exports[NAME]["export-size"] == SIZE
        assert exports[LARGE]["export-size"] == LARGE_SIZE
    assert call("nbdinfo", "--list", uri(server.address, "")).startswith("protocol: newstyle-fixed")


def test_nbdinfo_describes(server: Server) -> None:
    document = json.loads(call("nbdinfo", "--json", server.uri))
    assert document["protocol"] == "newstyle-fixed"
    assert document["structured"] is True
    (export,) = document["exports"]
    assert export["export-size"] == SIZE
    assert "base:allocation" in export["contexts"]
    can = ("flush", "fua", "trim", "zero", "multi_conn", "df", "cache")
    assert all(export["can_" + what] for what in can), export
    assert export["is_read_only"] is False
    assert call("nbdinfo", "--size", server.uri).strip() == str(SIZE)


def test_nbdinfo_gives_our_block_sizes(tmemd: Server) -> None:
    (export,) = json.loads(call("nbdinfo", "--json", tmemd.uri))["exports"]
    assert (export["block_size_minimum"], export["block_size_preferred"]) == (1, 4096)
    assert export["block_size_maximum"] >= LARGEST


def test_nbdinfo_maps(empty: Server) -> None:
    call("qemu-io", "-f", "raw", "-c", "write -P 7 1M 1M", "-c", "write -P 8 4M 64k", empty.uri)
    found = json.loads(call("nbdinfo", "--map", "--json", empty.uri))
    data = [(extent["offset"], extent["length"]) for extent in found if extent["type"] == 0]
    assert data == [(MIB, MIB), (4 * MIB, 65536)]
    assert sum(extent["length"] for extent in found) == SIZE


def test_an_export_that_there_is_not(tmemd: Server) -> None:
    assert "nothing" in call("nbdinfo", uri(tmemd.address, "nothing"), status=1)


@pytest.mark.parametrize("connections", [1, 4])
def test_nbdcopy_in_and_out(empty: Server, image: Path, tmp_path: Path, connections: int) -> None:
    flag = f"--connections={connections}"
    call("nbdcopy", flag, image, empty.uri)
    call("nbdcopy", flag, empty.uri, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == image.read_bytes()


def test_nbdcopy_between_exports(tmemd: Server, image: Path, tmp_path: Path) -> None:
    with cleared(tmemd):
        call("nbdcopy", image, tmemd.uri)
    large = uri(tmemd.address, LARGE)
    call("nbdcopy", tmemd.uri, large)
    call("nbdcopy", large, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == image.read_bytes() + bytes(LARGE_SIZE - SIZE)


def test_nbdsh_does_every_command(empty: Server) -> None:
    nbdsh(
        empty,
        "assert h.get_structured_replies_negotiated() and h.can_meta_context('base:allocation')",
        "h.pwrite(b'x' * 5000, 100, nbd.CMD_FLAG_FUA)",
        "assert h.pread(5002, 99) == bytes(1) + b'x' * 5000 + bytes(1)",
        "h.zero(10, 200, nbd.CMD_FLAG_NO_HOLE)",
        "assert h.pread(12, 199) == b'x' + bytes(10) + b'x'",
        "h.trim(h.get_size(), 0)",
        "h.flush()",
        "h.can_cache() and h.cache(4096, 0)",
        "assert h.pread(h.get_size(), 0) == bytes(h.get_size())",
        "seen = []",
        "h.block_status(h.get_size(), 0, lambda context, offset, entries, error: seen.append((context, entries)))",
        f"assert seen == [('base:allocation', [{SIZE}, 3])], seen",
        "assert h.pread_structured(8192, 0, lambda data, offset, status, error: None) == bytes(8192)",
    )


def test_nbdsh_is_told_what_is_wrong(tmemd: Server) -> None:
    """Requests that libnbd itself would not send, sent because it is told not to check."""
    long = f"h.pwrite(bytearray({4 * MIB}), {SIZE})"
    cases = (long, f"h.pread(1, {SIZE})", f"h.pwrite(b'x', {SIZE})", f"h.trim(2, {SIZE - 1})", f"h.zero({SIZE}, 1)")
    for case in cases:
        nbdsh(
            tmemd,
            "h.set_strict_mode(0)",
            "caught = None",
            f"try:\n    {case}\nexcept nbd.Error as error:\n    caught = error.errnum",
            "import errno",
            "assert caught in (errno.EINVAL, errno.ENOSPC), caught",
        )


def test_nbdsh_without_the_newer_words(empty: Server) -> None:
    for request in ("h.set_request_structured_replies(False)", "h.set_handshake_flags(0)", "h.set_opt_mode(False)"):
        line = ["nbdsh", "-c", request, "-c", f'h.connect_uri("{empty.uri}")']
        call(*line, "-c", "h.pwrite(b'y' * 512, 3); assert h.pread(512, 3) == b'y' * 512; h.shutdown()")


def test_nbdsh_options_by_hand(tmemd: Server) -> None:
    lines = (
        "h.set_opt_mode(True)",
        f'h.connect_uri("{uri(tmemd.address, "nothing")}")',
        "names = []",
        "h.opt_list(lambda name, description: names.append(name))",
        f"assert {NAME!r} in names, names",
        "try:\n    h.opt_info()\n    assert False\nexcept nbd.Error:\n    pass",
        f"h.set_export_name({NAME!r})",
        "h.opt_info()",
        f"assert h.get_size() == {SIZE}",
        "h.opt_go()",
        "assert h.pread(512, 0) is not None",
        "h.shutdown()",
    )
    call("nbdsh", *(part for line in lines for part in ("-c", line)))


def test_qemu_img_converts_and_compares(empty: Server, image: Path, tmp_path: Path) -> None:
    call("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, empty.uri)
    assert "identical" in call("qemu-img", "compare", "-f", "raw", "-F", "raw", image, empty.uri)
    call("qemu-img", "convert", "-f", "raw", "-O", "raw", "-m", "8", "-W", empty.uri, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == image.read_bytes()
    call("qemu-io", "-f", "raw", "-c", "write -P 1 12345 1", empty.uri)
    assert "Content mismatch" in call("qemu-img", "compare", "-f", "raw", "-F", "raw", image, empty.uri, status=1)


def test_qemu_img_creates_an_image_in_an_export(empty: Server) -> None:
    """A qcow2 in the export, made and filled and checked by qemu."""
    call("qemu-img", "create", "-f", "qcow2", empty.uri, "8M")
    call("qemu-io", "-f", "qcow2", "-c", "write -P 5 1M 2M", "-c", "discard 1M 64k", empty.uri)
    call("qemu-io", "-f", "qcow2", "-c", "read -P 0 1M 64k", "-c", "read -P 5 1088k 1984k", empty.uri)
    assert "No errors were found" in call("qemu-img", "check", "-f", "qcow2", empty.uri)


def test_qemu_img_bench(empty: Server) -> None:
    flags = ("-f", "raw", "-c", "2000", "-d", "32", "-s", "4096")
    assert "Run completed" in call("qemu-img", "bench", *flags, "-w", "--pattern=9", empty.uri)
    assert "Run completed" in call("qemu-img", "bench", *flags, empty.uri)
    assert "Run completed" in call("qemu-img", "bench", "-f", "raw", "-c", "50", "-s", "1M", "-S", "4096", empty.uri)


def test_qemu_io(empty: Server) -> None:
    commands = (
        "write -P 0xaa 0 1M",
        "write -f -P 0xbb 1000 3000",
        "write -z 4k 8k",
        "write -z -u 64k 64k",
        "discard 256k 256k",
        "flush",
        "read -P 0xaa 0 1000",
        "read -P 0xbb 1000 3000",
        "read -P 0xaa 4000 96",
        "read -P 0 4k 8k",
        "read -P 0 64k 64k",
        "read -P 0 256k 256k",
        "read -P 0xaa 512k 512k",
        "aio_write -P 0xcc 1M 2M",
        "aio_flush",
        "read -P 0xcc 1M 2M",
    )
    said = call("qemu-io", "-f", "raw", *(part for command in commands for part in ("-c", command)), empty.uri)
    assert "failed" not in said, said
    assert "error" not in said.lower(), said


@pytest.mark.parametrize("jobs", [1, 4])
def test_fio_verifies(empty: Server, tmp_path: Path, jobs: int) -> None:
    """Every job reads back what it wrote, by its checksums."""
    what = ("--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned", "--iodepth=16", f"--numjobs={jobs}")
    check = ("--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--buffer_compress_percentage=50")
    done = fio(empty, tmp_path, *what, *check)
    assert len(done) == jobs
    for job in done:
        assert job["read"]["total_ios"] == job["write"]["total_ios"] > 0


def test_fio_reads_and_writes_and_trims(empty: Server, tmp_path: Path) -> None:
    what = ("--bs=4k", "--iodepth=32", "--numjobs=4", "--verify=crc32c", "--verify_fatal=1")
    for job in fio(empty, tmp_path, "--rw=randrw", *what):
        assert job["read"]["total_ios"] > 0 < job["write"]["total_ios"]
    for job in fio(empty, tmp_path, "--rw=randtrimwrite", "--bs=4k", "--iodepth=32", "--numjobs=2"):
        assert job["trim"]["total_ios"] > 0


def test_a_file_system_comes_back_sound(empty: Server, tmp_path: Path) -> None:
    """A real tree in ext4, copied in and out, checked by its own checker, and every file compared."""
    source, image, back, tree = (tmp_path / name for name in ("source", "image", "back", "tree"))
    subprocess.run(["cp", "-r", Path(__file__).parents[3] / "client", source], check=True)
    call("mke2fs", "-q", "-t", "ext4", "-d", source, image, f"{SIZE >> 10}k")
    call("nbdcopy", "--connections=2", image, empty.uri)
    call("nbdcopy", "--connections=2", empty.uri, back)
    assert back.read_bytes() == image.read_bytes().ljust(SIZE, b"\0")
    call("e2fsck", "-f", "-n", back)
    tree.mkdir()
    call("debugfs", "-R", f"rdump / {tree}", back)
    (tree / "lost+found").rmdir()
    subprocess.run(["diff", "-r", source, tree], check=True)
