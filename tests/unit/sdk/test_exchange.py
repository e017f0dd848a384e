"""Commands of a stream, without any stream."""

from __future__ import annotations

from typing import Any

import pytest

from tmem._protocol import exchange
from tmem._protocol.messages import Failure
from tmem_proto.v1 import tmem_pb2 as pb

SESSION = pb.Session(id=2**63 - 1, epoch=2)
REQUESTS: list[tuple[str, str, Any]] = [
    ("Put", "put", pb.PutRequest(session=SESSION, oid=b"o" * 24, indices=[7], pages=bytes(100_000))),
    ("Get", "get", pb.GetRequest(session=SESSION, oid=b"o" * 24, indices=range(256))),
    ("Flush", "flush", pb.FlushRequest(session=SESSION, oid=b"o" * 24, indices=[2**32 - 1])),
    ("FlushObject", "flush_object", pb.FlushObjectRequest()),
    ("Has", "has", pb.HasRequest(session=SESSION, count=65536)),
]


@pytest.mark.parametrize(("method", "field", "request_"), REQUESTS, ids=[name for name, _, _ in REQUESTS])
@pytest.mark.parametrize("number", [1, 127, 128, 2**32, 2**64 - 1])
def test_a_command_reads_as_the_message_does(method: str, field: str, request_: Any, number: int) -> None:
    written = exchange.command(number, method, request_)
    assert pb.Command.FromString(written) == pb.Command(id=number, **{field: request_})


def test_what_goes_as_a_command() -> None:
    assert all(exchange.suits(method, request) for method, _, request in REQUESTS)
    assert not exchange.suits("Get", pb.GetRequest(exclusive=True))
    assert not exchange.suits("Acknowledge", pb.AcknowledgeRequest())
    assert not exchange.suits("Stats", None)


def test_replies() -> None:
    assert exchange.answer(pb.Reply(flush=pb.FlushResponse(found=3)), "Flush").found == 3
    assert exchange.answer(pb.Reply(code=5, error="no session"), "Put") == Failure(5, "no session")


@pytest.mark.parametrize("reply", [pb.Reply(), pb.Reply(put=pb.PutResponse())])
def test_a_reply_to_something_else_is_a_failure(reply: pb.Reply) -> None:
    assert exchange.answer(reply, "Get").code == 13


@pytest.mark.parametrize(("code", "meant"), [(13, 14), (2, 14), (1, 14), (14, 14), (12, 12), (16, 16), (8, 8)])
def test_a_stream_that_broke_is_a_server_out_of_reach(code: int, meant: int) -> None:
    assert exchange.broken(Failure(code, "why")) == Failure(meant, "why")
