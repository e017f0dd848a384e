"""The daemon as a process: start, stop, death and return, configuration, admin, metrics, health, reflection."""

import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from tests.integration.engine.test_arena_files import corrupt
from tests.lib.daemon import OID, Client, Daemon, daemon
from tests.lib.exposition import samples
from tests.lib.support import PATIENCE, noise, page
from tmem_proto.v1 import admin_pb2 as pb
from tmem_proto.v1 import tmem_pb2

RAW = frozenset({("encoding", "raw")})


def tmemd(*arguments: str, environment: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tmemd", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, env=environment)


def code_of(call: grpc.RpcError) -> grpc.StatusCode:
    assert isinstance(call, grpc.Call)
    return call.code()


def test_every_acknowledged_persistent_page_outlives_kill_9(arena: Path) -> None:
    pages = {index: page(index) for index in range(200)}
    with daemon(f"--arena={arena}") as first:
        client = Client(first.address)
        client.open("kept", codec="zstd", quota=16 << 20)
        assert set(client.put(pages)) == {tmem_pb2.PUT_OUTCOME_STORED}
        first.kill()
        client.close()
    with daemon(f"--arena={arena}") as second:
        client = Client(second.address)
        late = client.tmem.OpenPool(tmem_pb2.OpenPoolRequest(name="kept"))
        assert (late.settings.codec, late.settings.quota) == ("zstd:1", 16 << 20)
        client.session = late.session
        assert client.get(list(pages)) == pages
        assert list(client.admin.Check(pb.CheckRequest()).violations) == []
        client.close()


def test_a_session_of_the_daemon_before_is_unknown(arena: Path) -> None:
    with daemon(f"--arena={arena}") as first:
        client = Client(first.address)
        session = client.open().session
        client.close()
    with daemon(f"--arena={arena}") as second:
        client = Client(second.address)
        client.open()
        client.session = session
        with pytest.raises(grpc.RpcError) as caught:
            client.put({1: page(1)})
        assert code_of(caught.value) == grpc.StatusCode.NOT_FOUND
        client.close()


def test_sigterm_ends_it_in_order(arena: Path) -> None:
    with daemon(f"--arena={arena}", "--drain=1") as first:
        client = Client(first.address)
        health: Any = HealthStub(client.channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="tmem.v1.Tmem"))
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        client.open()
        client.put({1: page(1)})
        first.process.terminate()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert first.stop() == 0
        client.close()
    with daemon(f"--arena={arena}") as second:
        client = Client(second.address)
        client.open()
        assert client.get([1]) == {1: page(1)}
        assert client.admin.Stats(pb.StatsRequest()).store["recoveries"] == 0
        client.close()


@pytest.mark.parametrize("workers", ["--workers=1", "--workers=2"])
def test_nothing_of_a_daemon_that_ends_lands_after_the_next_one_serves(arena: Path, workers: str) -> None:
    """It has calls in its only thread, the last of which would store an old page over a newer one."""
    flags = (workers, f"--arena={arena}", "--threads=1", "--drain=3600")
    with daemon(*flags) as first, closing(Client(first.address)) as client:
        client.open(codec="zstd:19", page_size=65536)
        old = {index: noise(index, 65536) for index in range(1, 32)}
        calls = [client.tmem.Put.future(client.put_request(old), timeout=PATIENCE) for _ in range(5)]
        while samples(first.metrics_url)["tmem_received_page_bytes_total", RAW] < len(calls) * len(old) << 16:
            pass
        first.process.terminate()
        with daemon(*flags, f"--listen={first.address}") as second, closing(Client(second.address)) as other:
            other.open(codec="zstd:19", page_size=65536)
            new = {1: noise(0, 65536)}
            other.put(new)
            assert [call.code() for call in calls] == [grpc.StatusCode.OK] * len(calls)
            assert other.get([1]) == new
        assert first.stop() == 0


@pytest.mark.parametrize("workers", ["--workers=1", "--workers=2"])
def test_a_daemon_waits_for_as_long_as_the_one_before_it_may_take(arena: Path, workers: str) -> None:
    """Its own limit is shorter by far: without the other's word it would give up after three seconds."""
    with daemon(f"--arena={arena}", workers, "--drain=60", "--inject=Put:delay=9s") as first:
        with closing(Client(first.address)) as client:
            client.open()
            put = client.tmem.Put.future(client.put_request({1: page(1)}), timeout=PATIENCE)
            client.open()  # behind the put, so that has begun
            first.process.terminate()
            with daemon(f"--arena={arena}", workers, "--drain=0") as second, closing(Client(second.address)) as other:
                assert put.code() == grpc.StatusCode.OK
                other.open()
                assert other.get([1]) == {1: page(1)}
                second.process.terminate()
                _, said = second.process.communicate(timeout=PATIENCE)
        assert first.stop() == 0
    assert re.search(r"another daemon is serving arena .*: waiting for it to stop, which takes up to 65 s", said)


def test_a_daemon_does_not_serve_an_arena_that_another_serves(arena: Path) -> None:
    with daemon(f"--arena={arena}", "--workers=2") as running:
        ended = tmemd(f"--arena={arena}", "--memory=64MiB", "--listen=127.0.0.1:0", "--drain=0")
        assert (ended.returncode, "another daemon serves it" in ended.stderr) == (2, True)
        running.kill()
    with daemon(f"--arena={arena}"):
        pass


def test_admin_of_pools(client: Client) -> None:
    settings = tmem_pb2.PoolSettings(kind="ephemeral", weight=3, owner="me")
    created = client.admin.CreatePool(pb.CreatePoolRequest(name="made", settings=settings)).pool
    assert (created.name, created.settings.allocator, created.frozen) == ("made", "zbud", False)
    with pytest.raises(grpc.RpcError) as caught:
        client.admin.CreatePool(pb.CreatePoolRequest(name="made", settings=settings))
    assert code_of(caught.value) == grpc.StatusCode.ALREADY_EXISTS
    client.admin.SetQuota(pb.SetQuotaRequest(pool="made", quota=1 << 20))
    client.admin.SetWeight(pb.SetWeightRequest(pool="made", weight=7))
    client.admin.Freeze(pb.FreezeRequest(pool="made"))
    got = client.admin.GetPool(pb.GetPoolRequest(name="made")).pool
    assert (got.settings.quota, got.settings.weight, got.settings.owner, got.frozen) == (1 << 20, 7, "me", True)
    client.admin.Thaw(pb.ThawRequest(pool="made"))
    assert "made" in [pool.name for pool in client.admin.ListPools(pb.ListPoolsRequest()).pools]
    with pytest.raises(grpc.RpcError) as caught:
        client.admin.SetWeight(pb.SetWeightRequest(pool="made", weight=0))
    assert code_of(caught.value) == grpc.StatusCode.INVALID_ARGUMENT
    client.session = client.tmem.OpenPool(tmem_pb2.OpenPoolRequest(name="made")).session
    client.put({1: page(1), 2: page(2)})
    assert client.admin.DestroyPool(pb.DestroyPoolRequest(name="made")).dropped == 2
    for call in (
        lambda: client.get([1]),
        lambda: client.admin.GetPool(pb.GetPoolRequest(name="made")),
        lambda: client.admin.DestroyPool(pb.DestroyPoolRequest(name="made")),
        lambda: client.admin.Freeze(pb.FreezeRequest(pool="made")),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert code_of(caught.value) == grpc.StatusCode.NOT_FOUND


def test_admin_of_the_store(client: Client) -> None:
    client.open("cache", kind="ephemeral")
    client.put({index: noise(index) for index in range(256)})
    assert client.admin.Relinquish(pb.RelinquishRequest(size=256 << 10)).given_back >= 256 << 10
    client.open("sparse")
    client.put({index: page(index) for index in range(256)})
    client.tmem.Flush(tmem_pb2.FlushRequest(session=client.session, oid=OID, indices=range(0, 256, 2)))
    assert client.admin.Compact(pb.CompactRequest()).moved_pages > 0
    client.admin.Resize(pb.ResizeRequest(memory=80 << 20))
    stats = client.admin.Stats(pb.StatsRequest())
    assert stats.store["memory_bytes"] == 80 << 20
    assert (stats.accept_threshold, stats.arena) == (90, "")
    with pytest.raises(grpc.RpcError) as caught:
        client.admin.Resize(pb.ResizeRequest(memory=1 << 20))
    assert code_of(caught.value) == grpc.StatusCode.INVALID_ARGUMENT
    assert list(client.admin.Check(pb.CheckRequest()).violations) == []


def test_health_and_reflection(client: Client) -> None:
    health: Any = HealthStub(client.channel)
    for service in ("", "tmem.v1.Tmem", "tmem.v1.TmemAdmin"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    reflection: Any = ServerReflectionStub(client.channel)
    listed = next(reflection.ServerReflectionInfo(asked)).list_services_response.service
    assert {"tmem.v1.Tmem", "tmem.v1.TmemAdmin", "grpc.health.v1.Health"} <= {service.name for service in listed}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--listen=0.0.0.0:0"], "give tls_cert and tls_key"),
        (["--metrics=0.0.0.0:0"], "give tls_cert and tls_key"),
        (["--listen=here"], "HOST:PORT"),
        (["--memory=12x"], "expected bytes"),
        (["--memory=100"], "at least 1 MiB"),
        (["--max-calls=0"], "must be 1 to"),
        (["--shards=3"], "power of two"),
        (["--store=null", "--arena=/dev/shm/unused"], "which has no arena"),
        (["--store=disk"], "must be arena or null"),
        (["--max-watchers=0"], "must be 1 to"),
        (["--config=/nonexistent"], "No such file"),
        (["--arena=/nonexistent/arena"], "arena /nonexistent/arena"),
        (["--nonsense"], "unrecognized"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_configuration_that_makes_no_sense_is_refused(arguments: list[str], why: str) -> None:
    ended = tmemd(*arguments)
    assert ended.returncode == 2
    assert why in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_address_that_is_taken(running: Daemon) -> None:
    ended = tmemd(f"--listen={running.address}", "--memory=8MiB")
    assert ended.returncode == 2
    assert f"cannot listen on {running.address}" in ended.stderr


def test_flags_win_over_environment_over_file(tmp_path: Path) -> None:
    file = tmp_path / "tmemd.toml"
    file.write_text('memory = "1GiB"\nthreads = 3\nmax_calls = 5\nmlock = true\n')
    environment = {"TMEMD_THREADS": "4", "TMEMD_MAX_CALLS": "6"}
    shown = tmemd(f"--config={file}", "--max-calls=7", "--print-config", environment=environment)
    assert shown.returncode == 0
    assert {"memory = 1073741824", "threads = 4", "max_calls = 7", "mlock = true"} <= set(shown.stdout.splitlines())
    again = tmp_path / "again.toml"
    again.write_text(shown.stdout)
    assert tmemd(f"--config={again}", "--print-config", environment={}).stdout == shown.stdout


def test_unknown_keys_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "tmemd.toml"
    file.write_text("memroy = 1\n")
    assert "memroy: unknown setting" in tmemd(f"--config={file}").stderr
    assert "TMEMD_MEMROY: unknown setting" in tmemd(environment={"TMEMD_MEMROY": "1"}).stderr
    file.write_text("memory = [1]\n")
    assert "expected bytes" in tmemd(f"--config={file}").stderr


def test_no_byte_of_a_corrupt_page_is_given_out(arena: Path) -> None:
    with daemon(f"--arena={arena}", memory="4MiB") as running:
        client = Client(running.address)
        for kind, outcome in (("persistent", 2), ("ephemeral", 0)):
            client.open(kind, kind, codec="raw")
            client.put({7: noise(7), 8: page(8)})
            corrupt(arena, noise(7))
            for accept in (tmem_pb2.ENCODING_RAW, tmem_pb2.ENCODING_LZ4):
                request = client.get_request([7, 8, 9])
                request.accept = accept
                response = client.tmem.Get(request)
                assert response.found[0] == outcome
                assert noise(7)[1001:] not in response.pages
        client.close()
