"""Every command, alone and in a crowd, against a plain copy of what the disk must hold."""

from __future__ import annotations

import queue
import random
import threading
from typing import TYPE_CHECKING

import pytest

from tests.block.conftest import cleared
from tests.block.lib.handshake import Wire, opened
from tests.block.lib.protocol import HOLE, LARGEST, ZERO, Can, Cmd, Err, Flag
from tests.block.lib.servers import LARGE, LARGE_SIZE, NAME, SIZE
from tests.lib.support import noise, page, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.block.lib.client import Answer, Client
    from tests.block.lib.servers import Server

PAGE = 4096
STEPS = 400
PLACES = [(0, 1), (1, 1), (0, PAGE), (1, PAGE), (PAGE - 1, 2), (511, 513), (100, 3 * PAGE), (SIZE - 9000, 9000)]
FAR = 1 << 64
BEYOND = [
    (SIZE, 1),
    (SIZE - 1, 2),
    (SIZE + 1, PAGE),
    (0, SIZE + 1),
    (1 << 63, PAGE),
    (FAR - 1, 1),
    (FAR - PAGE, 2 * PAGE),
]


@pytest.fixture(params=["tmemd", "blocks", "nbdkit"])
def server(request: pytest.FixtureRequest) -> Server:
    """Each server in turn; ours with pages of 4 KiB, and with blocks of 64."""
    running: Server = request.getfixturevalue(request.param)
    return running


@pytest.fixture(params=["structured", "simple"])
def either(request: pytest.FixtureRequest, server: Server) -> Iterator[Client]:
    """A client of the empty disk, with and without structured replies."""
    with opened(server.address, server.name, structured=request.param == "structured") as connected:
        connected.do(Cmd.TRIM, 0, SIZE)
        yield connected


def test_an_empty_disk_reads_as_zeros(either: Client) -> None:
    assert either.read(0, SIZE) == bytes(SIZE)


@pytest.mark.parametrize(("offset", "length"), PLACES)
@pytest.mark.parametrize("flags", [Flag.NONE, Flag.FUA])
def test_what_is_written_is_read_and_nothing_beside_it(either: Client, offset: int, length: int, flags: Flag) -> None:
    start, end = max(offset - 5000, 0), min(offset + length + 5000, SIZE)
    either.write(start, noise(1) * ((end - start) // PAGE))
    before = bytearray(either.read(start, end - start))
    data = (page(2) * 5)[:length]
    either.write(offset, data, flags)
    before[offset - start : offset - start + length] = data
    assert either.read(start, end - start) == bytes(before)
    assert either.read(offset, length) == data


@pytest.mark.parametrize(("offset", "length"), PLACES)
@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        (Cmd.TRIM, Flag.NONE),
        (Cmd.TRIM, Flag.FUA),
        (Cmd.WRITE_ZEROES, Flag.NONE),
        (Cmd.WRITE_ZEROES, Flag.NO_HOLE),
        (Cmd.WRITE_ZEROES, Flag.FUA | Flag.NO_HOLE),
    ],
)
def test_zeroes(client: Client, kind: Cmd, flags: Flag, offset: int, length: int) -> None:
    start, end = max(offset - 5000, 0), min(offset + length + 5000, SIZE)
    before = bytearray((page(3) * (1 + (end - start) // PAGE))[: end - start])
    client.write(start, bytes(before))
    client.do(kind, offset, length, flags)
    before[offset - start : offset - start + length] = bytes(length)
    assert client.read(start, end - start) == bytes(before)


def test_fast_zeroes_are_done_or_refused_at_once(client: Client) -> None:
    client.write(0, page(4) * 4)
    flag = Flag.FAST_ZERO
    answer = client.command(Cmd.WRITE_ZEROES, 0, 4 * PAGE, flag)
    if Can.FAST_ZERO not in client.export.can:
        assert answer.error == Err.INVAL
        return
    assert answer.error in (Err.OK, Err.NOTSUP)
    assert client.read(0, 4 * PAGE) == (page(4) * 4 if answer.error else bytes(4 * PAGE))


def test_flush_and_cache(either: Client) -> None:
    either.write(0, page(5))
    either.do(Cmd.FLUSH)
    if Can.CACHE in either.export.can:
        either.do(Cmd.CACHE, 0, SIZE)
        either.do(Cmd.CACHE, 17, 3)
    assert either.read(0, PAGE) == page(5)


def test_the_whole_disk_at_once(client: Client) -> None:
    data = run(0, SIZE // PAGE // 2) * 2
    client.write(0, data)
    assert client.read(0, SIZE) == data
    assert client.read(3, SIZE - 3) == data[3:]


def test_the_largest_requests(tmemd: Server) -> None:
    data = run(0, LARGEST // PAGE // 8) * 8
    with opened(tmemd.address, LARGE) as client:
        client.write(5, data)
        assert client.read(5, LARGEST) == data
        client.do(Cmd.WRITE_ZEROES, 0, LARGE_SIZE)
        assert client.command(Cmd.READ, 0, LARGEST).data == bytes(LARGEST)


@pytest.mark.parametrize("kind", [Cmd.READ, Cmd.TRIM, Cmd.WRITE_ZEROES, Cmd.CACHE, Cmd.BLOCK_STATUS])
@pytest.mark.parametrize(("offset", "length"), BEYOND)
def test_what_is_beyond_the_end_is_refused(client: Client, kind: Cmd, offset: int, length: int) -> None:
    client.write(SIZE - PAGE, page(6))
    if kind == Cmd.CACHE and Can.CACHE not in client.export.can:
        pytest.skip("this server does not know CACHE")
    assert client.command(kind, offset, length).error in (Err.INVAL, Err.NOSPC)
    assert client.read(SIZE - PAGE, PAGE) == page(6)


@pytest.mark.parametrize("offset", [SIZE, SIZE - PAGE + 1, 1 << 63, (1 << 64) - 1])
def test_a_write_beyond_the_end_is_refused_and_its_data_are_skipped(client: Client, offset: int) -> None:
    client.write(SIZE - PAGE, page(7))
    assert client.command(Cmd.WRITE, offset, PAGE, data=page(8)).error in (Err.NOSPC, Err.INVAL)
    assert client.read(SIZE - PAGE, PAGE) == page(7)


@pytest.mark.parametrize("kind", [8, 9, 255, 65535])
def test_a_command_that_nobody_knows_is_refused(client: Client, kind: int) -> None:
    assert client.command(kind, 0, 0).error == Err.INVAL
    assert len(client.read(0, PAGE)) == PAGE


@pytest.mark.parametrize("kind", [Cmd.READ, Cmd.WRITE, Cmd.TRIM, Cmd.WRITE_ZEROES, Cmd.FLUSH, Cmd.BLOCK_STATUS])
@pytest.mark.parametrize("flags", [1 << 5, 1 << 15, 0xFFE0])
def test_flags_that_nobody_knows_are_refused(client: Client, kind: Cmd, flags: int) -> None:
    client.write(0, page(9))
    data = page(10) if kind == Cmd.WRITE else b""
    length = 0 if kind == Cmd.FLUSH else PAGE
    assert client.command(kind, 0, length, flags, data).error == Err.INVAL
    assert client.read(0, PAGE) == page(9)


@pytest.mark.parametrize(
    ("kind", "flag"),
    [
        (Cmd.READ, Flag.NO_HOLE),
        (Cmd.READ, Flag.REQ_ONE),
        (Cmd.WRITE, Flag.NO_HOLE),
        (Cmd.WRITE, Flag.DF),
        (Cmd.TRIM, Flag.NO_HOLE),
        (Cmd.TRIM, Flag.REQ_ONE),
        (Cmd.WRITE_ZEROES, Flag.DF),
        (Cmd.BLOCK_STATUS, Flag.NO_HOLE),
    ],
)
def test_flags_of_other_commands_are_refused_or_mean_nothing(client: Client, kind: Cmd, flag: Flag) -> None:
    data = page(10) if kind == Cmd.WRITE else b""
    assert client.command(kind, 0, PAGE, flag, data).error in (Err.INVAL, Err.OK)
    assert len(client.read(0, PAGE)) == PAGE


@pytest.mark.parametrize("kind", [Cmd.READ, Cmd.WRITE, Cmd.TRIM, Cmd.WRITE_ZEROES, Cmd.CACHE])
def test_a_command_of_no_length_is_answered(tmemd: Server, kind: Cmd) -> None:
    with opened(tmemd.address, NAME) as client:
        assert client.command(kind, 0, 0).error in (Err.OK, Err.INVAL)
        assert len(client.read(0, PAGE)) == PAGE


def test_a_status_of_no_length_is_refused(tmemd: Server) -> None:
    with opened(tmemd.address, NAME) as client:
        assert client.command(Cmd.BLOCK_STATUS, 0, 0).error == Err.INVAL


@pytest.mark.parametrize("length", [LARGEST + 1, 1 << 30, (1 << 32) - 1])
def test_a_read_of_more_than_the_limit_is_refused(tmemd: Server, length: int) -> None:
    with opened(tmemd.address, NAME) as client:
        assert client.command(Cmd.READ, 0, length).error in (Err.INVAL, Err.OVERFLOW, Err.NOMEM)
        assert len(client.read(0, PAGE)) == PAGE


@pytest.mark.parametrize("flag", [Flag.NONE, Flag.DF])
def test_a_read_in_one_piece(client: Client, flag: Flag) -> None:
    client.write(PAGE, page(11))
    client.write(3 * PAGE, page(12))
    expected = bytes(PAGE) + page(11) + bytes(PAGE) + page(12) + bytes(PAGE)
    assert client.read(0, 5 * PAGE, flag) == expected
    assert client.read(1, 5 * PAGE - 2, flag) == expected[1:-1]


def test_holes_are_not_sent(tmemd: Server) -> None:
    with cleared(tmemd) as client:
        client.write(1 << 20, page(13))
        answer = client.command(Cmd.READ, 0, SIZE)
        assert answer.data == bytes(1 << 20) + page(13) + bytes(SIZE - (1 << 20) - PAGE)
        assert sum(length for _, length in answer.holes) == SIZE - PAGE


def test_flags_of_structured_replies_need_them(server: Server) -> None:
    with Wire(server.address) as wire, wire.begin().go(server.name) as client:
        assert Can.DF not in client.export.can
        assert client.command(Cmd.READ, 0, PAGE, Flag.DF).error == Err.INVAL
        assert client.command(Cmd.BLOCK_STATUS, 0, PAGE).error == Err.INVAL
        assert len(client.read(0, PAGE)) == PAGE


def test_status_without_its_context_is_refused(server: Server) -> None:
    with opened(server.address, server.name, contexts=()) as client:
        assert client.command(Cmd.BLOCK_STATUS, 0, PAGE).error == Err.INVAL


def test_status_tells_holes_from_data(client: Client) -> None:
    client.write(2 << 20, noise(14) * 16)
    states = _states(client, 0, SIZE)
    assert states.count(0) >= 16
    assert states[512:528] == [0] * 16
    assert states[0] == states[-1] == HOLE | ZERO
    client.do(Cmd.TRIM, 2 << 20, 16 * PAGE)
    assert _states(client, 0, SIZE) == [HOLE | ZERO] * (SIZE // PAGE)


def test_our_status_is_exact_to_a_page(tmemd: Server) -> None:
    with cleared(tmemd) as client:
        for index in (1, 2, 5, 100, 101, 103):
            client.write(index * PAGE, page(index))
        assert [at for at, state in enumerate(_states(client, 0, SIZE)) if not state] == [1, 2, 5, 100, 101, 103]
        assert client.extents(PAGE + 7, 3 * PAGE, Flag.REQ_ONE) == [(2 * PAGE - 7, 0)]
        assert client.extents(5 * PAGE, PAGE)[0] == (PAGE, 0)


def _states(client: Client, offset: int, length: int) -> list[int]:
    """The state of every page, by as many questions as it takes."""
    states: list[int] = []
    while length:
        for extent, state in client.extents(offset, length):
            used = min(extent, length)
            assert used % PAGE == 0
            states += [state] * (used // PAGE)
            offset, length = offset + used, length - used
    return states


@pytest.mark.parametrize("seed", [1, 2])
def test_any_sequence_does_to_the_disk_what_it_does_to_a_copy(
    client: Client, disk: Callable[[], Client], seed: int
) -> None:
    """Two connections by turns: what one was told is done, the other sees."""
    dice, copy = random.Random(seed), bytearray(SIZE)
    with disk() as other:
        for step in range(STEPS):
            who = dice.choice((client, other))
            _one_step(dice, who, copy, step)
        assert client.read(0, SIZE) == bytes(copy)
    for index, state in enumerate(_states(client, 0, SIZE)):
        if state & ZERO:
            assert not any(copy[index * PAGE : (index + 1) * PAGE]), (seed, index)


def _one_step(dice: random.Random, client: Client, copy: bytearray, step: int) -> None:
    length = dice.choice((1, 511, 512, PAGE, PAGE, PAGE + 1, 3 * PAGE, dice.randrange(1, 100_000)))
    offset = dice.choice((0, dice.randrange(SIZE - length), dice.randrange((SIZE - length) // PAGE) * PAGE))
    match dice.choice((Cmd.READ, Cmd.READ, Cmd.WRITE, Cmd.WRITE, Cmd.TRIM, Cmd.WRITE_ZEROES)):
        case Cmd.READ:
            assert client.read(offset, length, dice.choice((0, Flag.DF))) == bytes(copy[offset : offset + length])
        case Cmd.WRITE:
            data = (dice.choice((page(step), noise(step), bytes(PAGE))) * (1 + length // PAGE))[:length]
            client.write(offset, data, dice.choice((0, Flag.FUA)))
            copy[offset : offset + length] = data
        case Cmd.TRIM:
            client.do(Cmd.TRIM, offset, length)
            copy[offset : offset + length] = client.read(offset, length)
        case Cmd.WRITE_ZEROES:
            client.do(Cmd.WRITE_ZEROES, offset, length, dice.choice((0, Flag.NO_HOLE)))
            copy[offset : offset + length] = bytes(length)


def test_many_commands_in_flight(client: Client) -> None:
    """Written and read back in any order, with more on the way than either side holds in a buffer."""
    pages = list(range(2000))
    random.Random(3).shuffle(pages)
    for _, answer in _crowd(client, ((Cmd.WRITE, index) for index in pages)):
        assert answer.error == Err.OK
    for index, answer in _crowd(client, ((Cmd.READ, index) for index in pages)):
        assert answer.data == page(index)


def _crowd(client: Client, commands: Iterable[tuple[Cmd, int]]) -> Iterator[tuple[int, Answer]]:
    """Commands on pages, sent as fast as the server takes them while their answers are read."""
    cookies: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()

    def send() -> None:
        for kind, index in commands:
            data = page(index) if kind == Cmd.WRITE else b""
            cookies.put((index, client.submit(kind, index * PAGE, PAGE, data=data)))
        cookies.put(None)

    sender = threading.Thread(target=send)
    sender.start()
    while (sent := cookies.get()) is not None:
        yield sent[0], client.answer(sent[1])
    sender.join()


def test_a_goodbye_waits_for_what_was_asked_before(tmemd: Server) -> None:
    client = cleared(tmemd)
    for index in range(50):
        client.submit(Cmd.WRITE, index * PAGE, PAGE, data=page(index))
    assert {answer.error for answer in client.part()} == {Err.OK}
    with opened(tmemd.address, NAME) as again:
        assert again.read(0, 50 * PAGE) == run(0, 50)
