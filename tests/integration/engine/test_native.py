"""The native module by itself: what it promises to the SDK and the daemon."""

import gc
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tmem
import tmem_engine
from tests.lib.support import PAGE, page
from tmem._model import errors
from tmem._model.settings import PoolSettings

RESERVE = 4 << 20
SETTINGS = PoolSettings(
    kind="persistent",
    codec="lz4",
    allocator="zsmalloc",
    page_size=PAGE,
    quota=0,
    weight=1,
    shared=False,
    inclusive=False,
    max_zpage=0,
    owner="",
)


def errors_of(error: type[Exception]) -> Any:
    """What an opener hands over, with one class for everything."""
    return SimpleNamespace(
        ClosedError=error,
        MismatchError=error,
        UnknownPoolError=error,
        ExhaustedError=error,
        ArenaError=error,
        CorruptPageError=error,
        UnavailableError=error,
        InternalError=error,
    )


def engine() -> tmem_engine.Engine:
    return tmem_engine.Engine.open(errors=errors, memory=4 << 20, accept_threshold=90)


def test_a_panic_is_an_error_that_the_store_outlives(capfd: pytest.CaptureFixture[str]) -> None:
    native = engine()
    pool = native.pool("swap0", SETTINGS)
    pool.put(1, {7: page(7)})
    with pytest.raises(tmem.InternalError, match="on purpose"):
        native._panic("on purpose")
    assert "on purpose" in capfd.readouterr().err
    assert pool.get(1, [7]) == {7: page(7)}


def test_the_opener_names_the_exceptions() -> None:
    class OwnError(Exception): ...

    own = errors_of(OwnError)
    native = tmem_engine.Engine.open(errors=own, memory=4 << 20, accept_threshold=90)
    native.close()
    with pytest.raises(OwnError, match="the store is closed"):
        native.stats()


def test_exceptions_that_are_not_named_are_missed_at_once() -> None:
    nothing: Any = object()
    with pytest.raises(AttributeError, match="ClosedError"):
        tmem_engine.Engine.open(errors=nothing, memory=4 << 20, accept_threshold=90)


def test_the_classes_cannot_be_made_or_changed() -> None:
    with pytest.raises(TypeError):
        tmem_engine.Engine()
    with pytest.raises(TypeError):
        tmem_engine.EnginePool()
    with pytest.raises((AttributeError, TypeError)):
        engine().pool("swap0", SETTINGS).put = None  # type: ignore[assignment, method-assign]


def test_a_put_takes_a_dict_and_answers_codes_in_its_order() -> None:
    pool = engine().pool("swap0", SETTINGS)
    assert pool.put(1, {7: page(7)}) == b"\1"
    assert pool.put(1, {9: page(9), 7: page(8)}) == b"\1\2"
    pool.freeze()
    assert pool.put(1, {8: page(8), 7: page(7)}) == b"\5\x15"


def test_buffers_are_let_go_when_a_call_fails() -> None:
    pool = engine().pool("swap0", SETTINGS)
    buffer = bytearray(PAGE + 1)
    for call in (
        lambda: pool.put(1, {7: buffer}),
        lambda: pool.put_range(1, 7, buffer),
        lambda: pool.get_range(1, 7, 1, buffer),
    ):
        with pytest.raises(ValueError, match="4097"):
            call()
        buffer.append(0)
        buffer.pop()


def test_an_engine_lets_go_of_all_it_held() -> None:
    class OwnError(Exception): ...

    own = errors_of(OwnError)
    native = tmem_engine.Engine.open(errors=own, memory=4 << 20, accept_threshold=90)
    pools = [native.pool("swap0", SETTINGS) for _ in range(100)]
    gone = weakref.ref(OwnError)
    del native, pools, own, OwnError
    gc.collect()
    assert gone() is None


def test_a_reserve_survives_a_killed_process(arena: Path) -> None:
    script = f"""
import os, signal, tmem_engine
from tests.integration.engine.test_native import SETTINGS, RESERVE
from tmem._model import errors
engine = tmem_engine.Engine.open(errors=errors, memory=8 << 20, accept_threshold=90, arena={str(arena)!r})
pool = engine.pool("swap0", SETTINGS)
pool.set_reserve(RESERVE)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    native = tmem_engine.Engine.attach(arena, errors=errors)
    pool = native.find_pool("swap0")
    assert pool is not None
    assert pool.reserve() == RESERVE
    assert pool.stats()["promised_bytes"] >= RESERVE
    with pytest.raises(tmem.ExhaustedError, match=f"{8 << 20} bytes of memory"):
        native.pool("swap1", SETTINGS).set_reserve(2 * RESERVE)
