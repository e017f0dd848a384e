"""The HTTP/2 of the SDK's own Exchange connection: what it sends, and what it makes of whatever a peer may send."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmem._protocol.messages import MESSAGE_BYTES, Failure
from tmem._transport.h2 import headers as _hpack
from tmem._transport.h2.framing import Http2Call

DATA, HEADERS, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 5, 6, 7, 8, 9
END_STREAM = ACK = 1
END_HEADERS, PADDED = 4, 8
OK = b"\x88"  # :status 200


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


def message(body: bytes) -> bytes:
    return b"\0" + len(body).to_bytes(4, "big") + body


def trailers(status: int, why: bytes = b"") -> bytes:
    block = _hpack.encode([(b"grpc-status", str(status).encode()), (b"grpc-message", why)])
    return frame(HEADERS, END_HEADERS | END_STREAM, 1, block)


def settings(**values: int) -> bytes:
    names = {"window": 4, "frame": 5}
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", names[name], value) for name, value in values.items()))


def sent(call: Http2Call) -> bytes:
    return b"".join(call.outgoing())


def frames(data: bytes) -> list[tuple[int, int, int, bytes]]:
    found = []
    while data:
        end = 9 + int.from_bytes(data[:3], "big")
        assert len(data) >= end
        found.append((data[3], data[4], int.from_bytes(data[5:9], "big"), data[9:end]))
        data = data[end:]
    return found


@pytest.fixture
def call() -> Http2Call:
    """A call whose opening is sent, on a connection with windows of 64 KiB."""
    call = Http2Call("host:1", "/service/Method", secure=False)
    sent(call)
    return call


def test_it_opens_the_connection_and_the_stream() -> None:
    opening = sent(Http2Call("h" * 253 + ":65535", "/service/Method", secure=True))
    assert opening.startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    first, window, headers = frames(opening[24:])
    assert dict(struct.iter_unpack(">HI", first[3]))[1] == 0, "it keeps no table of headers"
    assert (window[0], window[2]) == (WINDOW, 0)
    assert headers[:3] == (HEADERS, END_HEADERS, 1)
    fields = _hpack.decode(headers[3])
    assert fields[b":authority"] == b"h" * 253 + b":65535"
    assert (fields[b":path"], fields[b":scheme"], fields[b"te"]) == (b"/service/Method", b"https", b"trailers")


def test_a_message_goes_in_frames_that_the_peer_takes(call: Http2Call) -> None:
    body = random.Random(1).randbytes(40_000)
    call.send(b"head", body)
    parts = frames(sent(call))
    assert [len(part[3]) for part in parts] == [16384, 16384, 5 + 4 + 40_000 - 2 * 16384]
    assert b"".join(part[3] for part in parts) == message(b"head" + body)


def test_what_the_peer_has_no_room_for_waits(call: Http2Call) -> None:
    call.send(b"", bytes(100_000))
    assert sum(len(part[3]) for part in frames(sent(call))) == 65535
    assert call.held
    call.receive(frame(WINDOW, 0, 1, struct.pack(">I", 1000)))
    assert sent(call) == b"", "the connection has no room yet"
    call.receive(frame(WINDOW, 0, 0, struct.pack(">I", 900)))
    assert [len(part[3]) for part in frames(sent(call))] == [900]
    call.receive(settings(window=65535 + 99_000, frame=1 << 20) + frame(WINDOW, 0, 0, struct.pack(">I", 1 << 20)))
    acknowledged, rest = frames(sent(call))
    assert acknowledged[:2] == (SETTINGS, ACK)
    assert len(rest[3]) == 100_005 - 65535 - 900
    assert not call.held


def test_a_window_may_become_smaller_than_what_is_on_its_way(call: Http2Call) -> None:
    call.send(b"", bytes(50_000))
    sent(call)
    call.receive(settings(window=10_000))
    call.send(b"", bytes(10))
    assert [part[0] for part in frames(sent(call))] == [SETTINGS]
    call.receive(frame(WINDOW, 0, 1, struct.pack(">I", 50_000)))
    assert [part[0] for part in frames(sent(call))] == [DATA]


@given(st.lists(st.binary(max_size=300), max_size=8), st.randoms(use_true_random=False))
def test_replies_are_read_however_they_are_cut(bodies: list[bytes], dice: random.Random) -> None:
    call = Http2Call("host:1", "/service/Method", secure=False)
    whole, stream = b"".join(map(message, bodies)), settings() + frame(HEADERS, END_HEADERS, 1, OK)
    while whole:
        size, padding = dice.randrange(1, 400), dice.randrange(20)
        data = bytes([padding]) + whole[:size] + bytes(padding)
        stream += frame(DATA, PADDED, 1, data) if dice.random() < 0.5 else frame(DATA, 0, 1, whole[:size])
        stream += frame(dice.choice([WINDOW, 99]), 0, 0, struct.pack(">I", 1))
        whole = whole[size:]
    stream += trailers(7, b"for%20administrators")
    while stream:
        size = dice.randrange(1, 200)
        call.receive(stream[:size])
        stream = stream[size:]
    assert list(call.replies) == bodies
    assert call.over == Failure(7, "for administrators")


def test_pings_are_answered_and_windows_are_given_back(call: Http2Call) -> None:
    call.receive(frame(PING, 0, 0, b"12345678") + frame(PING, ACK, 0, b"12345678"))
    assert frames(sent(call)) == [(PING, ACK, 0, b"12345678")]
    call.receive(frame(HEADERS, END_HEADERS, 1, OK))
    call.receive(frame(DATA, 0, 1, message(bytes(5 << 20))))
    given_back = frames(sent(call))
    assert [(kind, stream) for kind, _, stream, _ in given_back] == [(WINDOW, 0), (WINDOW, 1)]
    assert {int.from_bytes(body, "big") for *_, body in given_back} == {(5 << 20) + 5}
    assert len(call.replies.popleft()) == 5 << 20


def test_headers_may_come_in_several_frames(call: Http2Call) -> None:
    block = _hpack.encode([(b"grpc-status", b"5"), (b"grpc-message", b"no pool")])
    call.receive(frame(HEADERS, END_STREAM, 1, block[:7]) + frame(CONTINUATION, END_HEADERS, 1, block[7:]))
    assert call.over == Failure(5, "no pool")


ENDS = {
    "reset": (frame(RESET, 0, 1, struct.pack(">I", 2)), 13, False),
    "refused": (frame(RESET, 0, 1, struct.pack(">I", 7)), 14, False),
    "ended": (trailers(0), 14, False),
    "not known": (trailers(12), 14, True),
    "going away": (frame(GOAWAY, 0, 0, struct.pack(">II", 0, 0)), 14, False),
    "another protocol": (frame(HEADERS, END_HEADERS, 1, b"\x8d"), 14, True),
    "no status": (frame(HEADERS, END_HEADERS | END_STREAM, 1, OK), 14, True),
    "status in Huffman's code": (frame(HEADERS, 5, 1, b"\x00\x88abcdefgh\x010"), 14, True),
    "ended by data": (frame(DATA, END_STREAM, 1), 14, True),
    "a table": (frame(HEADERS, END_HEADERS, 1, b"\xbe"), 13, False),
    "no headers": (frame(HEADERS, END_HEADERS, 1, b"\x00\x05ab"), 13, False),
    "a long number": (frame(HEADERS, END_HEADERS, 1, b"\xff" * 20), 13, False),
    "a compressed message": (frame(DATA, 0, 1, b"\1\0\0\0\0"), 13, False),
    "a long message": (frame(DATA, 0, 1, b"\0" + struct.pack(">I", MESSAGE_BYTES + 1)), 13, False),
    "data of another stream": (frame(DATA, 0, 3, b"\0"), 13, False),
    "a long frame": (frame(99, 0, 0, bytes(16385)), 13, False),
    "padding": (frame(DATA, PADDED, 1, b"\x05abc"), 13, False),
    "padding of headers": (frame(HEADERS, PADDED | END_HEADERS, 1, b"\x05abc"), 13, False),
    "headers that are cut off": (frame(HEADERS, 0, 1, OK) + frame(PING, 0, 0, bytes(8)), 13, False),
    "a lone continuation": (frame(CONTINUATION, END_HEADERS, 1, OK), 13, False),
    "headers without end": (frame(HEADERS, 0, 1) + frame(CONTINUATION, 0, 1, bytes(16384)) * 5, 13, False),
    "a push": (frame(PUSH, END_HEADERS, 1, bytes(4)), 13, False),
    "odd settings": (frame(SETTINGS, 0, 0, bytes(5)), 13, False),
    "odd window": (frame(WINDOW, 0, 1, bytes(3)), 13, False),
}


@pytest.mark.parametrize("name", ENDS)
def test_what_ends_a_call(call: Http2Call, name: str) -> None:
    given_, code, unfit = ENDS[name]
    call.send(b"", bytes(100_000))
    call.receive(given_)
    assert call.over is not None
    assert (call.over.code, call.unfit) == (code, unfit)
    assert not any(kind == DATA for kind, *_ in frames(sent(call)))
    call.receive(trailers(0))
    assert call.over.code == code, "the first reason stands"


def test_a_peer_that_leaves_ends_what_it_has(call: Http2Call) -> None:
    call.receive(frame(GOAWAY, 0, 0, struct.pack(">II", 2**31 - 1, 0)) + frame(DATA, 0, 1, message(b"reply")))
    assert (call.leaving, call.over, list(call.replies)) == (True, None, [b"reply"])


@given(st.binary(max_size=2000))
def test_no_bytes_do_harm(data: bytes) -> None:
    call = Http2Call("host:1", "/service/Method", secure=False)
    call.send(b"", bytes(1000))
    call.receive(data)
    sent(call)


@given(st.lists(st.tuples(st.sampled_from(range(11)), st.integers(0, 255), st.integers(0, 3), st.binary(max_size=50))))
def test_no_frames_do_harm(given_: list[tuple[int, int, int, bytes]]) -> None:
    call = Http2Call("host:1", "/service/Method", secure=False)
    call.receive(b"".join(frame(*each) for each in given_))
    sent(call)


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=20), st.binary(max_size=400)), unique_by=lambda pair: pair[0]))
def test_headers_read_as_they_were_written(fields: list[tuple[bytes, bytes]]) -> None:
    assert _hpack.decode(_hpack.encode(fields)) == dict(fields)


def test_headers_of_every_form() -> None:
    block = (
        b"\x3f\xe1\x1f" + OK + b"\x5f\x10application/grpc" + b"\x1f\x10\x02ab" + b"\x40\x01a\x01b" + b"\x10\x01c\x00"
    )
    assert _hpack.decode(block) == {b":status": b"200", b"": b"ab", b"a": b"b", b"c": b""}
