"""Contract of every client: a child that is forked at any moment uses its store, and its parent goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.lib.daemon import daemon
from tests.lib.support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

# The parent's threads are in calls of every kind; each child uses what it inherited, and what it makes itself.
_BUSY = """
import faulthandler, itertools, multiprocessing, os, sys, threading, tmem
address, children = sys.argv[1], int(sys.argv[2])
store = tmem.connect(address)
pool, dense = store.pool("forks"), store.pool("dense", codec="zstd")
page, started, ended, failed = bytes(range(256)) * 16, threading.Barrier(6), threading.Event(), []

def work(number, call):
    started.wait()
    try:
        while not ended.is_set():
            call(number)
    except BaseException as error:
        failed.append(error)
        raise

calls = [
    lambda number: pool.put(number, {0: page}),
    lambda number: pool.put(number, dict.fromkeys(range(300), page)),
    lambda number: dense.put(number, dict.fromkeys(range(300), page)),
    lambda number: store.pools(),
    lambda number: pool.get(number, [0]),
]
threads = [threading.Thread(target=work, args=each, daemon=True) for each in enumerate(calls)]

def child(number):
    faulthandler.dump_traceback_later(100, exit=True)
    assert pool.put(number, {0: page, 1: page})[0]
    assert pool.get(number, [0, 1, 2]) == {0: page, 1: page}
    assert dense.put_range(number, 0, page * 300).all_stored
    assert {"forks", "dense"} <= {pool.name for pool in store.pools()}
    with tmem.connect(address) as own:
        assert own.pool("forks").get(number, [1]) == {1: page}
    faulthandler.cancel_dump_traceback_later()

for thread in threads:
    thread.start()
started.wait()
for number in range(100, 100 + children):
    process = os.fork()
    if process == 0:
        try:
            child(number)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert status == 0, f"child {number} ended with {status}"
    assert pool.get(number, [0]) == {0: page}
forked = multiprocessing.get_context("fork").Process(target=child, args=(99,))
forked.start()
forked.join()
ended.set()
for thread in threads:
    thread.join()
assert (forked.exitcode, failed) == (0, [])
store.close()
"""

# A child that can never use gRPC says so at once, and may still end.
_WATCHED = """
import faulthandler, os, sys, threading, tmem
store = tmem.connect(sys.argv[1])
pool = store.pool("forks")
events = store.events()
process = os.fork()
if process == 0:
    faulthandler.dump_traceback_later(60, exit=True)
    try:
        assert pool.put(1, {0: bytes(4096)})[0].stored
    except tmem.TmemError as error:
        assert "fork" in str(error)
    store.close()
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
assert pool.put(2, {0: bytes(4096)})[0].stored
store.pool("another")
assert next(events).pool in ("forks", "another")
"""

# The child closes what it inherited without a word to the server, and the parent's connection lives.
_CLOSED = """
import os, sys, tmem
store = tmem.connect(sys.argv[1])
pool = store.pool("forks")
pool.put(1, {0: bytes(4096)})
for _ in range(3):
    process = os.fork()
    if process == 0:
        store.close()
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    pool.put(1, {0: bytes(4096)})
assert store.client_stats().failed_calls == 0
"""

# In a child of an event loop neither what it inherited nor what it makes can be used, and both say so.
_ASYNC = """
import asyncio, faulthandler, os, sys, tmem.aio
store = tmem.aio.connect(sys.argv[1])

async def use(store):
    pool = await store.pool("forks")
    return await pool.put(1, {0: bytes(4096)})

def child():
    faulthandler.dump_traceback_later(60, exit=True)
    for used in (store, tmem.aio.connect(sys.argv[1])):
        try:
            asyncio.run(use(used))
        except (tmem.TmemError, RuntimeError) as error:
            assert "parent" in str(error) or "fork" in str(error), error
        asyncio.run(used.close())

async def main():
    await use(store)
    for _ in range(6):
        process = os.fork()
        if process == 0:
            try:
                child()
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        status = os.waitstatus_to_exitcode((await asyncio.to_thread(os.waitpid, process, 0))[1])
        assert status == 0, f"the child ended with {status}"
        assert "GRPC_ENABLE_FORK_SUPPORT" not in os.environ
    await use(store)
    await store.close()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with daemon("--memory", "64MiB") as running:
        yield running.address


def _run(script: str, *arguments: str, **environment: str) -> str:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, *arguments]
    ended = subprocess.run(
        command,
        env={**os.environ, "GRPC_VERBOSITY": "NONE", **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


@pytest.mark.parametrize("transport", ["", "grpc"])
def test_a_child_forked_while_other_threads_are_in_calls(server: str, transport: str) -> None:
    said = _run(_BUSY, server, "12", TMEM_TRANSPORT=transport, GRPC_VERBOSITY="INFO")
    # What gRPC says of a fork with a thread in a call: the child shares the epoll set of its parent, and may crash.
    assert "skipping fork" not in said


@pytest.mark.parametrize("script", [_WATCHED, _CLOSED, _ASYNC], ids=["watched", "closed", "async"])
def test_a_child_uses_it_or_says_why_not(server: str, script: str) -> None:
    _run(script, server)
