"""Exports as an operator has them: made, listed, resized, drained and removed while clients come and go."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import tmem
from tests.block.lib.handshake import Wire, info_query, opened
from tests.block.lib.protocol import Can, Cmd, Err, Info, Opt, Rep
from tests.block.lib.servers import program
from tests.block.lib.stream import PATIENCE, EndedError
from tests.lib.certificates import Authority
from tests.lib.command import Command
from tests.lib.daemon import Client as Admin
from tests.lib.daemon import Daemon, daemon
from tests.lib.retry import eventually
from tests.lib.support import run
from tmem_proto.v1 import admin_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
CAP_IPC_LOCK, CAP_SYS_RESOURCE = 14, 24
PF_MEMALLOC_NOIO = 0x00080000
ALREADY_EXISTS = grpc.StatusCode.ALREADY_EXISTS


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon(f"--nbd=unix:{tmp_path_factory.mktemp('nbd')}/sock", "--nbd=tcp:127.0.0.1:0") as running:
        yield running


@pytest.fixture
def store(served: Daemon) -> Iterator[tmem.Store]:
    with tmem.connect(served.address, timeout=PATIENCE) as connected:
        yield connected
        for export in connected.exports():
            connected.remove_export(export.name, force=True)


@pytest.fixture
def address(served: Daemon) -> str:
    return addresses(served)[0]


def addresses(running: Daemon) -> list[str]:
    return running._said(r"exports on (.*)").split(", ")


def find(store: tmem.Store, name: str) -> Any:
    return next(export for export in store.exports() if export.name == name)


def test_an_export_is_made_written_read_and_removed(served: Daemon, store: tmem.Store) -> None:
    made = store.create_export("swap0", "64MiB", reserve="4MiB", codec="zstd:1")
    assert (made.size, made.reserve, made.codec, made.pages) == (64 * MIB, 4 * MIB, "zstd:1", 0)
    for address in addresses(served):
        with opened(address, "swap0") as client:
            assert client.export.size == 64 * MIB
            client.write(MIB, b"\7" * 8192)
            assert client.read(MIB - 4096, 4096 * 3) == bytes(4096) + b"\7" * 8192
        eventually(lambda: not find(store, "swap0").clients)
    found = find(store, "swap0")
    assert found.pages == 2
    assert (found.counters["writes"], found.counters["written_bytes"], found.counters["attached"]) == (2, 16384, 2)
    assert store.remove_export("swap0") == 2
    assert store.exports() == []
    assert [pool.name for pool in store.pools() if pool.name.startswith("export/")] == []


def test_what_makes_no_sense_is_refused(store: tmem.Store) -> None:
    store.create_export("a", MIB)
    with pytest.raises(tmem.MismatchError, match="export 'a' exists"):
        store.create_export("a", MIB)
    for name in ("", "a/b", "-a", "a b", "x" * 58, "é"):
        with pytest.raises(ValueError, match="is not 1 to 57 letters"):
            store.create_export(name, MIB)
    for size in (0, 4095, 4097, (1 << 44) + 4096):
        with pytest.raises(ValueError, match="multiple of 4096"):
            store.create_export("b", size)
    with pytest.raises(ValueError, match="codec"):
        store.create_export("b", MIB, codec="gzip")
    with pytest.raises(tmem.ExhaustedError, match=r"a reserve of 67108864 bytes cannot be kept: \d+ more are needed"):
        store.create_export("b", MIB, reserve="64MiB")
    for block in (512, 5000, 12288, 196608):
        with pytest.raises(ValueError, match=f"block size is {block} bytes: it must be 4096, .* or 262144"):
            store.create_export("b", MIB, block_size=block)
    for size in (0, 524288):
        with pytest.raises(ValueError, match=f"block_size is {size} bytes; it must be a power of two"):
            store.create_export("b", MIB, block_size=size)
    for missing in (store.remove_export, store.drain_export):
        with pytest.raises(tmem.UnknownExportError, match="export 'b' does not exist"):
            missing("b")
    assert [export.name for export in store.exports()] == ["a"]
    assert [pool.name for pool in store.pools() if pool.name.startswith("export/")] == ["export/a"]


def test_a_second_client_is_refused_until_the_first_is_gone(store: tmem.Store, address: str) -> None:
    store.create_export("swap0", MIB)
    with opened(address, "swap0") as first:
        with Wire(address).begin() as second:
            assert second.refused(Opt.GO, info_query("swap0")) == Rep.ERR_POLICY
        first.write(0, b"\1" * 4096)
        assert len(find(store, "swap0").clients) == 1
    with opened(address, "swap0") as third:
        assert third.read(0, 4096) == b"\1" * 4096


def test_a_multi_conn_export_lets_several_clients_in(store: tmem.Store, address: str) -> None:
    assert store.create_export("shared", MIB, multi_conn=True).multi_conn
    with opened(address, "shared") as first, opened(address, "shared") as second:
        assert Can.MULTI_CONN in first.export.can
        first.write(0, b"\1" * 4096)
        assert second.read(0, 4096) == b"\1" * 4096
        assert len(find(store, "shared").clients) == 2


def test_an_export_in_use_is_not_removed_unless_forced(store: tmem.Store, address: str) -> None:
    store.create_export("swap0", MIB)
    with opened(address, "swap0") as client:
        with pytest.raises(tmem.MismatchError, match="'swap0' is in use by 1 client"):
            store.remove_export("swap0")
        client.write(0, b"\1" * 4096)
        assert store.remove_export("swap0", force=True) == 1
        with pytest.raises(EndedError):
            client.read(0, 4096)
    with Wire(address).begin() as late:
        assert late.refused(Opt.GO, info_query("swap0")) == Rep.ERR_UNKNOWN


def test_an_export_grows_and_shrinks_over_empty_space_only(store: tmem.Store, address: str) -> None:
    store.create_export("swap0", MIB)
    assert store.resize_export("swap0", 4 * MIB).size == 4 * MIB
    with opened(address, "swap0") as client:
        assert client.export.size == 4 * MIB
        client.write(3 * MIB, b"\1" * 4096)
        with pytest.raises(tmem.MismatchError, match="in use"):
            store.resize_export("swap0", MIB)
        assert store.resize_export("swap0", 8 * MIB).size == 8 * MIB
    eventually(lambda: not find(store, "swap0").clients)
    with pytest.raises(tmem.MismatchError, match=f"data beyond {2 * MIB} bytes, at {3 * MIB}"):
        store.resize_export("swap0", 2 * MIB)
    with opened(address, "swap0") as client:
        assert client.export.size == 8 * MIB
        assert client.read(3 * MIB, 4096) == b"\1" * 4096
        client.do(Cmd.TRIM, 3 * MIB, 4096)
    eventually(lambda: not find(store, "swap0").clients)
    assert store.resize_export("swap0", 2 * MIB).size == 2 * MIB
    with opened(address, "swap0") as client:
        assert client.export.size == 2 * MIB


@pytest.mark.parametrize("size", [65536, 262144])
def test_a_large_block_size_is_announced_and_smaller_requests_work(store: tmem.Store, address: str, size: int) -> None:
    made = store.create_export("image", 4 * MIB + 4096, codec="lz4hc", block_size=size)
    assert (made.block_size, made.codec) == (size, "lz4hc:9")
    data = bytearray(run(0, 16))
    with opened(address, "image") as client:
        with Wire(address).begin() as asking:
            blocks = asking.describe(Opt.INFO, "image", Info.BLOCK_SIZE).blocks
        assert blocks is not None
        assert blocks[:2] == (1, size)
        client.write(4 * MIB - 61440, bytes(data))
        client.write(4 * MIB - 5, b"\1" * 9)
        data[61435:61444] = b"\1" * 9
        assert client.read(4 * MIB - 61440, len(data)) == bytes(data)
        assert find(store, "image").pages == 2
        for offset in range(4 * MIB - size, 4 * MIB, 4096):
            client.do(Cmd.TRIM, offset, 4096)
        client.do(Cmd.TRIM, 4 * MIB, 4096)
        assert find(store, "image").pages == 0


def test_an_export_of_large_blocks_shrinks_to_within_an_empty_part_of_one(store: tmem.Store, address: str) -> None:
    store.create_export("image", MIB, block_size=65536)
    with opened(address, "image") as client:
        client.write(MIB - 65536 + 8192, b"\1" * 4096)
    eventually(lambda: not find(store, "image").clients)
    with pytest.raises(tmem.MismatchError, match=f"data beyond {MIB - 57344} bytes, at {MIB - 57344} for one"):
        store.resize_export("image", MIB - 57344)
    with pytest.raises(tmem.MismatchError, match=f"data beyond {MIB - 61440} bytes, at {MIB - 57344} for one"):
        store.resize_export("image", MIB - 61440)
    assert store.resize_export("image", MIB - 53248).size == MIB - 53248
    with opened(address, "image") as client:
        assert client.export.size == MIB - 53248
        assert client.read(MIB - 57344, 4096) == b"\1" * 4096


def test_a_drained_export_lets_nobody_in_and_those_there_go_on(store: tmem.Store, served: Daemon, address: str) -> None:
    store.create_export("swap0", MIB)
    command = Command(served.address)
    with opened(address, "swap0") as client:
        assert store.drain_export("swap0").draining
        assert "1 client still connected" in command.fails("export", "drain", "swap0", "--wait", 0.01)
        with Wire(address).begin() as late:
            assert late.refused(Opt.GO, info_query("swap0")) >= Rep.ERR_UNSUP
        client.write(0, b"\1" * 4096)
    assert "is drained: no client has it open, and it holds 4.00 KiB" in command(
        "export", "drain", "swap0", "--wait", 30
    )
    assert not store.drain_export("swap0", undo=True).draining
    opened(address, "swap0").close()


def test_connections_over_different_sockets_are_told_apart(tmp_path: Path) -> None:
    with (
        daemon(f"--nbd=unix:{tmp_path}/sock", "--nbd=tcp:127.0.0.1:0") as running,
        tmem.connect(running.address, timeout=PATIENCE) as store,
    ):
        store.create_export("disk", MIB, multi_conn=True)
        unix, tcp = (opened(address, "disk") for address in addresses(running))
        with tcp:
            with unix:
                assert len(find(store, "disk").clients) == 2
            eventually(lambda: len(find(store, "disk").clients) < 2)
            assert len(find(store, "disk").clients) == 1
            with pytest.raises(tmem.MismatchError, match="in use by 1 client"):
                store.remove_export("disk")


def test_a_store_that_is_full_answers_enospc_and_keeps_what_it_has(store: tmem.Store, address: str) -> None:
    store.create_export("swap0", 128 * MIB)
    kept = {}
    with opened(address, "swap0") as client:
        for offset in range(0, 128 * MIB, MIB):
            data = os.urandom(MIB)
            error = client.command(Cmd.WRITE, offset, MIB, data=data).error
            if error != Err.OK:
                break
            kept[offset] = data
        assert error == Err.NOSPC
        assert len(kept) > 32
        for offset in list(kept)[::8]:
            assert client.read(offset, MIB) == kept[offset]
    assert find(store, "swap0").counters["no_space"] >= 1


def test_a_reserve_is_room_for_its_export_in_a_store_full_of_others_pages(store: tmem.Store, address: str) -> None:
    store.create_export("sure", 64 * MIB, reserve=8 * MIB)
    greedy = store.pool("greedy", kind="persistent")
    try:
        index = 0
        while greedy.put(1, {index: os.urandom(4096)})[index]:
            index += 1
        kept = {offset: os.urandom(1 << 16) for offset in range(0, 8 * MIB - (1 << 16), 1 << 16)}
        with opened(address, "sure") as client:
            for offset, data in kept.items():
                client.write(offset, data)
            assert {offset: client.read(offset, 1 << 16) for offset in kept} == kept
    finally:
        greedy.destroy()


def test_pools_of_exports_are_made_and_destroyed_with_exports_only(store: tmem.Store) -> None:
    store.create_export("swap0", MIB)
    for name in ("export/other", ".exports"):
        with pytest.raises(tmem.DeniedError):
            store.pool(name, kind="ephemeral")
    with pytest.raises(tmem.DeniedError):
        store.find_pool("export/swap0").destroy()


def test_the_command_lists_makes_and_removes(served: Daemon, store: tmem.Store) -> None:
    command = Command(served.address)
    made = command("export", "create", "swap0", "--size", "1MiB", "--reserve", "1MiB")
    assert "created export 'swap0': 1.00 MiB, lz4 in blocks of 4.00 KiB, 1.00 MiB of memory reserved" in made
    listed = command.json("export", "ls")
    assert listed["addresses"] == addresses(served)
    assert [(one["name"], one["size"], one["clients"]) for one in listed["exports"]] == [("swap0", MIB, [])]
    assert "swap0" in command("export", "ls")
    assert command("export", "resize", "swap0", "2MiB").strip() == "export 'swap0' is now 2.00 MiB"
    assert "removed export 'swap0' with 0 pages" in command("export", "rm", "swap0", "--yes")
    assert store.exports() == []


def test_exports_are_there_again_after_a_restart_and_a_kill(tmp_path: Path) -> None:
    flags = (f"--nbd=unix:{tmp_path}/sock", f"--arena={tmp_path}/arena")
    address = f"unix:{tmp_path}/sock"
    with daemon(*flags) as running, tmem.connect(running.address, timeout=PATIENCE) as store:
        store.create_export("swap0", MIB, reserve=MIB)
        store.create_export("swap1", MIB, multi_conn=True)
        store.resize_export("swap0", 2 * MIB)
        store.drain_export("swap1")
        with opened(address, "swap0") as client:
            client.write(0, b"\5" * 4096)
    for end in (Daemon.kill, Daemon.stop):
        with daemon(*flags) as running, tmem.connect(running.address, timeout=PATIENCE) as store:
            first, second = store.exports()
            assert (first.name, first.size, first.reserve, first.draining) == ("swap0", 2 * MIB, MIB, False)
            assert (second.name, second.draining) == ("swap1", True)
            assert (first.multi_conn, second.multi_conn) == (False, True)
            with opened(address, "swap0") as client:
                assert client.read(0, 4096) == b"\5" * 4096
            end(running)


def test_a_block_size_outlasts_the_daemon(tmp_path: Path) -> None:
    flags = (f"--nbd=unix:{tmp_path}/sock", f"--arena={tmp_path}/arena")
    with daemon(*flags) as running, tmem.connect(running.address, timeout=PATIENCE) as store:
        store.create_export("image", MIB, block_size="32KiB", codec="lz4hc:3")
        with opened(f"unix:{tmp_path}/sock", "image") as client:
            client.write(100, b"\5" * 4096)
        running.kill()
    with daemon(*flags) as running, tmem.connect(running.address, timeout=PATIENCE) as store:
        (found,) = store.exports()
        assert (found.block_size, found.codec, found.pages) == (32768, "lz4hc:3", 1)
        with opened(f"unix:{tmp_path}/sock", "image") as client:
            assert client.read(0, 8192) == bytes(100) + b"\5" * 4096 + bytes(8192 - 4196)


def test_every_worker_answers_for_the_exports_that_worker_0_has(tmp_path: Path) -> None:
    flags = (f"--nbd=unix:{tmp_path}/sock", "--workers=2")
    with daemon(*flags) as running:
        for at, address in enumerate(running.addresses):
            client = Admin(address)
            client.admin.CreateExport(pb.CreateExportRequest(name=f"swap{at}", size=MIB), timeout=PATIENCE)
            with pytest.raises(grpc.RpcError) as exists:
                client.admin.CreateExport(pb.CreateExportRequest(name="swap0", size=MIB), timeout=PATIENCE)
            assert (exists.value.code(), exists.value.details()) == (ALREADY_EXISTS, "export 'swap0' exists")
            with opened(f"unix:{tmp_path}/sock", f"swap{at}") as device:
                device.write(0, b"\5" * 4096)
                listed = client.admin.ListExports(pb.ListExportsRequest(), timeout=PATIENCE)
                assert [len(one.clients) for one in listed.exports] == [0] * at + [1]
            client.close()


def test_exports_are_in_the_metrics_and_the_health_of_the_daemon(
    served: Daemon, store: tmem.Store, address: str
) -> None:
    store.create_export("swap0", MIB)
    with opened(address, "swap0") as client:
        client.write(0, b"\1" * 8192)
        with urllib.request.urlopen(served.metrics_url, timeout=PATIENCE) as response:
            text = response.read().decode()
    for line in (
        'tmem_export_size_bytes{export="swap0"} 1.048576e+06',
        'tmem_export_clients{export="swap0"} 1.0',
        'tmem_export_requests_total{export="swap0",kind="write"} 1.0',
        'tmem_export_bytes_total{export="swap0",kind="write"} 8192.0',
        'tmem_export_errors_total{cause="no_space",export="swap0"} 0.0',
        'tmem_export_connections_total{export="swap0",outcome="attached"} 1.0',
    ):
        assert line in text.splitlines(), line
    with grpc.insecure_channel(served.address) as channel:
        asked = health_pb2.HealthCheckRequest(service="nbd")
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(asked, timeout=PATIENCE)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_daemon_that_stops_answers_what_it_was_sent(tmp_path: Path) -> None:
    flags = (f"--nbd=unix:{tmp_path}/sock", f"--arena={tmp_path}/arena")
    running = Daemon(*flags)
    with tmem.connect(running.address, timeout=PATIENCE) as store:
        store.create_export("swap0", 16 * MIB)
    with opened(f"unix:{tmp_path}/sock", "swap0") as client:
        cookies = [client.submit(Cmd.WRITE, at * MIB, MIB, data=bytes([at]) * MIB) for at in range(8)]
        assert running.stop() == 0
        answered = 0
        with suppress(ConnectionError):
            for cookie in cookies:
                assert client.answer(cookie).error in (Err.OK, Err.SHUTDOWN)
                answered += 1
    with daemon(*flags), opened(f"unix:{tmp_path}/sock", "swap0") as client:
        for at in range(answered):
            assert client.read(at * MIB, MIB) == bytes([at]) * MIB


@pytest.mark.parametrize(("flag", "capability"), [("--lock-memory", CAP_IPC_LOCK), ("--io-flusher", CAP_SYS_RESOURCE)])
def test_a_daemon_is_safe_to_swap_to_or_does_not_start(tmp_path: Path, flag: str, capability: int) -> None:
    flags = (flag, f"--nbd=unix:{tmp_path}/sock")
    if not may(capability):
        ended = subprocess.run(
            [sys.executable, "-m", "tmemd", "--listen=127.0.0.1:0", *flags],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert ended.returncode == 2
        assert "it needs CAP_" in ended.stderr
        return
    with daemon(*flags) as running:
        process = Path("/proc") / str(running.process.pid)
        if capability == CAP_IPC_LOCK:
            locked = re.search(r"VmLck:\s+(\d+) kB", (process / "status").read_text())
            assert locked
            assert int(locked[1]) > 64 << 10, "more than the arena may use: its whole mapping counts"
        else:
            assert int((process / "stat").read_text().rpartition(")")[2].split()[6]) & PF_MEMALLOC_NOIO


def test_over_tcp_exports_have_the_tls_of_the_daemon(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    flags = [*authority.flags(authority.server()), "--admins=operator", "--nbd=tcp:127.0.0.1:0"]
    with daemon(*flags, f"--nbd=unix:{tmp_path}/sock") as running:
        admin = Admin(running.address, authority.credentials(authority.client("operator")))
        allowed = pb.Allowed(clients=["local", "host1"])
        admin.admin.CreateExport(pb.CreateExportRequest(name="swap0", size=MIB, allowed=allowed), timeout=PATIENCE)
        admin.close()
        unix, tcp = addresses(running)
        opened(unix, "swap0").close()
        with Wire(tcp).begin() as plain:
            assert plain.refused(Opt.GO, info_query("swap0")) == Rep.ERR_TLS_REQD
        for which, made, size in (("good", authority, str(MIB)), ("bad", stranger, "")):
            folder, client = tmp_path / which, made.client("host1")
            folder.mkdir()
            (folder / "ca-cert.pem").write_bytes(authority.file.read_bytes())
            (folder / "client-cert.pem").write_bytes(client.cert.read_bytes())
            (folder / "client-key.pem").write_bytes(client.key.read_bytes())
            where = f"nbds://{tcp.removeprefix('tcp:')}/swap0?tls-certificates={folder}"
            asked = [program("nbdinfo"), "--size", where]
            ended = subprocess.run(asked, capture_output=True, text=True, timeout=PATIENCE, check=False)
            assert ended.stdout.strip() == size, ended.stderr


def may(capability: int) -> bool:
    effective = re.search(r"CapEff:\s+(\w+)", Path("/proc/self/status").read_text())
    assert effective
    return bool(int(effective[1], 16) >> capability & 1)
