"""The measuring tools measure what they say: all processes of a server, its arena, in turn; nothing stays behind."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest

from bench.lib import process
from bench.lib.servers import Server
from bench.rpc.pages import Pages
from bench.rpc.turns import better, in_turn, ratio
from tests.lib.support import PATIENCE

MIB = 1 << 20
# Says when it is done, and waits: 32 MiB of memory and 0.2 s of processor time in a grandchild.
BUSY = """
import os, sys, time
if os.fork() == 0:
    kept = os.urandom(32 << 20)
    while time.process_time() < 0.2: pass
    print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def family() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        yield parent.pid
        assert parent.stdin is not None
        parent.stdin.close()


def test_a_server_is_charged_for_the_processes_below_it(family: int) -> None:
    assert len(process.family(family)) == 2
    assert process.cpu_seconds(family) >= 0.2
    assert 32 * MIB < process.resident_bytes(family) < 64 * MIB


def test_an_arena_counts_with_all_that_its_file_holds(tmp_path: Path) -> None:
    arena = tmp_path / "arena"
    without = process.resident_bytes(os.getpid())
    arena.write_bytes(bytes(64 * MIB))
    assert process.resident_bytes(os.getpid(), arena) - without > 32 * MIB  # what else this process has may come and go


def test_everybody_has_the_first_turn_as_often() -> None:
    order: list[str] = []
    runs = {name: partial(order.append, name) for name in ("ours", "theirs")}
    in_turn(runs, 4)
    assert order == ["ours", "theirs", "theirs", "ours"] * 2


def test_a_ratio_is_the_median_of_the_pairs_and_the_peer_the_better_one() -> None:
    assert ratio([1.0, 8.0, 30.0], [1.0, 4.0, 10.0]) == 2.0
    assert better({"a": [1, 9, 1], "b": [2, 2, 2]}, more_is_better=True) == "b"
    assert better({"a": [1, 9, 1], "b": [2, 2, 2]}, more_is_better=False) == "a"


def test_pages_of_later_rounds_are_all_different() -> None:
    pages = Pages("two", bytes(2 * 4096))
    assert pages.page(0) == pages.page(1) == bytes(4096)
    assert len({pages.page(number) for number in range(2, 12)}) == 10


class Sleeper(Server):
    name: ClassVar[str] = "sleeper"
    program: ClassVar[str] = sys.executable
    client: ClassVar[str] = "tests"

    def command(self) -> list[str]:
        return [sys.executable, "-c", f"{BUSY.replace('sys.stdin.read()', 'time.sleep(60)')}"]

    def _ready(self) -> bool:
        return "ready" in self.said()


def test_nothing_of_a_server_outlives_its_block() -> None:
    members: list[int] = []

    def interrupted() -> None:
        with Sleeper() as server:
            members.extend(process.family(server.pid))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(members) == 2
    deadline = time.monotonic() + PATIENCE
    while any(_alive(pid) for pid in members):
        assert time.monotonic() < deadline


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
