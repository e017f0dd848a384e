"""The transport in this process: the engine, embedded or attached to an arena. Imports the native part on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tmem._model import errors

if TYPE_CHECKING:
    import os

    import tmem_engine
    from tmem._transport.api import StoreTransport


def open_arena(
    *,
    memory: int,
    arena: str | os.PathLike[str] | None,
    shards: int | None,
    mlock: bool,
    huge_pages: bool,
    accept_threshold: int,
) -> StoreTransport:
    return _engine().open(
        errors=errors,
        memory=memory,
        arena=arena,
        shards=shards,
        mlock=mlock,
        huge_pages=huge_pages,
        accept_threshold=accept_threshold,
    )


def attach_arena(path: str, *, mlock: bool) -> StoreTransport:
    return _engine().attach(path, errors=errors, mlock=mlock)


def _engine() -> type[tmem_engine.Engine]:
    try:
        import tmem_engine
    except ImportError as error:
        raise errors.EngineMissingError(f"the native module tmem_engine cannot be imported: {error}") from error
    return tmem_engine.Engine
