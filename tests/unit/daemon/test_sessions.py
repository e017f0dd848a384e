"""Sessions of the daemon: which one ends where there are too many, and what is kept of exclusive gets."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from tmemd.base.errors import LimitError, UnknownSessionError
from tmemd.config.settings import Config
from tmemd.rpc.sessions import MOST_HELD, ExclusiveGet, Sessions
from tmemd.security.identity import Client
from tmemd.telemetry.counters import Counts

if TYPE_CHECKING:
    from tmemd.store.api import StorePool

ALICE, BOB = Client("alice", False), Client("bob", False)
POOL = cast("StorePool", object())
OID = bytes(24)


def sessions(**settings: Any) -> Sessions:
    return Sessions(Config(**settings), Counts())


def is_there(all_of_them: Sessions, number: int, client: Client) -> bool:
    try:
        all_of_them.find(number, client)
    except UnknownSessionError:
        return False
    return True


def test_the_longest_unused_of_the_client_with_the_most_gives_way() -> None:
    known = sessions(max_sessions=3)
    of_bob, *of_alice = (known.open(client, POOL).id for client in (BOB, ALICE, ALICE))
    assert is_there(known, of_alice[0], ALICE)  # used: the other one is now the longest unused
    known.open(ALICE, POOL)
    assert is_there(known, of_bob, BOB)
    assert is_there(known, of_alice[0], ALICE)
    assert not is_there(known, of_alice[1], ALICE)
    assert known.by_client() == {"alice": 2, "bob": 1}


def test_a_session_whose_mutation_is_at_work_stays() -> None:
    async def check() -> None:
        known = sessions(max_sessions=1, session_idle=1)
        busy = known.open(ALICE, POOL)
        work = asyncio.get_running_loop().create_future()
        busy.track(work)
        busy.used_at -= 10
        with pytest.raises(LimitError, match="1 sessions are open"):
            known.open(BOB, POOL)
        assert is_there(known, busy.id, ALICE)
        work.set_result(None)
        await asyncio.sleep(0)
        known.open(BOB, POOL)
        assert not is_there(known, busy.id, ALICE)

    asyncio.run(check())


def test_idle_sessions_end() -> None:
    known = sessions(session_idle=5)
    idle, used = known.open(ALICE, POOL), known.open(ALICE, POOL)
    idle.used_at -= 6
    known.open(ALICE, POOL)
    assert not is_there(known, idle.id, ALICE)
    assert is_there(known, used.id, ALICE)


def test_a_session_keeps_so_many_exclusive_gets() -> None:
    session = sessions(max_unacknowledged=2).open(ALICE, POOL)
    numbers = [session.await_acknowledgement(ExclusiveGet(OID, {index: 1})) for index in range(3)]
    assert [session.release(number) is not None for number in numbers] == [False, True, True]
    assert session.release(numbers[1]) is None


def test_all_sessions_together_keep_so_many_pages_of_exclusive_gets() -> None:
    known = sessions(max_unacknowledged=1)
    taken = ExclusiveGet(OID, dict.fromkeys(range(256), 1))
    fit = MOST_HELD // 256
    found = [
        (session, session.await_acknowledgement(taken)) for session in (known.open(ALICE, POOL) for _ in range(fit + 1))
    ]
    assert [session.release(number) is not None for session, number in found] == [False] + [True] * fit


def test_what_an_ended_session_kept_makes_room() -> None:
    known = sessions(max_unacknowledged=1, max_sessions=1)
    taken = ExclusiveGet(OID, dict.fromkeys(range(256), 1))
    for _ in range(2 * MOST_HELD // 256):
        known.open(ALICE, POOL).await_acknowledgement(taken)
    last = known.open(ALICE, POOL)
    assert last.release(last.await_acknowledgement(taken)) is taken
