"""Batches cost no page faults, on either side: what messages freed is used again."""

import os
import resource
from collections.abc import Callable
from pathlib import Path

import tmem
from tests.lib.daemon import daemon

CALLS = 40
SHRINKS_TO = 2600
MOST_FAULTS = 20  # a call; without care for the allocator it is 60 to 420


def test_batches_do_not_fault_their_memory_in_anew() -> None:

    pages = {index: os.urandom(SHRINKS_TO) + bytes(4096 - SHRINKS_TO) for index in range(64)}
    with daemon() as running, tmem.connect(running.address) as store:
        pool = store.pool("p")
        for call in (lambda: pool.put(1, pages), lambda: pool.get(1, pages)):
            _repeat(call)
            before = _faults(running.process.pid)
            _repeat(call)
            mine, its = (after - then for after, then in zip(_faults(running.process.pid), before, strict=True))
            assert its < CALLS * MOST_FAULTS
            assert mine < CALLS * MOST_FAULTS


def _repeat(call: Callable[[], object]) -> None:
    for _ in range(CALLS):
        call()


def _faults(pid: int) -> tuple[int, int]:
    """Minor page faults of this process and of another, so far."""
    its = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt, its
