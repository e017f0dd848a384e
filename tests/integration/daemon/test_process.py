"""The daemon as a process among others: signals, standard streams, the log, the configuration read again."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lz4.block
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from tests.integration.daemon.test_daemon import tmemd
from tests.lib.certificates import Authority
from tests.lib.daemon import Client, daemon
from tests.lib.support import PATIENCE
from tmem_proto.v1 import admin_pb2 as pb
from tmemd.process.arena_lock import is_older

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

COMMAND = [sys.executable, "-m", "tmemd", "--listen=127.0.0.1:0", "--memory=16MiB"]
FIXTURES = Path(__file__).parents[2] / "fixtures"
WORKERS = pytest.mark.parametrize("workers", ["--workers=1", "--workers=2"])


def until(holds: Callable[[], Any]) -> None:
    give_up_at = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


@contextmanager
def started(*flags: str, within: tuple[str, ...] = (), **options: Any) -> Iterator[subprocess.Popen[str]]:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    process = subprocess.Popen([*within, *COMMAND, *flags], text=True, **options)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def address_of(process: subprocess.Popen[str]) -> str:
    """Where it listens, once it does."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("listening on "):
            return line.split()[-1]
    raise AssertionError("it does not serve")


@contextmanager
def reading_settings(tmp_path: Path, within: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    """A daemon that waits for the rest of its file of settings."""
    path = tmp_path / "tmemd.toml"
    os.mkfifo(path)
    with started(f"--config={path}", within=within) as process, open(path, "w"):
        yield process


NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--")


def can_have_a_namespace() -> bool:
    return shutil.which("unshare") is not None and subprocess.run([*NAMESPACE, "true"], check=False).returncode == 0


@pytest.mark.parametrize("within", [(), NAMESPACE], ids=["process", "process 1"])
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_at_the_start_ends_it(
    tmp_path: Path, within: tuple[str, ...], signum: signal.Signals, status: int
) -> None:
    if within and not can_have_a_namespace():
        pytest.skip("no namespace can be made here")
    with reading_settings(tmp_path, within) as process:
        pid = process.pid
        if within:
            children = f"/proc/{pid}/task/{pid}/children"
            with open(children) as file:
                pid = int(file.read().split()[0])
        os.kill(pid, signum)
        _, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said) == (status, "")


@WORKERS
def test_other_signals_end_nothing(workers: str) -> None:
    with daemon(workers) as running, closing(Client(running.address)) as client:
        asked = pb.ListWorkersRequest()
        processes = {worker.process for worker in client.admin.ListWorkers(asked).workers} | {running.process.pid}
        for signum in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGPWR):
            for process in processes:
                os.kill(process, signum)
        client.open()
        assert {worker.process for worker in client.admin.ListWorkers(asked).workers} <= processes
        assert [worker.replaced for worker in client.admin.ListWorkers(asked).workers] == [0] * int(workers[-1])


@WORKERS
def test_standard_streams_that_are_closed_hinder_nothing(workers: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    shell = f"exec {' '.join(COMMAND)} {workers} --metrics=127.0.0.1:0 <&- >&- 2>&-"
    environment = {**os.environ, "NOTIFY_SOCKET": str(log)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(log))
        manager.settimeout(PATIENCE)
        process = subprocess.Popen(["sh", "-c", shell], env=environment)
        assert manager.recv(100) == b"READY=1"
        targets = {os.readlink(f"/proc/{process.pid}/fd/{number}") for number in range(2)}
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert manager.recv(100) == b"STOPPING=1"
    assert targets == {"/dev/null"}


@WORKERS
def test_streams_that_nobody_reads_or_that_are_gone_hinder_nothing(workers: str, tmp_path: Path) -> None:
    """Standard output has no reader, and standard error one that reads nothing."""
    gone, output = os.pipe()
    os.close(gone)
    reader, errors = os.pipe()
    fcntl.fcntl(errors, fcntl.F_SETPIPE_SZ, 4096)
    os.write(errors, b"x" * 4096)
    path, manager_path = tmp_path / "tmemd.toml", tmp_path / "manager"
    path.write_text("")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(manager_path))
        manager.settimeout(PATIENCE)
        environment = {**os.environ, "NOTIFY_SOCKET": str(manager_path)}
        with started(workers, f"--config={path}", stdout=output, stderr=errors, env=environment) as process:
            assert manager.recv(100) == b"READY=1"
            path.write_text("unknown = 1")
            for _ in range(3):  # each is a line of the log
                process.send_signal(signal.SIGHUP)
                assert manager.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
                assert manager.recv(100) == b"READY=1"
            process.terminate()
            assert process.wait(PATIENCE) == 0
    for descriptor in (output, reader, errors):
        os.close(descriptor)


@contextmanager
def logging_daemon(*flags: str, **options: Any) -> Iterator[tuple[str, list[str]]]:
    """The address of a daemon that is stopped afterwards, and then the lines of its log."""
    lines: list[str] = []
    with started(*flags, **options) as process:
        yield address_of(process), lines
        process.terminate()
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said
        lines += said.splitlines()


@WORKERS
def test_every_line_of_the_log_is_json_where_that_is_asked_for(workers: str, tmp_path: Path) -> None:
    """Those of gRPC too: TLS is spoken to in plain text, again and again."""
    authority = Authority(tmp_path / "authority")
    flags = authority.flags(authority.server())
    with logging_daemon(workers, "--log-format=json", *flags) as (address, lines):
        host, _, port = address.rpartition(":")
        for _ in range(20):
            with socket.create_connection((host, int(port)), timeout=PATIENCE) as plain:
                plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
                with suppress(ConnectionError):
                    while plain.recv(4096):
                        pass
    said = [json.loads(line) for line in lines]
    assert all({"time", "level", "process", "message"} <= each.keys() for each in said)
    (handshakes,) = [each for each in said if "handshake" in each["message"].lower()]
    assert handshakes["level"] == "warning"
    assert handshakes["process"] == ("tmemd" if workers[-1] == "1" else "tmemd worker 0")
    stops = [each["message"] for each in said if each["process"] == "tmemd" and "stop" in each["message"]]
    assert stops == ["stopping: SIGTERM; calls in flight have 10 s", "stopped"]


def test_a_failure_to_start_is_one_line_in_either_format() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for flags in ((), ("--log-format=json",)):
            ended = tmemd(f"--listen={address}", "--memory=16MiB", *flags)
            (line,) = ended.stderr.splitlines()
            why = f"cannot listen on {address} (the setting listen): Address already in use"
            assert (json.loads(line)["message"] if flags else line) == ("" if flags else "tmemd: ") + why
            assert ended.returncode == 2


def test_the_journal_is_told_how_bad_it_is(tmp_path: Path) -> None:
    with open(tmp_path / "journal", "w+") as journal:
        its = os.fstat(journal.fileno())
        environment = {**os.environ, "JOURNAL_STREAM": f"{its.st_dev}:{its.st_ino}"}
        with started("--config=/dev/null", stderr=journal, env=environment) as process:
            address_of(process)
            process.terminate()
            assert process.wait(PATIENCE) == 0
        journal.seek(0)
        assert journal.read().splitlines()[-1] == "<6>INFO tmemd: stopped"


def test_levels_below_the_one_asked_for_are_not_logged() -> None:
    with logging_daemon("--log-level=warning") as (_, lines):
        pass
    assert lines == []


def administrator(address: str) -> bool:
    with closing(Client(address)) as client:
        return client.admin.Stats(pb.StatsRequest()).administrator


@WORKERS
def test_sighup_reads_the_configuration_again(workers: str, tmp_path: Path) -> None:
    path, manager_path = tmp_path / "tmemd.toml", tmp_path / "manager"
    path.write_text('admins = ["local"]\nthreads = 2\n')
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(manager_path))
        manager.settimeout(PATIENCE)
        environment = {**os.environ, "NOTIFY_SOCKET": str(manager_path)}
        with started(workers, f"--config={path}", env=environment) as process:
            address = address_of(process)
            assert manager.recv(100) == b"READY=1"

            def reload(text: str) -> None:
                path.write_text(text)
                process.send_signal(signal.SIGHUP)
                assert manager.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
                assert manager.recv(100) == b"READY=1"

            reload('admins = ["nobody"]\nthreads = 3\n[clients.web]\nquota = "8MiB"\n')
            until(lambda: not administrator(address))
            reload('admins = ["local"]\nthread = 2\n')
            assert not administrator(address)
            reload('admins = ["local"]\nlog_format = "json"\n[clients.web]\nquota = "9MiB"\n')
            until(lambda: administrator(address))
            with closing(Client(address)) as client:
                (web,) = [
                    each for each in client.admin.ListClients(pb.ListClientsRequest()).clients if each.name == "web"
                ]
                assert web.quota == 9 << 20
            process.terminate()
            _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert re.search("INFO tmemd: configuration reloaded: changed admins, clients", said)
    assert re.search("WARNING tmemd: these settings need a restart: threads", said)
    assert re.search("ERROR tmemd: the configuration was not changed: .*: thread: unknown setting", said)
    assert json.loads(said.splitlines()[-1])["message"] == "stopped"


def health(url: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url.replace("/metrics", path), timeout=PATIENCE) as page:
            return page.status, page.read().decode().strip()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode().strip()


@WORKERS
def test_ready_until_it_stops(workers: str) -> None:
    with daemon(workers, "--drain=3600") as running:
        assert health(running.metrics_url, "/readyz") == health(running.metrics_url, "/livez") == (200, "ok")
        with closing(Client(running.address)) as client:
            stub: Any = HealthStub(client.channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            running.process.terminate()
            until(lambda: health(running.metrics_url, "/readyz") == (503, "stopping"))
            assert health(running.metrics_url, "/livez") == (200, "ok")
            watch.cancel()
        assert running.stop() == 0


def test_too_few_files_are_named_at_the_start() -> None:
    ended = subprocess.run(
        ["prlimit", "--nofile=40:40", *COMMAND], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert ended.returncode == 2
    assert re.fullmatch("tmemd: the open-file limit is 40, .*LimitNOFILE.*\n", ended.stderr)


def test_a_file_of_settings_may_be_a_pipe() -> None:
    shown = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m tmemd --print-config --config <(echo threads = 7)"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert "threads = 7\n" in shown.stdout


SMALL = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=16m none "$0" && exec "$@"')


def small(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """The daemon's command where the folder is a tmpfs of 16 MiB."""
    command = [*SMALL, str(folder), sys.executable, "-m", "tmemd", "--listen=127.0.0.1:0", f"--arena={folder}/arena"]
    return subprocess.run([*command, *flags], capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_memory_that_the_file_system_does_not_have(tmp_path: Path) -> None:
    if subprocess.run([*SMALL, str(tmp_path), "true"], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    refused = small(tmp_path, "--memory=2G")
    assert refused.returncode == 2
    assert f"memory is 2048 MiB, and the file system of {tmp_path}/arena has 16 MiB" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert "memory = 15728640\n" in small(tmp_path, "--print-config").stdout
    fill = f"dd if=/dev/zero of={tmp_path}/full bs=1M count=12 status=none"
    within = (*SMALL[:-1], SMALL[-1].replace("exec", f"{fill} && exec"), str(tmp_path))
    with started(f"--arena={tmp_path}/arena", within=within) as process:
        address_of(process)
        process.terminate()
        _, said = process.communicate(timeout=PATIENCE)
    assert "has only 4 MiB free" in said


def test_an_arena_keeps_its_memory_unless_it_is_told(arena: Path) -> None:
    assert tmemd(f"--arena={arena}", "--print-config").stdout.count("memory = ") == 2
    with daemon(f"--arena={arena}", memory="24MiB"):
        pass
    assert "memory = 25165824\n" in tmemd(f"--arena={arena}", "--print-config").stdout


def unpacked(path: Path) -> Path:
    """The stored arena of an earlier layout (tests/fixtures)."""
    stored = (FIXTURES / "layout4" / "arena.lz4").read_bytes()
    length, count = struct.unpack_from("<QI", stored)
    at = 12 + 12 * count
    with path.open("wb") as file:
        path.chmod(0o600)
        file.truncate(length)
        for number in range(count):
            offset, size = struct.unpack_from("<QI", stored, 12 + 12 * number)
            block, at = stored[at : at + size], at + size
            file.seek(offset)
            file.write(block if size == 4096 else lz4.block.decompress(block, 4096))
    return path


def test_an_arena_of_an_earlier_layout_is_not_touched_before_it_is_known_to_be_free(arena: Path) -> None:
    """Its memory cannot be asked for: whoever attaches brings it up to date."""
    unpacked(arena)
    assert tmemd(f"--arena={arena}", "--print-config").returncode == 0
    assert is_older(str(arena))
    with daemon(f"--arena={arena}", "--shards=2", memory="8MiB") as running, closing(Client(running.address)) as client:
        assert "lz4" in [pool.name for pool in client.admin.ListPools(pb.ListPoolsRequest()).pools]
    assert not is_older(str(arena))


def test_the_limit_of_a_real_cgroup() -> None:
    """Of version 1 or 2, where one can be made."""
    v1 = Path("/sys/fs/cgroup/memory")
    group = (v1 if v1.is_dir() else Path("/sys/fs/cgroup")) / f"tmemd-test-{os.getpid()}"
    try:
        group.mkdir()
        limit = group / ("memory.limit_in_bytes" if v1.is_dir() else "memory.max")
        limit.write_text(str(512 << 20))
    except OSError as error:
        with suppress(OSError):
            group.rmdir()
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        shell = f'echo $$ > {group}/cgroup.procs && exec "$@"'
        command = ["sh", "-c", shell, "sh", sys.executable, "-m", "tmemd", "--print-config"]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert f"memory = {256 << 20}\n" in shown.stdout, shown.stderr
    finally:
        until(lambda: not group.joinpath("cgroup.procs").read_text())
        group.rmdir()
