"""`tmemd --workers`: processes on one arena, of which any may die."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

import tmem
from tests.integration.daemon.test_daemon import tmemd
from tests.lib.certificates import Authority
from tests.lib.daemon import Client, Daemon, daemon
from tests.lib.exposition import samples
from tests.lib.putter import Putter
from tests.lib.support import PATIENCE, page
from tmem_proto.v1 import admin_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHARED = Path("/dev/shm")


@pytest.fixture(scope="module")
def running() -> Iterator[Daemon]:
    with daemon("--workers=2") as running:
        yield running


def workers(address: str) -> pb.ListWorkersResponse:
    with closing(Client(address)) as client:
        return client.admin.ListWorkers(pb.ListWorkersRequest(), timeout=PATIENCE, wait_for_ready=True)


def until(holds: Callable[[], Any], seconds: float = PATIENCE) -> None:
    """Wait until something is so."""
    give_up_at = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def runs(process: int) -> bool:
    """Whether a process is there, and not only its exit status."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill_worker(running: Daemon, number: int) -> None:
    """Kill a worker; done when another process serves in its place."""
    before = workers(running.address).workers[number].process
    other = running.addresses[number - 1]
    os.kill(before, signal.SIGKILL)
    until(lambda: workers(other).workers[number].process not in (0, before))


def bound(port: int) -> socket.socket:
    """A socket that listens on a port, once whoever died has let go of it."""
    give_up_at = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_server(("127.0.0.1", port))
        except OSError:
            assert time.monotonic() < give_up_at
            time.sleep(0.01)


def test_workers_listen_on_ports_of_their_own_and_all_name_the_same(running: Daemon) -> None:
    listed = [workers(address).workers for address in running.addresses]
    assert listed[0] == listed[1]
    assert [f"127.0.0.1:{worker.port}" for worker in listed[0]] == running.addresses
    assert [worker.number for worker in listed[0]] == [0, 1]
    assert running.process.pid not in {worker.process for worker in listed[0]}
    assert all(runs(worker.process) for worker in listed[0])


def test_workers_have_every_setting(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    file = tmp_path / "tmemd.toml"
    file.write_text('[clients.web]\nquota = "8MiB"\nweight = 2\n')
    flags = authority.flags(authority.server())
    with daemon("--workers=2", f"--config={file}", "--admins=boss", "--inject=", *flags) as running:
        for address in running.addresses:
            with closing(Client(address, authority.credentials(authority.client("boss")))) as boss:
                stats = boss.admin.Stats(pb.StatsRequest())
                assert (stats.client, stats.administrator) == ("boss", True)
                (web,) = [
                    each for each in boss.admin.ListClients(pb.ListClientsRequest()).clients if each.name == "web"
                ]
                assert (web.quota, web.weight) == (8 << 20, 2)
                assert list(boss.admin.Inject(pb.InjectRequest()).before) == []


@contextmanager
def two_ports() -> Iterator[int]:
    """The first of two ports in a row of which nobody had any. The second is taken."""
    give_up_at = time.monotonic() + PATIENCE
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first, suppress(OSError, OverflowError):
            port = first.getsockname()[1]
            second = socket.create_server(("127.0.0.1", port + 1))
            break
        assert time.monotonic() < give_up_at
    with second:
        yield port


def test_ports_follow_that_of_the_first() -> None:
    with two_ports() as port:
        pass
    with daemon("--workers=2", f"--listen=127.0.0.1:{port}") as running:
        assert running.addresses == [f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"]


def test_what_one_worker_stores_all_others_serve(running: Daemon) -> None:
    with tmem.connect(running.addresses[0]) as one, tmem.connect(running.addresses[1]) as other:
        shared = one.pool("seen", kind="ephemeral", shared=True)
        shared.put(1, {7: page(7)})
        seen = other.find_pool("seen")
        assert seen.get(1, [7]) == {7: page(7)}
        assert seen.flush(1, [7]) == 1
        assert shared.get(1, [7]) == {}
        shared.freeze()
        assert seen.put(1, {7: page(7)})[7].reason == "frozen"
        shared.destroy()
        with pytest.raises(tmem.UnknownPoolError):
            seen.get(1, [7])


def test_clients_are_spread_over_the_workers() -> None:
    with daemon("--workers=2") as running:
        clients = []
        for _ in range(6):
            port = workers(running.address).suggested_port
            clients.append(Client(f"127.0.0.1:{port}"))
            clients[-1].open()
        sessions = [len([each for each in clients if each.address == address]) for address in running.addresses]
        assert sessions == [3, 3]
        for client in clients:
            client.close()


def test_a_new_client_is_sent_where_fewer_are(running: Daemon) -> None:
    with closing(Client(running.addresses[1])) as busy:
        for _ in range(50):
            busy.open()
        until(
            lambda: (
                {workers(running.address).suggested_port for _ in range(9)} == {int(running.address.rpartition(":")[2])}
            )
        )


def test_a_worker_killed_under_load_loses_nothing_and_disturbs_no_other() -> None:
    with daemon("--workers=2") as running:
        putters = [Putter(running.address, f"pool{at}") for at in range(4)]
        for _ in range(3):
            kill_worker(running, 1)
            for putter in putters:
                putter.put_more(20)
        for putter in putters:
            putter.end()
        disturbed = [putter for putter in putters if putter.failed_calls]
        assert 0 < len(disturbed) < len(putters)
        assert workers(running.address).workers[1].replaced == 3
        with tmem.connect(running.address) as store:
            for putter in putters:
                putter.verify(store.find_pool(putter.pool))
            assert store.check() == []


def test_a_session_of_a_worker_that_died_is_unknown_to_the_next() -> None:
    with daemon("--workers=2") as running, closing(Client(running.addresses[1])) as client:
        client.open()
        client.put({1: page(1)})
        kill_worker(running, 1)
        grpc.channel_ready_future(client.channel).result(timeout=PATIENCE)
        with pytest.raises(grpc.RpcError) as caught:
            client.put({1: page(2)})
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        client.open()
        assert client.get([1]) == {1: page(1)}


def test_a_replacement_takes_an_arena_that_was_resized() -> None:
    with daemon("--workers=2") as running, closing(Client(running.address)) as client:
        client.admin.Resize(pb.ResizeRequest(memory=80 << 20))
        kill_worker(running, 1)
        with closing(Client(running.addresses[1])) as other:
            assert other.admin.Stats(pb.StatsRequest()).store["memory_bytes"] == 80 << 20


def test_workers_die_with_their_supervisor_and_the_arena_comes_back_whole(arena: Path) -> None:
    with daemon("--workers=2", f"--arena={arena}") as first:
        putters = [Putter(address, f"pool{at}") for at, address in enumerate(first.addresses)]
        processes = [worker.process for worker in workers(first.address).workers]
        for putter in putters:
            putter.put_more(20)
        first.kill()
        until(lambda: not any(map(runs, processes)))
        for putter in putters:
            putter.kill()
    with daemon("--workers=2", f"--arena={arena}") as second, tmem.connect(second.address) as store:
        for putter in putters:
            putter.verify(store.find_pool(putter.pool))
        assert store.check() == []


def test_sums_never_go_back_when_a_worker_dies() -> None:
    with daemon("--workers=2") as running:
        for address in running.addresses:
            with closing(Client(address)) as client:
                client.open()
                for _ in range(20):
                    client.put({1: page(1)})
        before = samples(running.metrics_url)
        assert before["tmem_calls_total", frozenset({("method", "Put"), ("code", "OK")})] == 40
        assert before["tmem_workers", frozenset()] == 2
        assert before["tmem_worker_replacements_total", frozenset()] == 0
        kill_worker(running, 1)
        after = samples(running.metrics_url)
        counters = [key for key in before if key[0].endswith(("_total", "_bucket", "_count"))]
        assert [key for key in counters if after.get(key, 0) < before[key] and "process" not in key[0]] == []
        assert after["tmem_workers", frozenset()] == 2
        assert after["tmem_worker_replacements_total", frozenset()] == 1
        with closing(Client(running.address)) as client:
            stats = client.admin.Stats(pb.StatsRequest()).daemon
        assert stats["calls"] > 40
        assert stats["sessions"] == 1


def test_sigterm_stops_all_in_order(arena: Path) -> None:
    with daemon("--workers=2", "--drain=1", f"--arena={arena}") as first:
        processes = [worker.process for worker in workers(first.address).workers]
        clients = [Client(address) for address in first.addresses]
        asked = health_pb2.HealthCheckRequest(service="tmem.v1.Tmem")
        stubs: list[Any] = [HealthStub(client.channel) for client in clients]
        watches = [stub.Watch(asked) for stub in stubs]
        assert {next(watch).status for watch in watches} == {health_pb2.HealthCheckResponse.SERVING}
        clients[1].open()
        clients[1].put({1: page(1)})
        first.process.terminate()
        assert {next(watch).status for watch in watches} == {health_pb2.HealthCheckResponse.NOT_SERVING}
        assert first.stop() == 0
        assert not any(map(runs, processes))
        for client in clients:
            client.close()
    with daemon("--workers=2", f"--arena={arena}") as second, closing(Client(second.address)) as client:
        client.open()
        assert client.get([1]) == {1: page(1)}
        assert client.admin.Stats(pb.StatsRequest()).store["recoveries"] == 0


def test_a_worker_that_hangs_does_not_hold_up_the_stop() -> None:
    with daemon("--workers=2", "--drain=0") as running:
        hanging = workers(running.address).workers[1].process
        os.kill(hanging, signal.SIGSTOP)
        assert running.stop() == 0
        assert not runs(hanging)


def test_a_worker_that_hangs_is_killed_and_replaced() -> None:
    with daemon("--workers=2", "--worker-timeout=5") as running:
        before = [worker.process for worker in workers(running.address).workers]
        with closing(Client(running.addresses[1])) as client:
            client.open()
            client.put({7: page(7)})
        os.kill(before[1], signal.SIGSTOP)
        until(lambda: not runs(before[1]))
        until(lambda: workers(running.address).workers[1].process not in (0, before[1]))
        with closing(Client(running.addresses[1])) as client:
            client.open()
            assert client.get([7]) == {7: page(7)}
        running.process.terminate()
        _, said = running.process.communicate(timeout=PATIENCE)
    assert "worker 1 died: it sent no heartbeat for 5 s and was killed; replacing it" in said


def test_workers_share_memory_that_has_no_name() -> None:
    """Nobody can make it before they do, open it by a name, or find it when they are gone."""
    before = set(SHARED.iterdir())
    with daemon("--workers=2") as running:
        mine = [path for path in SHARED.iterdir() if path not in before and f"{running.process.pid}" in path.name]
        assert mine == []
        processes = [running.process.pid, *(worker.process for worker in workers(running.address).workers)]
        for process in processes:
            maps = Path(f"/proc/{process}/maps").read_text()
            assert "/memfd:tmem-arena (deleted)" in maps
        with tmem.connect(running.addresses[0]) as one, tmem.connect(running.addresses[1]) as other:
            one.pool("swap0").put(1, {7: page(7)})
            assert other.pool("swap0").get(1, [7]) == {7: page(7)}
        running.kill()


def test_a_port_that_is_taken_is_named_at_the_start() -> None:
    with two_ports() as port:
        ended = tmemd("--workers=2", f"--listen=127.0.0.1:{port}", "--memory=8MiB")
    assert ended.returncode == 2
    assert f"worker 1 cannot serve: cannot listen on 127.0.0.1:{port + 1}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_worker_that_cannot_be_replaced_ends_the_daemon() -> None:
    with daemon("--workers=2", "--drain=1") as running:
        killed, other = workers(running.address).workers[1], workers(running.address).workers[0]
        running.process.send_signal(signal.SIGSTOP)
        os.kill(killed.process, signal.SIGKILL)
        with closing(bound(killed.port)):
            running.process.send_signal(signal.SIGCONT)
            _, said = running.process.communicate(timeout=PATIENCE)
        assert running.process.returncode == 1
        assert "worker 1 cannot serve (5 processes have tried): cannot listen on" in said
        assert not runs(other.process)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--workers=0"], "must be 1 to 64"),
        (["--workers=2", "--listen=127.0.0.1:65535"], "port would be 65536"),
        (["--workers=2", "--store=null"], "share an arena"),
        (["--workers=2", "--arena=/nonexistent/arena"], "arena /nonexistent/arena"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_workers_that_make_no_sense_are_refused(arguments: list[str], why: str) -> None:
    ended = tmemd(*arguments)
    assert ended.returncode == 2
    assert why in ended.stderr
    assert "Traceback" not in ended.stderr
