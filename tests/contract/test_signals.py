"""Contract of every client: an exception from a signal handler, at any moment of any call, costs that call alone."""

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

# A timer breaks calls off; what a broken put would have written must never be seen once a later one has answered.
_STORY = """
import faulthandler, random, signal, sys, time, tmem
address, kind, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])

class Interrupt({"exception": Exception, "interrupt": KeyboardInterrupt}[kind]):
    pass

armed = False

def interrupt(number, frame):
    # The kernel may give a signal to another thread, and that one runs when the timer is stopped already.
    if armed:
        raise Interrupt

def page(number):
    return number.to_bytes(8, "big") * 512

faulthandler.dump_traceback_later(150, exit=True)
dice, number, broken = random.Random(7), 0, 0
signal.signal(signal.SIGALRM, interrupt)
store = tmem.connect(address)
pool, dense = store.pool("signals"), store.pool("dense", codec="zstd")
calls = [
    lambda: pool.put(1, {0: page(number)}),
    lambda: pool.put_range(1, 0, page(number) * 300),
    lambda: dense.put_range(1, 0, page(number) * 300),
    lambda: pool.get(1, [0], exclusive=True),
    lambda: pool.flush(1, [0]),
    lambda: store.find_pool("signals"),
    lambda: store.pools(),
]
for turn in range(rounds):
    number += 1
    call = calls[turn % len(calls)]
    begun = time.perf_counter()
    call()
    usual = time.perf_counter() - begun
    number += 1
    try:
        try:
            # Once, and in every other round again and again: then also what cleans up after the first is broken off.
            delay = dice.uniform(0.00001, usual)
            armed = True
            signal.setitimer(signal.ITIMER_REAL, delay, turn % 2 and max(usual / 20, 0.0001))
            call()
        finally:
            armed = False
    except Interrupt:
        armed = False
        broken += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    number += 1
    for used in (pool, dense):
        assert used.put(1, {0: page(number)})[0].stored
        assert used.get(1, [0]) == {0: page(number)}, turn
time.sleep(0.2)  # for what might land late
for used in (pool, dense):
    assert used.get(1, [0]) == {0: page(number)}
assert broken > rounds // 10, broken
store.close()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with daemon("--memory", "64MiB") as running:
        yield running.address


@pytest.mark.parametrize(("kind", "transport"), [("interrupt", ""), ("exception", "grpc")])
def test_a_call_interrupted_by_a_signal_leaves_the_store_intact(server: str, kind: str, transport: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _STORY, server, kind, "210"],
        env={**os.environ, "TMEM_TRANSPORT": transport},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
