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
ENGINE_USERS = {"tmem/local.py", "tmem/codec.py", "tmem/san.py", "tmemd/engine_store.py"}
# Modules that Windows does not have: the SDK may use them inside functions only.
POSIX_ONLY = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty", "uvloop"}


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
        inside = "cli" in path.parts
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


def test_the_sdk_can_be_imported_on_any_system() -> None:
    for path in files("tmem"):
        tree = ast.parse(path.read_text())
        lazy = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        inside = {child for node in lazy for child in ast.walk(node)}
        for name, statement in imports(tree):
            assert name not in POSIX_ONLY or statement in inside, f"{path.name}:{statement.lineno}"
