"""The handshake, option by option, well said and badly. After an option that is wrong the next is heard."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from tests.block.lib.handshake import Reply, Wire, info_query, meta_query
from tests.block.lib.protocol import ALLOCATION, FIXED, LONGEST_NAME, NO_ZEROES, Can, Cmd, Err, Info, Opt, Rep
from tests.block.lib.servers import NAME, SIZE
from tests.block.lib.stream import EndedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.block.lib.servers import Server

INVALID = {Rep.ERR_INVALID}
MALFORMED = {
    "empty": b"",
    "half a length": b"\0\0",
    "a name longer than the data": struct.pack(">I", 100) + b"disk\0\0",
    "a name of 4 GiB": struct.pack(">I", 0xFFFFFFFF) + b"disk\0\0",
    "no count": struct.pack(">I", 4) + b"disk",
    "half a count": struct.pack(">I", 4) + b"disk\0",
    "more wanted than sent": struct.pack(">I", 4) + b"disk" + struct.pack(">HH", 2, 3),
    "fewer wanted than sent": struct.pack(">I", 4) + b"disk" + struct.pack(">HHH", 1, 3, 3),
    "65535 wanted": struct.pack(">I", 4) + b"disk" + struct.pack(">HH", 65535, 3),
}
MALFORMED_CONTEXTS = {
    "empty": b"",
    "no count": struct.pack(">I", 4) + b"disk",
    "a name longer than the data": struct.pack(">I", 100) + b"disk" + bytes(4),
    "more queries than sent": meta_query(NAME, ALLOCATION)[:8] + struct.pack(">I", 2) + b"\0\0\0\x01x",
    "2**32 - 1 queries": meta_query(NAME)[:8] + struct.pack(">I", 0xFFFFFFFF) + b"\0\0\0\x01x",
    "a query longer than the data": meta_query(NAME)[:8] + struct.pack(">II", 1, 0xFFFFFFFF) + b"x",
}


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    with Wire(server.address) as wire:
        yield wire.begin()


def goes_on(wire: Wire) -> None:
    """The handshake works as if nothing had been said."""
    with wire.go(NAME) as client:
        assert client.export.size == SIZE
        assert len(client.read(0, 4096)) == 4096
        client.part()


def test_the_greeting_offers_both_flags(server: Server) -> None:
    with Wire(server.address) as wire:
        assert wire.flags == FIXED | NO_ZEROES


@pytest.mark.parametrize("flags", [4, 1 << 31, 0xFFFFFFFF])
def test_flags_that_nobody_knows_end_the_connection(server: Server, flags: int) -> None:
    with Wire(server.address) as wire:
        wire.begin(flags)
        assert wire.rest() == b""


@pytest.mark.parametrize("flags", [FIXED, FIXED | NO_ZEROES])
def test_export_name(server: Server, flags: int) -> None:
    with Wire(server.address) as wire, wire.begin(flags).export_name(NAME) as client:
        assert client.export.size == SIZE
        assert client.read(0, 512) is not None
        client.part()


def test_export_name_after_structured_replies(wire: Wire) -> None:
    wire.use_structured()
    with wire.export_name(NAME) as client:
        assert len(client.read(1, 5000)) == 5000


def test_an_export_that_there_is_not_ends_export_name(tmemd: Server) -> None:
    with Wire(tmemd.address) as wire:
        wire.begin().ask(Opt.EXPORT_NAME, b"nothing")
        assert wire.rest() == b""


def test_list_names_the_export(wire: Wire, server: Server) -> None:
    names = wire.names()
    assert server.kind == "nbdkit" or NAME in names
    goes_on(wire)


def test_list_takes_no_data(wire: Wire) -> None:
    assert wire.refused(Opt.LIST, b"x") in INVALID
    goes_on(wire)


@pytest.mark.parametrize("option", [Opt.INFO, Opt.GO])
@pytest.mark.parametrize(
    "wanted", [(), (Info.BLOCK_SIZE,), (Info.NAME, Info.DESCRIPTION), (9, 65535), tuple(range(300))]
)
def test_the_export_is_described(wire: Wire, option: Opt, wanted: tuple[int, ...]) -> None:
    export = wire.describe(option, NAME, *wanted)
    assert export.size == SIZE
    assert Can.FLUSH | Can.FUA | Can.TRIM | Can.WRITE_ZEROES | Can.MULTI_CONN in export.can
    assert Can.READ_ONLY not in export.can
    if option == Opt.INFO:
        goes_on(wire)


def test_ours_does_all_that_there_is(tmemd: Server) -> None:
    with Wire(tmemd.address) as wire:
        wire.begin().use_structured()
        export = wire.describe(Opt.INFO, NAME, Info.BLOCK_SIZE, Info.NAME)
    assert Can.CACHE | Can.DF in export.can
    assert not export.can & (Can.ROTATIONAL | Can.RESIZE | Can.READ_ONLY)
    assert export.texts.get(Info.NAME, NAME) == NAME
    assert export.blocks is not None
    assert export.blocks[0] == 1
    assert export.blocks[1] == 4096
    assert export.blocks[2] >= 32 << 20


@pytest.mark.parametrize("option", [Opt.INFO, Opt.GO])
def test_an_unknown_export_is_refused_and_another_may_be_asked_for(tmemd: Server, option: Opt) -> None:
    with Wire(tmemd.address) as wire:
        wire.begin()
        for name in ("nothing", "disk\0", "DISK", "disk/", "../disk"):
            assert wire.refused(option, info_query(name)) == Rep.ERR_UNKNOWN
        goes_on(wire)


@pytest.mark.parametrize("option", [Opt.INFO, Opt.GO])
@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_query_is_refused(wire: Wire, option: Opt, data: bytes) -> None:
    assert wire.refused(option, data) in INVALID
    goes_on(wire)


@pytest.mark.parametrize("option", [Opt.INFO, Opt.GO])
@pytest.mark.parametrize("name", [b"x" * (LONGEST_NAME + 1), b"x" * 60000, b"\xff\xfe", b"a\xc3"])
def test_a_name_that_cannot_be_is_refused(tmemd: Server, option: Opt, name: bytes) -> None:
    with Wire(tmemd.address) as wire:
        refused = wire.begin().refused(option, info_query(name))
        assert refused in {Rep.ERR_INVALID, Rep.ERR_TOO_BIG, Rep.ERR_UNKNOWN}
        goes_on(wire)


def test_abort_is_acknowledged_and_ends(wire: Wire) -> None:
    assert wire.option(Opt.ABORT) == [Reply(Rep.ACK, b"")]
    assert wire.rest() == b""


def test_no_tls_where_there_is_none(wire: Wire) -> None:
    assert wire.refused(Opt.STARTTLS) in {Rep.ERR_POLICY, Rep.ERR_UNSUP, Rep.ERR_PLATFORM}
    goes_on(wire)


@pytest.mark.parametrize("option", [Opt.STARTTLS, Opt.STRUCTURED_REPLY])
def test_options_without_data_take_none(wire: Wire, option: Opt) -> None:
    assert wire.refused(option, b"data") >= Rep.ERR_UNSUP
    goes_on(wire)


@pytest.mark.parametrize("option", [0, 4, Opt.EXTENDED_HEADERS, 12, 1 << 31, 0xFFFFFFFF])
@pytest.mark.parametrize("size", [0, 1, 4096, 60000])
def test_an_option_that_nobody_knows_is_refused(wire: Wire, option: int, size: int) -> None:
    assert wire.refused(option, bytes(size)) == Rep.ERR_UNSUP
    goes_on(wire)


@pytest.mark.parametrize("length", [1 << 30, (1 << 32) - 1])
@pytest.mark.parametrize("option", [1, Opt.LIST, Opt.GO, Opt.SET_META_CONTEXT, 99])
def test_an_option_of_gigabytes_is_not_waited_for(server: Server, option: int, length: int) -> None:
    before = server.resident()
    with Wire(server.address) as wire:
        wire.begin().ask(option, b"x" * 10, length=length)
        wire.sock.shutdown(1)
        wire.rest()
        assert server.resident() < before + (16 << 20)


@pytest.mark.parametrize("magic", [0, 0x49484156454F5055, (1 << 64) - 1])
def test_a_wrong_magic_ends_the_connection(wire: Wire, magic: int) -> None:
    wire.ask(Opt.LIST, magic=magic)
    assert wire.rest() == b""


def test_contexts_need_structured_replies(wire: Wire) -> None:
    assert wire.refused(Opt.SET_META_CONTEXT, meta_query(NAME, ALLOCATION)) in INVALID
    goes_on(wire)


@pytest.mark.parametrize("option", [Opt.LIST_META_CONTEXT, Opt.SET_META_CONTEXT])
@pytest.mark.parametrize("data", MALFORMED_CONTEXTS.values(), ids=MALFORMED_CONTEXTS.keys())
def test_a_malformed_query_of_contexts_is_refused(wire: Wire, option: Opt, data: bytes) -> None:
    wire.use_structured()
    assert wire.refused(option, data) in INVALID | {Rep.ERR_TOO_BIG}
    goes_on(wire)


@pytest.mark.parametrize("option", [Opt.LIST_META_CONTEXT, Opt.SET_META_CONTEXT])
def test_a_query_of_contexts_with_more_than_it_says_is_refused(tmemd: Server, option: Opt) -> None:
    with Wire(tmemd.address) as wire:
        wire.begin().use_structured()
        assert wire.refused(option, meta_query(NAME) + b"\0\0\0\x01x") in INVALID
        goes_on(wire)


def test_contexts_are_listed(wire: Wire) -> None:
    wire.use_structured()
    assert ALLOCATION in wire.meta(Opt.LIST_META_CONTEXT, NAME)
    assert ALLOCATION in wire.meta(Opt.LIST_META_CONTEXT, NAME, "base:")
    assert set(wire.meta(Opt.LIST_META_CONTEXT, NAME, ALLOCATION)) == {ALLOCATION}
    assert wire.meta(Opt.LIST_META_CONTEXT, NAME, "nobody:knows", "base:nothing") == {}
    goes_on(wire)


def test_contexts_are_set_by_the_last_who_asks(wire: Wire) -> None:
    wire.use_structured()
    assert set(wire.meta(Opt.SET_META_CONTEXT, NAME, ALLOCATION, "x:y")) == {ALLOCATION}
    assert wire.meta(Opt.SET_META_CONTEXT, NAME, "x:y") == {}
    with wire.go(NAME) as client:
        assert client.command(Cmd.BLOCK_STATUS, 0, 4096).error == Err.INVAL


def test_no_query_sets_nothing(wire: Wire) -> None:
    wire.use_structured()
    assert wire.meta(Opt.SET_META_CONTEXT, NAME) == {}
    goes_on(wire)


def test_contexts_are_of_the_export_that_they_were_set_for(tmemd: Server) -> None:
    with Wire(tmemd.address) as wire:
        wire.begin().use_structured()
        refused = wire.option(Opt.SET_META_CONTEXT, meta_query("nothing", ALLOCATION))
        assert refused[-1].kind == Rep.ERR_UNKNOWN
        with wire.go(NAME) as client:
            assert client.command(Cmd.BLOCK_STATUS, 0, 4096).error == Err.INVAL


def test_a_failed_go_leaves_the_contexts_alone(wire: Wire) -> None:
    wire.use_structured().meta(Opt.SET_META_CONTEXT, NAME, ALLOCATION)
    assert wire.refused(Opt.GO, b"\0\0\0\1") in INVALID
    with wire.go(NAME) as client:
        assert sum(length for length, _ in client.extents(0, SIZE)) == SIZE


def test_options_after_each_other_in_one_write(server: Server) -> None:
    with Wire(server.address) as wire:
        one = struct.pack(">QII", int.from_bytes(b"IHAVEOPT", "big"), 77, 3) + b"abc"
        wire.send(struct.pack(">I", FIXED | NO_ZEROES) + one * 20)
        for _ in range(20):
            assert wire.reply(77).kind == Rep.ERR_UNSUP
        goes_on(wire)


def test_a_handshake_cannot_go_on_for_ever(tmemd: Server) -> None:
    """Whoever only ever asks is sent away or at least costs no memory."""
    before = tmemd.resident()
    with Wire(tmemd.address) as wire:
        wire.begin()
        try:
            for _ in range(5000):
                assert wire.refused(77, bytes(100)) == Rep.ERR_UNSUP
        except EndedError:
            pass
        assert tmemd.resident() < before + (8 << 20)
