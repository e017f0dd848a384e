"""Clients that mean harm, or are merely slow or dying: the server stays up, others go on, nothing stays."""

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.block.conftest import cleared
from tests.block.lib.handshake import Wire, info_query, meta_query, opened
from tests.block.lib.protocol import (
    ALLOCATION,
    FIXED,
    LARGEST,
    NO_ZEROES,
    OPTION_MAGIC,
    REQUEST_MAGIC,
    Cmd,
    Err,
    Info,
    Opt,
)
from tests.block.lib.servers import NAME
from tests.block.lib.stream import EndedError, connect
from tests.lib.retry import eventually
from tests.lib.support import page, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.block.lib.client import Client
    from tests.block.lib.servers import Server

PAGE = 4096
MIB = 1 << 20
CROWD = 60
SMALL = 16  # bytes that the recorded session writes


def _option(option: int, data: bytes = b"") -> bytes:
    return struct.pack(">QII", OPTION_MAGIC, option, len(data)) + data


def _command(kind: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack(">IHHQQI", REQUEST_MAGIC, flags, kind, 0x1122334455667788, offset, length) + data


HANDSHAKE = b"".join(
    (
        struct.pack(">I", FIXED | NO_ZEROES),
        _option(Opt.STRUCTURED_REPLY),
        _option(Opt.LIST),
        _option(Opt.LIST_META_CONTEXT, meta_query(NAME)),
        _option(Opt.SET_META_CONTEXT, meta_query(NAME, ALLOCATION)),
        _option(Opt.INFO, info_query(NAME, Info.BLOCK_SIZE, Info.DESCRIPTION)),
        _option(77, b"unknown"),
        _option(Opt.GO, info_query(NAME, Info.BLOCK_SIZE)),
    )
)
COMMANDS = b"".join(
    (
        _command(Cmd.READ, 0, PAGE),
        _command(Cmd.WRITE, PAGE, SMALL, b"x" * SMALL),
        _command(Cmd.FLUSH),
        _command(Cmd.BLOCK_STATUS, 0, 1 << 20),
        _command(Cmd.TRIM, 8 * PAGE, PAGE),
        _command(Cmd.WRITE_ZEROES, 9 * PAGE, 100),
        _command(99),
        _command(Cmd.DISC),
    )
)
SESSION = HANDSHAKE + COMMANDS


@pytest.fixture
def server(tmemd: Server) -> Server:
    """Ours alone: nbdkit (1.32) dies of some of this."""
    return tmemd


@pytest.fixture
def witness(server: Server) -> Iterator[Client]:
    """A client that was there before, and must not be troubled."""
    with cleared(server) as client:
        client.write(0, page(1))
        yield client
        assert client.read(0, PAGE) == page(1)


def _reset(sock: socket.socket) -> None:
    """Go without a word: the kernel of the other side is told that the connection is dead."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_a_session_cut_at_every_byte(server: Server, witness: Client) -> None:
    """Its client goes, with all its answers unread; then once more, but it still listens until the server ends."""
    descriptors, threads = server.descriptors(), server.threads()
    for cut in range(len(SESSION)):
        with connect(server.address) as sock:
            sock.sendall(SESSION[:cut])
            _reset(sock)
        with Wire(server.address) as wire:
            wire.send(SESSION[:cut])
            wire.sock.shutdown(socket.SHUT_WR)
            wire.rest()
    assert witness.read(0, PAGE) == page(1)
    eventually(lambda: server.descriptors() <= descriptors and server.threads() <= threads)


def test_a_write_cut_short_is_not_done(server: Server, witness: Client) -> None:
    witness.write(PAGE, page(2))
    for sent in (0, 1, 100, PAGE - 1):
        with Wire(server.address) as wire:
            wire.send(HANDSHAKE + _command(Cmd.WRITE, PAGE, PAGE, b"x" * sent))
            wire.sock.shutdown(socket.SHUT_WR)
            wire.rest()
        assert witness.read(PAGE, PAGE) == page(2)


@pytest.mark.parametrize("magic", [0, 0x25609514, OPTION_MAGIC >> 32, 0xFFFFFFFF])
def test_a_command_with_a_wrong_magic_ends_the_connection(server: Server, witness: Client, magic: int) -> None:
    with opened(server.address, server.name) as client:
        client.send(struct.pack(">IHHQQI", magic, 0, Cmd.READ, 1, 0, PAGE))
        assert client.rest() == b""
    assert witness.read(0, PAGE) == page(1)


@pytest.mark.parametrize("length", [LARGEST + 1, 1 << 30, (1 << 32) - 1])
def test_a_write_of_more_than_the_limit_is_not_waited_for(server: Server, witness: Client, length: int) -> None:
    """It is refused or its connection ended; in no case is its memory set aside."""
    before = server.resident()
    with opened(server.address, server.name) as client:
        try:
            cookie = client.submit(Cmd.WRITE, 0, length, data=b"x" * MIB)
            client.sock.shutdown(socket.SHUT_WR)
            assert client.answer(cookie).error != Err.OK
        except EndedError:
            pass
        assert server.resident() < before + 16 * MIB
    assert witness.read(0, PAGE) == page(1)


def test_writes_that_never_come_hold_no_memory(tmemd: Server) -> None:
    before = tmemd.resident()
    with ExitStack() as stack:
        for _ in range(CROWD):
            client = stack.enter_context(opened(tmemd.address, NAME))
            client.submit(Cmd.WRITE, 0, 8 * MIB, data=b"x" * 100)
        with opened(tmemd.address, NAME) as other:
            other.write(0, page(3))
            assert other.read(0, PAGE) == page(3)
        assert tmemd.resident() < before + CROWD * MIB


def test_who_does_not_read_is_waited_for_within_bounds(tmemd: Server) -> None:
    """Answers of gigabytes are asked for and not taken; the server stops listening, and others are served."""
    with cleared(tmemd) as client:
        client.write(0, run(0, 2048))
    before = tmemd.resident()
    with opened(tmemd.address, NAME) as deaf:
        deaf.sock.settimeout(0.3)
        try:
            for _ in range(4000):
                deaf.submit(Cmd.READ, 0, 8 * MIB)
        except TimeoutError:
            pass
        with opened(tmemd.address, NAME) as other:
            assert other.read(PAGE, PAGE) == page(1)
        assert tmemd.resident() < before + 128 * MIB
    with opened(tmemd.address, NAME) as other:
        assert other.read(2 * PAGE, PAGE) == page(2)


def test_a_client_that_sends_byte_by_byte_is_served(server: Server, witness: Client) -> None:
    with Wire(server.address) as wire:
        for at in range(len(HANDSHAKE)):
            wire.send(HANDSHAKE[at : at + 1])
            if at % 16 == 0:
                assert witness.read(0, PAGE) == page(1)
        wire.structured = True
        assert wire.reply(Opt.STRUCTURED_REPLY).data == b""
        wire.sock.shutdown(socket.SHUT_WR)
        assert wire.rest()


def test_many_connections_at_every_stage(server: Server, witness: Client) -> None:
    descriptors, threads = server.descriptors(), server.threads()
    with ExitStack() as stack:
        for number in range(CROWD):
            wire = stack.enter_context(Wire(server.address))
            wire.send(HANDSHAKE[: number * len(HANDSHAKE) // CROWD])
        clients = [stack.enter_context(opened(server.address, server.name)) for _ in range(CROWD)]
        cookies = [client.submit(Cmd.READ, 0, PAGE) for client in clients]
        for client, cookie in zip(clients, cookies, strict=True):
            assert client.answer(cookie).data == page(1)
    assert witness.read(0, PAGE) == page(1)
    eventually(lambda: server.descriptors() <= descriptors and server.threads() <= threads)


def test_more_connections_than_descriptors_do_not_stop_the_server(tmemd: Server) -> None:
    """A thousand that say nothing: some may be refused; whoever comes when they have gone is served."""
    with ExitStack() as stack:
        for _ in range(900):
            sock = stack.enter_context(connect(tmemd.address))
            sock.setblocking(False)
    with opened(tmemd.address, NAME) as client:
        client.write(0, page(4))
        assert client.read(0, PAGE) == page(4)


def test_noise_instead_of_a_handshake(server: Server, witness: Client) -> None:
    for data in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"\xff" * 100, bytes(10000)):
        with Wire(server.address) as wire:
            wire.send(data)
            wire.sock.shutdown(socket.SHUT_WR)
            wire.rest()
    assert witness.read(0, PAGE) == page(1)
