"""The SDK's own connection for the Exchange stream: against peers that misbehave, and where gRPC takes its place."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import tmem
from tests.lib.certificates import Authority
from tests.lib.daemon import daemon
from tests.lib.support import page
from tmem._protocol.messages import Failure
from tmem._transport.h2 import direct
from tmem._transport.tls import Security
from tmem_proto.v1 import tmem_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DATA, HEADERS, PING, GOAWAY = 0, 1, 6, 7
LATE, AWAY = 4, 14
HEADERS_OF_ANSWER = bytes([0, 0, 1, HEADERS, 4, 0, 0, 0, 1, 0x88])
REQUEST = pb.HasRequest(oid=bytes(24), count=1)


def frame(kind: int, stream: int, body: bytes, flags: int = 0) -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


def reply(number: int) -> bytes:
    body = pb.Reply(id=number, has=pb.HasResponse(held=b"\1")).SerializeToString()
    return frame(DATA, 1, b"\0" + len(body).to_bytes(4, "big") + body)


class Peer:
    """A server that does with each connection what it is told to."""

    def __init__(self, behave: Callable[[socket.socket, int], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.target = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self._behave = behave
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._run, args=(connection, self.connections), daemon=True).start()

    def _run(self, connection: socket.socket, number: int) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(30)
            self._behave(connection, number)

    def close(self) -> None:
        # Closing alone would leave the thread in `accept`, and the port open.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def frames(connection: socket.socket) -> Iterator[tuple[int, bytes]]:
    """What the client sends, as types and bodies, until it closes the connection."""
    with connection.makefile("rb") as file:
        assert len(file.read(24)) == 24
        while header := file.read(9):
            yield header[3], file.read(int.from_bytes(header[:3], "big"))


def commands(connection: socket.socket) -> Iterator[int]:
    """The ids of the commands, which are one frame each."""
    for kind, body in frames(connection):
        if kind == DATA:
            yield pb.Command.FromString(body[5:]).id


def silent(connection: socket.socket, _: int) -> None:
    connection.sendall(HEADERS_OF_ANSWER)
    for _frame in frames(connection):
        pass


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[Peer, direct.Exchange]]]:
    with contextlib.ExitStack() as stack:

        def served(behave: Callable[[socket.socket, int], None], timeout: float = 30.0) -> tuple[Peer, direct.Exchange]:
            peer = Peer(behave)
            stack.callback(peer.close)
            exchange = direct.Exchange(peer.target, Security(), timeout)
            stack.callback(exchange.close)
            return peer, exchange

        yield served


def test_an_unanswered_command_times_out_and_ends_the_connection(serve: Any) -> None:
    gone = threading.Event()

    def behave(connection: socket.socket, number: int) -> None:
        silent(connection, number)
        gone.set()

    peer, exchange = serve(behave, timeout=0.3)
    start = time.monotonic()
    assert exchange.carry_out("Has", REQUEST).code == LATE
    assert 0.3 <= time.monotonic() - start < 10
    assert gone.wait(30)
    assert exchange.carry_out("Has", REQUEST).code == LATE
    assert peer.connections == 2


def test_a_peer_that_sends_byte_by_byte_is_late_all_the_same(serve: Any) -> None:
    def behave(connection: socket.socket, _: int) -> None:
        for byte in HEADERS_OF_ANSWER + frame(PING, 0, bytes(8)) * 10_000:
            connection.sendall(bytes([byte]))
            threading.Event().wait(0.02)

    _, exchange = serve(behave, timeout=0.5)
    start = time.monotonic()
    assert exchange.carry_out("Has", REQUEST).code == LATE
    assert time.monotonic() - start < 10


def test_a_peer_that_sends_without_end_is_late_all_the_same(serve: Any) -> None:
    def behave(connection: socket.socket, _: int) -> None:
        connection.sendall(HEADERS_OF_ANSWER)
        while True:
            connection.sendall(frame(PING, 0, bytes(8), flags=1) * 1000)

    _, exchange = serve(behave, timeout=0.3)
    start = time.monotonic()
    assert exchange.carry_out("Has", REQUEST).code == LATE
    assert time.monotonic() - start < 20


def test_a_peer_that_takes_nothing_is_late(serve: Any) -> None:
    _, exchange = serve(silent, timeout=0.3)
    large = pb.PutRequest(oid=bytes(24), indices=[0], pages=bytes(1 << 20))
    assert exchange.carry_out("Put", large).code == LATE


def test_a_ping_tells_the_silent_from_the_dead(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "KEEPALIVE", 0.2)
    monkeypatch.setattr(direct, "KEEPALIVE_TIMEOUT", 1.0)

    def alive(connection: socket.socket, _: int) -> None:
        connection.sendall(HEADERS_OF_ANSWER)
        pings = 0
        for kind, body in frames(connection):
            if kind == PING:
                pings += 1
                connection.sendall(frame(PING, 0, body, flags=1))
                if pings == 3:
                    connection.sendall(reply(1))

    _, exchange = serve(alive)
    assert exchange.carry_out("Has", REQUEST).held == b"\1"
    _, exchange = serve(silent)
    start = time.monotonic()
    assert exchange.carry_out("Has", REQUEST) == Failure(AWAY, "the server does not answer a ping")
    assert time.monotonic() - start < 20


def answer_once(connection: socket.socket, _: int) -> None:
    connection.sendall(HEADERS_OF_ANSWER)
    connection.sendall(reply(next(commands(connection))))


def leave_after_one(connection: socket.socket, _: int) -> None:
    connection.sendall(HEADERS_OF_ANSWER)
    told = False
    for number in commands(connection):
        assert not told, "a command after it was told that there must be none"
        connection.sendall(reply(number) + frame(GOAWAY, 0, struct.pack(">II", 2**31 - 1, 0)))
        told = True


@pytest.mark.parametrize("behave", [answer_once, leave_after_one])
def test_a_connection_that_ended_between_commands_is_made_again(
    serve: Any, behave: Callable[[socket.socket, int], None]
) -> None:
    peer, exchange = serve(behave)
    assert exchange.carry_out("Has", REQUEST).held == b"\1"
    line = exchange._open
    deadline = time.monotonic() + 30
    while line.usable():
        assert time.monotonic() < deadline
    assert exchange.carry_out("Has", REQUEST).held == b"\1"
    assert peer.connections == 2


def test_a_connection_that_nobody_uses_is_closed(serve: Any) -> None:
    gone = threading.Event()

    def behave(connection: socket.socket, _: int) -> None:
        connection.sendall(HEADERS_OF_ANSWER)
        for number in commands(connection):
            connection.sendall(reply(number))
        gone.set()

    _, exchange = serve(behave)
    assert exchange.carry_out("Has", REQUEST).held == b"\1"
    assert gone.wait(30)


def test_commands_in_flight_share_the_fate_of_the_connection(serve: Any) -> None:
    def behave(connection: socket.socket, _: int) -> None:
        connection.sendall(HEADERS_OF_ANSWER)
        arrived = commands(connection)
        first = [next(arrived) for _ in range(8)]
        connection.sendall(b"".join(map(reply, first[:5])))
        connection.shutdown(socket.SHUT_WR)
        for _number in arrived:
            pass

    _, exchange = serve(behave)
    replies = exchange.carry_out_all("Has", (REQUEST for _ in range(20)))
    assert [each.held for each in replies[:5]] == [b"\1"] * 5
    assert [each.code for each in replies[5:]] == [AWAY] * 15


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (HEADERS_OF_ANSWER + reply(2), "as 2"),
        (HEADERS_OF_ANSWER + frame(DATA, 1, b"\0\0\0\0\1\xff"), "cannot be read"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" * 20, "violated HTTP/2"),
    ],
    ids=["another command's reply", "no reply", "no HTTP/2"],
)
def test_invalid_answers_make_a_server_unavailable(serve: Any, sent: bytes, why: str) -> None:
    def behave(connection: socket.socket, _: int) -> None:
        next(commands(connection))
        connection.sendall(sent)
        connection.recv(1)

    _, exchange = serve(behave)
    failure = exchange.carry_out("Has", REQUEST)
    assert failure.code == AWAY
    assert why in failure.details


def test_a_server_that_cannot_be_spoken_to_is_left_to_grpc(serve: Any) -> None:
    def behave(connection: socket.socket, _: int) -> None:
        next(commands(connection))
        connection.sendall(bytes([0, 0, 1, HEADERS, 4, 0, 0, 0, 1, 0x8D]))  # 404
        connection.recv(1)

    peer, exchange = serve(behave)
    assert exchange.carry_out("Has", REQUEST).code == AWAY
    assert exchange.carry_out("Has", REQUEST) is None
    assert peer.connections == 1


def test_where_nobody_listens_nothing_was_sent() -> None:
    peer = Peer(silent)
    peer.close()
    assert direct.Exchange(peer.target, Security(), 5.0).carry_out("Has", REQUEST) is None


def test_closing_breaks_off_a_command(serve: Any) -> None:
    arrived = threading.Event()

    def behave(connection: socket.socket, _: int) -> None:
        connection.sendall(HEADERS_OF_ANSWER)
        for _number in commands(connection):
            arrived.set()

    _, exchange = serve(behave)
    found: list[Any] = []
    asking = threading.Thread(target=lambda: found.append(exchange.carry_out("Has", REQUEST)))
    asking.start()
    assert arrived.wait(30)
    exchange.close()
    asking.join(30)
    assert [failure.code for failure in found] == [AWAY]


def exchange_of(store: tmem.Store) -> Any:
    transport: Any = store._transport
    return transport._driver._connections.current.exchange


def test_grpc_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    with daemon("--memory", "32MiB") as running:
        with tmem.connect(running.address) as store:
            store.pool("swap").put(1, {7: page(7)})
            assert exchange_of(store)._open is not None
            assert isinstance(exchange_of(store), direct.Exchange)
        monkeypatch.setenv("TMEM_TRANSPORT", "grpc")
        with tmem.connect(running.address) as store:
            assert store.pool("swap").get(1, [7]) == {7: page(7)}
            assert exchange_of(store) is None


def test_it_speaks_tls_where_files_say_how(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "tls")
    alice = authority.client("alice")
    flags = authority.flags(authority.server())
    with daemon("--memory", "32MiB", *flags) as running:
        tls = tmem.Tls(ca=authority.file, cert=alice.cert, key=alice.key)
        pages = {index: page(index) for index in range(600)}
        with tmem.connect(running.address, tls=tls) as store:
            pool = store.pool("swap")
            assert all(pool.put(1, pages).values())
            assert exchange_of(store)._open is not None
            assert pool.get(1, pages) == pages
            assert pool.get_range(1, 0, 600)[0] == b"".join(pages.values())
        with tmem.connect(running.address, credentials=authority.credentials(alice)) as store:
            assert store.pool("swap").get(1, pages) == pages
            assert exchange_of(store) is None
        other = tmem.Tls(ca=Authority(tmp_path / "other").file, cert=alice.cert, key=alice.key)
        with tmem.connect(running.address, tls=other, timeout=0.5) as store, pytest.raises(tmem.UnavailableError):
            store.pool("swap")
