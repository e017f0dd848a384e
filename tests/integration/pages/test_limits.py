"""What one client may take of a daemon, and how connections and streams end that are not used."""

from __future__ import annotations

import os
import queue
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

import tmem
from tests.integration.pages.test_pages import Stream, code_of
from tests.lib.certificates import Authority
from tests.lib.daemon import Client, Daemon, daemon
from tests.lib.support import PATIENCE, noise, page
from tmem._transport.channel import OPTIONS
from tmem_proto.v1 import tmem_pb2 as pb
from tmem_proto.v1.admin_pb2 import ListWorkersRequest
from tmemd.config.settings import Config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOLDER = """
import sys, time
from tests.lib.daemon import Client
from tests.integration.pages.test_pages import Stream
from tmem_proto.v1 import tmem_pb2 as pb
client = Client(sys.argv[1])
stream = Stream(client)
stream.ask(pb.Command(id=1))
print(".", end="", flush=True)
time.sleep(600)
"""
RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


def until(holds: Callable[[], object], seconds: float = PATIENCE) -> None:
    give_up_at = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


@contextmanager
def streams(clients: list[Client], each: int) -> Iterator[list[Stream]]:
    """Streams that are under way, as many on each connection."""
    opened = [Stream(client) for client in clients for _ in range(each)]
    try:
        yield opened
    finally:
        for stream in opened:
            stream.cut()


def test_a_client_that_floods_leaves_room_for_others(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    flags = authority.flags(authority.server())
    with daemon(*flags, "--max-calls=16", "--max-client-calls=8", "--drain=0") as running:
        greedy = [Client(running.address, authority.credentials(authority.client("greedy"))) for _ in range(4)]
        modest = Client(running.address, authority.credentials(authority.client("modest")))
        for client in greedy:
            client.open("greedy")
        modest.open("modest")
        with streams(greedy, 4) as opened:
            asked = pb.Command(id=1, get=greedy[0].get_request([1]))
            served = [answered(stream, asked) for stream in opened]
            assert served.count(None) == 8
            assert set(served) == {None, RESOURCE_EXHAUSTED}
            with pytest.raises(grpc.RpcError) as caught:
                greedy[0].open("greedy")
            assert code_of(caught.value) == RESOURCE_EXHAUSTED
            assert "8 calls of client 'greedy' are in flight" in str(caught.value)
            assert modest.put({1: page(1)}) == bytes([pb.PUT_OUTCOME_STORED])
        until(lambda: is_open(greedy[0]))
        for client in (*greedy, modest):
            client.close()
        running.process.terminate()
        _, log = running.process.communicate(timeout=PATIENCE)
        assert log.count("client 'greedy' has 8 calls in flight") == 1


def answered(stream: Stream, command: pb.Command) -> grpc.StatusCode | None:
    """The status that a stream ends with when it is asked; None if it answers."""
    try:
        stream.ask(command)
    except grpc.RpcError as error:
        return code_of(error)
    return None


def is_open(client: Client) -> bool:
    """Whether a client gets in."""
    try:
        client.open("greedy")
    except grpc.RpcError as error:
        return code_of(error) != RESOURCE_EXHAUSTED
    return True


def test_a_client_of_a_busy_daemon_waits_its_turn() -> None:
    with daemon("--max-client-calls=1", "--drain=0") as busy, closing(Client(busy.address)) as other:
        other.open()
        with tmem.connect(busy.address) as store:
            pool = store.pool("waits")
            with streams([other], 1) as (stream,):
                until(lambda: answered(stream, pb.Command(id=1, get=other.get_request([1]))) is None)
                threading.Timer(0.5, stream.cut).start()
                assert pool.put(1, {7: page(7)})[7].stored
            assert pool.get(1, [7]) == {7: page(7)}


def test_long_calls_do_not_queue_without_end() -> None:
    pages = {index: noise(index) for index in range(256)}
    with daemon("--threads=1", "--max-waiting=1") as running, closing(Client(running.address)) as client:
        client.open("slow", codec="zstd:19")
        calls = [client.tmem.Put.future(client.put_request(pages), timeout=PATIENCE) for _ in range(12)]
        codes = [call.code() for call in calls]
        assert set(codes) == {grpc.StatusCode.OK, RESOURCE_EXHAUSTED}
        assert all("too many long calls" in call.details() for call in calls if call.code() == RESOURCE_EXHAUSTED)
        assert client.get([1, 255]) == {1: pages[1], 255: pages[255]}


def test_long_calls_of_one_client_leave_room_for_another_clients(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    flags = authority.flags(authority.server())
    pages = {index: noise(index) for index in range(256)}
    with daemon(*flags, "--threads=1", "--max-waiting=4", "--max-client-waiting=2") as running, ExitStack() as stack:
        greedy, modest = (
            stack.enter_context(closing(Client(running.address, authority.credentials(authority.client(name)))))
            for name in ("greedy", "modest")
        )
        for client in (greedy, modest):
            client.open(codec="zstd:19", name=f"pool {id(client)}")
        calls = [greedy.tmem.Put.future(greedy.put_request(pages), timeout=PATIENCE) for _ in range(12)]
        refused = next(call for call in calls if call.code() != grpc.StatusCode.OK)
        assert (refused.code(), "long calls of client 'greedy'" in refused.details()) == (RESOURCE_EXHAUSTED, True)
        assert modest.put(pages) == bytes([pb.PUT_OUTCOME_STORED]) * 256
        assert RESOURCE_EXHAUSTED in {call.code() for call in calls}


def limits(process: int) -> tuple[str, str]:
    """How many files a process may have open: soft and hard."""
    found = re.search(r"Max open files +(\d+) +(\d+)", Path(f"/proc/{process}/limits").read_text())
    assert found
    return found[1], found[2]


def test_as_many_files_may_be_open_as_the_system_allows() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    try:
        with daemon("--workers=2") as running, closing(Client(running.address)) as client:
            workers = client.admin.ListWorkers(ListWorkersRequest()).workers
            for process in (running.process.pid, *(worker.process for worker in workers)):
                assert limits(process) == (str(hard), str(hard))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def use_up_files(running: Daemon, stack: ExitStack) -> None:
    """Let a daemon open few files, and make more connections that say nothing."""
    resource.prlimit(running.process.pid, resource.RLIMIT_NOFILE, (64, 64))
    host, _, port = running.address.rpartition(":")
    for _ in range(100):
        one = stack.enter_context(socket.socket())
        one.setblocking(False)
        one.connect_ex((host, int(port)))


def test_connections_that_say_nothing_make_room() -> None:
    with daemon("--keepalive-timeout=2") as running, closing(Client(running.address)) as client, ExitStack() as stack:
        client.open()
        use_up_files(running, stack)
        for index in range(20):
            client.put({index: page(index)})
        assert client.get([7]) == {7: page(7)}, "who is there is served"
        with closing(Client(running.address)) as late:
            late.tmem.OpenPool(pb.OpenPoolRequest(name="pool"), timeout=PATIENCE, wait_for_ready=True)


def test_the_metrics_are_there_though_all_files_are_used_up() -> None:
    with daemon("--keepalive-timeout=600") as running, ExitStack() as stack:
        use_up_files(running, stack)
        until(lambda: len(os.listdir(f"/proc/{running.process.pid}/fd")) == 64)
        for _ in range(3):
            with urllib.request.urlopen(running.metrics_url, timeout=PATIENCE) as page:
                assert b"tmem_memory_bytes" in page.read()


def test_a_limit_of_files_that_is_too_low_is_told() -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))"
    code = f"{limit}; from tmemd.app.cli import main; main()"
    command = [sys.executable, "-c", code, "--listen=127.0.0.1:0", "--memory=8MiB", "--max-calls=200"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line.startswith("listening on ") for line in process.stdout)
        process.terminate()
        _, said = process.communicate(timeout=PATIENCE)
    assert "the open-file limit is 256, and max_calls is 200: raise the limit to 264 or more" in said


def test_a_connection_that_is_not_used_is_closed_and_its_client_comes_back() -> None:
    with (
        daemon("--connection-idle=1") as running,
        closing(Client(running.address)) as client,
        tmem.connect(running.address) as store,
    ):
        pool = store.pool("kept")
        pool.put(1, {7: page(7)})
        seen: list[grpc.ChannelConnectivity] = []
        client.channel.subscribe(seen.append)
        client.open()
        until(lambda: grpc.ChannelConnectivity.READY in seen)
        until(lambda: seen[-1] is grpc.ChannelConnectivity.IDLE)
        client.put({1: page(1)})
        assert client.get([1]) == {1: page(1)}
        assert pool.get(1, [7]) == {7: page(7)}
        assert store.client_stats().reopened == 0


def test_a_stream_that_is_not_used_ends_and_is_opened_again() -> None:
    with (
        daemon("--exchange-idle=2") as running,
        closing(Client(running.address)) as client,
        tmem.connect(running.address) as store,
    ):
        pool = store.pool("kept")
        pool.put(1, {7: page(7)})
        client.open()
        stream = Stream(client)
        assert stream.ask(pb.Command(id=1, get=client.get_request([1]))).id == 1
        with pytest.raises(StopIteration):
            stream.read()
        assert pool.put(1, {7: page(8)})[7].replaced
        assert pool.get(1, [7]) == {7: page(8)}


def test_a_client_that_vanished_is_found() -> None:
    flags = ("--max-client-calls=1", "--keepalive=1", "--keepalive-timeout=4", "--drain=0")
    with daemon(*flags) as running, closing(Client(running.address)) as client:
        client.open()
        with subprocess.Popen([sys.executable, "-c", HOLDER, running.address], stdout=subprocess.PIPE) as holder:
            assert holder.stdout is not None
            try:
                assert holder.stdout.read(1) == b"."
                assert not is_open(client)
                holder.send_signal(signal.SIGSTOP)
                until(lambda: is_open(client), PATIENCE / 2)  # long before the deadline of its stream
            finally:
                holder.kill()


def test_pings_of_clients_are_taken_as_often_as_is_said() -> None:
    with (
        daemon("--ping-interval=0") as taking,
        daemon("--ping-interval=600") as refusing,
        pinging(taking) as held,
        pinging(refusing) as cut,
    ):
        assert cut.wait(timeout=PATIENCE)
        assert not held.is_set()


@contextmanager
def pinging(running: Daemon) -> Iterator[threading.Event]:
    """A client with a stream on which nothing happens but its pings; the event is set when the daemon ends it."""
    options = [("grpc.keepalive_time_ms", 1200), ("grpc.http2.max_pings_without_data", 0)]
    with closing(Client(running.address, options=options)) as client:
        commands: queue.SimpleQueue[pb.Command | None] = queue.SimpleQueue()
        ended = threading.Event()
        stream = client.tmem.Exchange(iter(commands.get, None))
        stream.add_callback(ended.set)
        yield ended
        commands.put(None)


def test_the_clients_pings_are_within_the_limits_of_the_daemon() -> None:
    assert dict(OPTIONS)["grpc.keepalive_time_ms"] >= 2 * 1000 * Config().ping_interval
