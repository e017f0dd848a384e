"""The folder tree is the layer diagram: who may import whom among our Python packages, read from the sources."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = {"tmem", "tmem_main", "tmemd", "tmem_engine", "tmem_proto", "tests"}
SOURCES = {
    "tmem": ROOT / "client" / "tmem",
    "tmem_main": ROOT / "client" / "tmem_main",
    "tmemd": ROOT / "server" / "tmemd",
    "tmem_engine": ROOT / "server" / "engine" / "python" / "tmem_engine",
    "tmem_proto": ROOT / "proto" / "tmem_proto",
}
MAY_IMPORT = {
    "tmem": {"tmem", "tmem_proto", "tmem_engine"},
    "tmem_main": {"tmem", "tmem_main"},
    "tmemd": {"tmemd", "tmem_proto", "tmem_engine"},
    "tmem_engine": {"tmem_engine"},
    "tmem_proto": {"tmem_proto"},
}
# The files that may import the engine: the SDK's shm and embedded transport, its codec and its SAN gateway, and the
# daemon's store.
ENGINE_USERS = {"tmem/_local.py", "tmem/_codec.py", "tmem/_san.py", "tmemd/store.py"}
# Modules that Windows does not have: the SDK may use them inside functions only.
POSIX_ONLY = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty", "uvloop"}
# Inside the daemon: cli -> daemon -> {service, admin, metrics} -> surface, of which store and null are the two kinds;
# with workers cli -> supervisor -> child, whose process is worker -> daemon. config, counts and errors are leaves.
DAEMON_LAYERS = {
    "polling": set(),
    "cli": {"early", "polling", "descriptors", "supervisor", "daemon", "config", "errors", "logs", "notify", "room"}
    | {"sole", "store", "streams"},
    "supervisor": {"child", "shared_arena", "sole", "metrics", "store", "surface", "workers", "config", "counts"}
    | {"control", "early", "errors", "logs", "notify", "relay", "reload", "signals", "values"},
    "child": {"control", "workers", "counts", "errors", "logs"},
    "worker": {
        "polling",
        "daemon",
        "control",
        "relay",
        "workers",
        "config",
        "counts",
        "early",
        "errors",
        "logs",
        "signals",
        "values",
    },
    "daemon": {"service", "admin", "channelz", "metrics", "parts", "access", "sessions", "identity", "tls", "inject"}
    | {
        "exports",
        "steady",
        "store",
        "null",
        "upkeep",
        "watch",
        "workers",
        "surface",
        "allocator",
        "methods",
        "signals",
        "sole",
        "locks",
        "config",
        "counts",
        "values",
    }
    | {"early", "errors", "logs", "notify", "reasons", "reload"},
    "parts": {"access", "sessions", "identity", "inject", "locks", "surface", "config", "counts"},
    "channelz": {"calls", "identity", "parts"},
    "service": {
        "access",
        "catalogue",
        "parts",
        "sessions",
        "wire",
        "calls",
        "methods",
        "identity",
        "surface",
        "cost",
        "idle",
        "errors",
    },
    "admin": {
        "catalogue",
        "parts",
        "config",
        "exports",
        "roster",
        "wire",
        "calls",
        "methods",
        "identity",
        "surface",
        "watch",
        "workers",
        "errors",
    },
    "upkeep": {"surface", "errors", "logs"},
    "watch": {"catalogue", "counts", "events", "identity", "workers", "surface", "config", "errors", "logs"},
    "events": set(),
    "access": {"catalogue", "clients", "identity", "sole", "surface", "errors"},
    "roster": {"clients", "config", "surface", "errors"},
    "clients": {"values"},
    "metrics": {"exposition", "families", "tls", "surface", "config", "counts", "values", "errors"},
    "exposition": {"logs"},
    "families": {"surface", "errors"},
    "sessions": {"identity", "surface", "config", "counts", "errors"},
    "wire": {"inject", "methods", "surface", "errors"},
    "methods": set(),
    "steady": {"errors"},
    "cost": {"surface"},
    "allocator": set(),
    "calls": {"methods", "identity", "inject", "locks", "counts", "errors", "logs"},
    "identity": {"clients", "config", "values", "errors"},
    "tls": {"surface", "config", "errors", "reasons", "trusted"},
    "store": {"catalogue", "clients", "surface", "threads", "config", "errors", "logs"},
    "null": {"surface", "threads", "config", "errors"},
    "surface": set(),
    "shared_arena": set(),
    "locks": {"surface", "errors", "logs"},
    "sole": {"errors", "logs"},
    "descriptors": {"config", "errors", "logs"},
    "workers": {"counts"},
    "control": set(),
    "signals": {"early"},
    "early": set(),
    "logs": {"streams"},
    "streams": set(),
    "reasons": {"values"},
    "trusted": set(),
    "room": {"config", "errors"},
    "reload": {"config", "errors", "logs", "notify", "surface"},
    "threads": {"errors", "logs"},
    "config": {"clients", "inject", "logs", "reasons", "trusted", "values", "errors"},
    "inject": {"errors"},
    "counts": {"surface"},
    "catalogue": {"clients", "surface", "errors", "logs"},
    "exports": {"catalogue", "snapshots", "surface", "errors", "logs"},
    "snapshots": {"catalogue", "surface", "wire", "errors"},
    "relay": {"calls", "child", "control", "errors"},
    "values": set(),
    "errors": set(),
    "notify": {"logs"},
    "probe": {"health_call"},
    "health_call": set(),
}


def imports(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Every module imported, with its statement; `from a import b` is both `a` and `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            yield node.module or "", node
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def files(package: str) -> list[Path]:
    return sorted(path for path in SOURCES[package].rglob("*.py*") if path.suffix in {".py", ".pyi"})


def sources() -> list[tuple[str, Path]]:
    return [(package, path) for package in SOURCES for path in files(package)]


@pytest.mark.parametrize(("package", "path"), sources(), ids=lambda value: getattr(value, "stem", value))
def test_packages_import_only_what_lies_below(package: str, path: Path) -> None:
    tops = {name.partition(".")[0] for name, _ in imports(ast.parse(path.read_text()))}
    assert tops & OURS <= MAY_IMPORT[package]


@pytest.mark.parametrize(("package", "path"), sources(), ids=lambda value: getattr(value, "stem", value))
def test_only_the_named_files_import_the_engine(package: str, path: Path) -> None:
    tops = {name.partition(".")[0] for name, _ in imports(ast.parse(path.read_text()))}
    allowed = package == "tmem_engine" or f"{package}/{path.name}" in ENGINE_USERS
    assert allowed or "tmem_engine" not in tops


def test_only_the_command_imports_what_the_extra_cli_brings() -> None:
    for path in files("tmem"):
        names = {name for name, _ in imports(ast.parse(path.read_text()))}
        inside = path.parent.name == "cli"
        assert inside or not any(name.startswith("tmem.cli") for name in names), path.name
        assert inside or not {name.partition(".")[0] for name in names} & {"click", "rich"}, path.name


def test_the_sdk_imports_the_engine_inside_functions_only() -> None:
    for path in files("tmem"):
        if path.suffix != ".py":
            continue
        tree = ast.parse(path.read_text())
        typing_only = [
            node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        ]
        lazy = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        inside = {child for node in typing_only + lazy for child in ast.walk(node)}
        for name, statement in imports(tree):
            assert name.partition(".")[0] != "tmem_engine" or statement in inside, f"{path.name}:{statement.lineno}"


def test_the_daemon_keeps_its_layers() -> None:
    for path in files("tmemd"):
        allowed = DAEMON_LAYERS.get(path.stem)
        if allowed is None:
            continue
        used = {name.split(".")[1] for name, _ in imports(ast.parse(path.read_text())) if name.startswith("tmemd.")}
        assert used & DAEMON_LAYERS.keys() <= allowed, path.name


def test_the_sdk_can_be_imported_on_any_system() -> None:
    for path in files("tmem"):
        tree = ast.parse(path.read_text())
        lazy = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        inside = {child for node in lazy for child in ast.walk(node)}
        for name, statement in imports(tree):
            assert name not in POSIX_ONLY or statement in inside, f"{path.name}:{statement.lineno}"
