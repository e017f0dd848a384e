"""The asynchronous client's stream where several things happen in one turn of the loop."""

from __future__ import annotations

import asyncio
from typing import Any

from grpc.aio import EOF

from tmem._transport.aio_exchange import _Stream
from tmem_proto.v1 import tmem_pb2 as pb


class Call:
    """A stream whose replies the test gives."""

    def __init__(self) -> None:
        self.replies: asyncio.Queue[Any] = asyncio.Queue()

    async def read(self) -> Any:
        return await self.replies.get()

    async def write(self, command: bytes) -> None:
        assert command

    async def done_writing(self) -> None:
        await self.replies.put(EOF)

    def cancel(self) -> None:
        self.replies.put_nowait(EOF)


def test_a_reply_that_comes_as_the_time_is_over_is_the_answer() -> None:
    async def story() -> list[dict[str, Any]]:
        wrong: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: wrong.append(context))
        call = Call()
        stream = _Stream(call, timeout=60)
        asked = asyncio.create_task(stream.exchange("Flush", pb.FlushRequest()))
        await asyncio.sleep(0)
        (number, waiting), *_ = stream._waiting.items()
        waiting.set_result(pb.Reply(id=number, flush=pb.FlushResponse(found=3)))
        stream._late(number)
        assert (await asked).found == 3
        assert not stream.over
        call.replies.put_nowait(EOF)
        await asyncio.gather(*stream._tasks)
        return wrong

    assert asyncio.run(story()) == []
