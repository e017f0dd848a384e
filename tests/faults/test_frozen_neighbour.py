"""A neighbour frozen with a shard's lock costs those who need it a bounded wait, and nobody else anything."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from tests.block.lib.handshake import opened
from tests.block.lib.protocol import Cmd, Err
from tests.faults.frozen import Neighbour, attached, is_held, neighbour
from tests.lib.command import Command
from tests.lib.daemon import OID, Client, Daemon
from tests.lib.retry import eventually
from tests.lib.support import PATIENCE, page, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHARDS = 4
CLUSTERS = 24
STRIDE = 64
BLOCK = 4096
EXPORT_OID = bytes(24)
BOUND = 60.0
"""What takes seconds takes less than this on however slow a machine."""


class Scene:
    """A daemon on an arena, a pool and an export with a page in each of many clusters, and a neighbour."""

    def __init__(self, arena: Path, stack: ExitStack) -> None:
        flags = f"--arena={arena}", f"--shards={SHARDS}", "--nbd=tcp:127.0.0.1:0", "--drain=2"
        self.arena = arena
        self.daemon = Daemon(*flags, memory="32MiB")
        stack.callback(self.daemon.kill)
        self.client = Client(self.daemon.address)
        stack.callback(self.client.close)
        self.client.open()
        command = Command(self.daemon.address)
        command.json("export", "create", "disk", f"--size={CLUSTERS * STRIDE * BLOCK}", "--multi-conn")
        (self.nbd,) = command.json("export", "ls")["addresses"]
        for cluster in range(CLUSTERS):
            self.client.put({cluster * STRIDE: page(cluster)})
        with opened(self.nbd, "disk") as disk:
            disk.write(0, run(0, CLUSTERS * STRIDE))
        self.neighbour = stack.enter_context(neighbour(arena, SHARDS))
        self.held, self.beside = self.freeze()

    def freeze(self) -> tuple[dict[str, int], dict[str, int]]:
        """Of the pool and of the export an index in the frozen neighbour's shard, and one beside it."""
        self.neighbour.freeze()
        held: dict[str, int] = {}
        beside: dict[str, int] = {}
        with attached(self.arena) as engine:
            for name, oid in (("pool", OID), ("export/disk", EXPORT_OID)):
                pool = engine.find_pool(name)
                assert pool is not None
                for index in range(0, CLUSTERS * STRIDE, STRIDE):
                    (held if is_held(pool, oid, index) else beside)[name] = index
        return held, beside


@pytest.fixture
def scene(arena: Path) -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(arena, stack)


def test_calls_are_unavailable_in_bounded_time_and_other_shards_are_served(scene: Scene) -> None:
    def refused(call: object) -> str:
        begun = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            call()  # type: ignore[operator]
        assert time.monotonic() - begun < BOUND
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        return str(caught.value.details())

    client, held, beside = scene.client, scene.held["pool"], scene.beside["pool"]
    said = refused(lambda: client.put({held: page(99)}))
    assert f"process {scene.neighbour.pid} is holding the lock of shard" in said
    refused(lambda: client.get([held]))
    # The loop itself waits for nobody: while calls wait for the shard, others are served.
    waits = [client.tmem.Put.future(client.put_request({held: page(99)}), timeout=PATIENCE) for _ in range(50)]
    for turn in range(20):
        assert client.put({beside: page(turn)})
        assert client.get([beside]) == {beside: page(turn)}
    assert {wait.code() for wait in waits} == {grpc.StatusCode.UNAVAILABLE}
    assert Command(scene.daemon.address).json("stat")
    scene.neighbour.go_on()
    deadline = time.monotonic() + BOUND
    while True:
        try:
            assert client.get([held]) == {held: page(held // STRIDE)}  # nothing was changed
            break
        except grpc.RpcError:
            assert time.monotonic() < deadline
    scene.daemon.process.terminate()
    _, log = scene.daemon.process.communicate(timeout=PATIENCE)
    assert log.count(f"process {scene.neighbour.pid} holds the lock of shard") == 1
    assert "Traceback" not in log


@pytest.mark.parametrize("end", [Neighbour.go_on, Neighbour.kill])
def test_a_write_to_an_export_waits_and_is_never_an_error(scene: Scene, end: object) -> None:
    held, beside = scene.held["export/disk"] * BLOCK, scene.beside["export/disk"] * BLOCK
    whole, part = page(7), b"part" * 100
    with opened(scene.nbd, "disk") as one, opened(scene.nbd, "disk") as two, opened(scene.nbd, "disk") as three:
        amended = held + 2 * BLOCK
        writes = one.submit(Cmd.WRITE, held, BLOCK, data=whole), one.submit(Cmd.WRITE, amended + 512, 400, data=part)
        read = three.submit(Cmd.READ, held + BLOCK, BLOCK)
        for turn in range(20):  # served beside those that wait, whatever locks they share
            two.write(beside, page(turn))
            two.write(beside + BLOCK + 100, part)
            assert two.read(beside, BLOCK) == page(turn)
        end(scene.neighbour)  # type: ignore[operator]
        for write in writes:
            assert one.answer(write).error == Err.OK
        answered = three.answer(read)
        assert answered.error == Err.OK
        assert three.read(held, BLOCK) == whole
        older = page(amended // BLOCK)
        assert three.read(amended, BLOCK) == older[:512] + part + older[912:]
    assert Command(scene.daemon.address).json("check")["violations"] == []


def test_the_daemon_ends_although_its_neighbour_is_frozen(scene: Scene) -> None:
    with opened(scene.nbd, "disk") as disk:
        disk.submit(Cmd.WRITE, scene.held["export/disk"] * BLOCK, BLOCK, data=page(7))
        waits = scene.client.tmem.Put.future(scene.client.put_request({scene.held["pool"]: page(1)}), timeout=PATIENCE)
        begun = time.monotonic()
        scene.daemon.process.terminate()
        _, log = scene.daemon.process.communicate(timeout=PATIENCE)
        assert time.monotonic() - begun < BOUND
        assert scene.daemon.process.returncode == 0, log
        # What a server that stops has not begun is cancelled.
        assert waits.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def test_an_arena_that_is_cut_short_ends_calls_and_not_the_daemon(scene: Scene) -> None:
    scene.neighbour.kill()
    client = scene.client
    ended: list[grpc.StatusCode] = []

    begun = threading.Barrier(4, timeout=PATIENCE)

    def work() -> None:
        own = Client(scene.daemon.address)
        own.open()
        begun.wait()
        try:
            for turn in range(1_000_000):
                own.put({turn % 500: page(turn % 50)})
        except grpc.RpcError as error:
            ended.append(error.code())
        own.close()

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    begun.wait()
    with scene.arena.open("r+b") as file:
        file.truncate(8192)
    for worker in workers:
        worker.join(PATIENCE)
    assert ended == [grpc.StatusCode.UNAVAILABLE] * 3
    with pytest.raises(grpc.RpcError) as caught:
        client.get([0])
    assert "truncated" in str(caught.value.details())
    with opened(scene.nbd, "disk") as disk:
        assert disk.command(Cmd.READ, 0, BLOCK).error != Err.OK
    health: Any = HealthStub(client.channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    eventually(lambda: health.Check(health_pb2.HealthCheckRequest()).status != serving)
    scene.daemon.process.terminate()
    _, log = scene.daemon.process.communicate(timeout=PATIENCE)
    assert scene.daemon.process.returncode == 0, log
    assert log.count("truncated") == 1
    assert "Traceback" not in log
