"""Stores and pools to test with. A store is checked for consistency when its test is over."""

import itertools
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

import tmem
from tmem._model.settings import Allocator, Kind

SETTINGS = list(itertools.product(("persistent", "ephemeral"), ("lz4", "lz4hc", "zstd", "raw"), ("zsmalloc", "zbud")))

# A busy machine is slow, not wrong.
settings.register_profile("tmem", deadline=None)
settings.load_profile("tmem")

# A proxy of the environment, as Docker sets one, is none for the servers that tests start.
os.environ["no_proxy"] = "127.0.0.1,localhost,::1"

# A shell has what it runs in the background ignore interrupts, and nohup hang-ups; so would every process of a test.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def store() -> Iterator[tmem.Store]:
    """A private store of 32 MiB."""
    with tmem.open(memory="32MiB") as store:
        yield store
        assert store.closed or store.check() == []


@pytest.fixture(params=SETTINGS, ids="-".join)
def any_pool(request: pytest.FixtureRequest, store: tmem.Store) -> tmem.Pool:
    """A pool of every kind, codec and allocator, whose gets keep the page."""
    kind, codec, allocator = request.param
    return store.pool("any", kind=kind, codec=codec, allocator=allocator, inclusive=kind == "ephemeral")


@pytest.fixture(params=["zsmalloc", "zbud"])
def persistent(request: pytest.FixtureRequest, store: tmem.Store) -> tmem.Pool:
    """A persistent pool with each allocator."""
    allocator: Allocator = request.param
    return store.pool("persistent", kind="persistent", allocator=allocator)


@pytest.fixture(params=["zsmalloc", "zbud"])
def ephemeral(request: pytest.FixtureRequest, store: tmem.Store) -> tmem.Pool:
    """A private ephemeral pool with each allocator: its gets take the page out."""
    allocator: Allocator = request.param
    return store.pool("ephemeral", kind="ephemeral", allocator=allocator)


@pytest.fixture(params=["persistent", "ephemeral"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind of pool."""
    kind: Kind = request.param
    return kind


@pytest.fixture
def arena(tmp_path: Path) -> Path:
    """Where an arena can be made; there is none yet."""
    return tmp_path / "arena"


@dataclass
class Tmpfs:
    """A mounted tmpfs."""

    path: Path

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.path], check=True)


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Tmpfs]:
    """A tmpfs of 8 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a tmpfs")
    path = tmp_path / "small"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(path)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
    try:
        yield Tmpfs(path)
    finally:
        subprocess.run(["umount", "-l", path], check=True)
