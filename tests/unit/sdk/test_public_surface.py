"""What users may rely on, and nothing else."""

import importlib.metadata
import inspect
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import tmem
import tmem_engine
import tmemd

ROOT = Path(__file__).parents[3]

SURFACE = {
    "ArenaError",
    "CachedFile",
    "Cleancache",
    "ClientStats",
    "ClosedError",
    "CorruptPageError",
    "DeniedError",
    "EngineMissingError",
    "ExhaustedError",
    "FileStats",
    "Frontswap",
    "InternalError",
    "LostPageError",
    "MismatchError",
    "Outcome",
    "Outcomes",
    "Pool",
    "Store",
    "Tls",
    "TmemError",
    "UnavailableError",
    "UnknownExportError",
    "UnknownPoolError",
    "connect",
    "oid",
    "open",
    "open_cached",
}
STORE = {
    "arena",
    "check",
    "client_stats",
    "clients",
    "close",
    "closed",
    "compact",
    "events",
    "find_pool",
    "memory",
    "pool",
    "pools",
    "relinquish",
} | {
    "resize",
    "stats",
    "workers",
    "exports",
    "create_export",
    "remove_export",
    "resize_export",
    "drain_export",
    "allow_export",
}
POOL = {"destroy", "flush", "flush_object", "freeze", "frozen", "get", "get_range", "has", "name", "page_size"} | {
    "put",
    "put_lz4",
    "put_range",
    "quota",
    "settings",
    "stats",
    "thaw",
    "weight",
}


def public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def test_the_surface_is_flat_and_exactly_this() -> None:
    assert set(tmem.__all__) == SURFACE
    assert {name for name in public(tmem) if not isinstance(getattr(tmem, name), types.ModuleType)} == SURFACE


def test_every_module_but_aio_is_private() -> None:
    modules = {path.stem for path in (ROOT / "client" / "tmem").glob("*.py")}
    assert {name for name in modules if not name.startswith("_")} == {"aio"}


def test_store_and_pool_have_these_members() -> None:
    assert public(tmem.Store) == STORE
    assert public(tmem.Pool) == POOL


def test_whatever_is_public_is_documented() -> None:
    members = [getattr(owner, name) for owner in (tmem.Store, tmem.Pool, tmem.Outcomes) for name in public(owner)]
    named = [getattr(tmem, name) for name in tmem.__all__]
    inherited = {"count", "index"}
    missing = [thing for thing in members + named if not inspect.getdoc(thing)]
    assert [thing for thing in missing if getattr(thing, "__name__", "") not in inherited | {"first"}] == []


def test_settings_are_keywords_only() -> None:
    for function, positional in ((tmem.open, 0), (tmem.connect, 1), (tmem.Store.pool, 2), (tmem.open_cached, 1)):
        kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
        assert kinds[positional:] == [inspect.Parameter.KEYWORD_ONLY] * (len(kinds) - positional)


def test_every_error_is_a_tmem_error() -> None:
    errors = [getattr(tmem, name) for name in tmem.__all__ if name.endswith("Error")]
    assert all(issubclass(error, tmem.TmemError) for error in errors)


def test_the_tree_drawn_in_errors_is_the_tree() -> None:
    from tmem._model import errors as _errors

    drawn = {line.split()[1] for line in (_errors.__doc__ or "").splitlines() if line.startswith(("├", "└"))}
    assert drawn == {name for name in SURFACE if name.endswith("Error")} - {"TmemError"}


def test_the_version_is_that_of_the_workspace() -> None:
    workspace = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    packages = {tmem.__version__, tmemd.__version__, tmem_engine.__version__}
    assert packages == {workspace} == {importlib.metadata.version("tmem")}


def test_the_sdk_works_up_to_the_engine_without_the_native_part() -> None:
    script = """
import sys
sys.modules["tmem_engine"] = None
import tmem
try:
    tmem.open()
except tmem.EngineMissingError as error:
    assert isinstance(error, ImportError) and "tmem_engine" in str(error)
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_importing_the_sdk_does_not_load_the_engine() -> None:
    script = "import sys, tmem; raise SystemExit('tmem_engine' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
