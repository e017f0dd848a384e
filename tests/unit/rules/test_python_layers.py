"""The folders are the layers: who may import whom among our Python files, read from every import of the sources.

A folder has **floors**, listed from the ground up, and a floor has one **room** or several: folders, or files by name;
`.` is all files that are not named. A file may import from its own room and from the floors below; rooms of one floor
do not see each other. Imports for types alone and inside functions count as well.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
HOUSES = {
    "tmem_proto": ROOT / "proto/tmem_proto",
    "tmem_engine": ROOT / "server/engine/python/tmem_engine",
    "tmem": ROOT / "client/tmem",
    "tmem_main": ROOT / "client/tmem_main",
    "tmemd": ROOT / "server/tmemd",
    "bench": ROOT / "bench",
}
MAY_SEE = {
    "tmem_proto": set[str](),
    "tmem_engine": set[str](),
    "tmem": {"tmem_proto", "tmem_engine"},
    "tmem_main": {"tmem"},
    "tmemd": {"tmem_proto", "tmem_engine"},
    "bench": {"tmem", "tmem_proto", "tmem_engine"},
}
# Lower floors first.
FLOORS: dict[str, list[set[str]]] = {
    "tmem": [
        {"_model"},
        {"_runtime"},
        {"_protocol"},
        {"_transport"},
        {"_pool"},
        {"_store"},
        {"_open"},
        {"_files", "adapters", "aio"},
        {"cli"},
    ],
    "tmem._transport": [{"."}, {"h2", "aio_exchange"}, {"runner", "aio_runner"}, {"grpc"}],
    "tmem.cli": [{"base"}, {"archive"}, {"commands"}, {"app"}, {"__main__"}],
    "tmemd": [
        {"base"},
        {"config"},
        {"store"},
        {"messages"},
        {"security", "exports", "process"},
        {"telemetry"},
        {"rpc"},
        {"workers"},
        {"app"},
        {"__main__", "probe"},
    ],
    "tmemd.rpc": [{"."}, {"admin"}],
    "tmem_proto": [{"v1"}, {"."}],
    "bench": [{"lib"}, {"engine", "files", "rpc"}, {"block"}, {"demo"}],
    "bench.rpc": [{"."}, {"figures"}, {"__main__"}],
    "bench.block": [{"."}, {"san"}, {"figures"}, {"__main__"}],
}
MOST_FILES = 12


@cache
def files(house: str) -> dict[str, Path]:
    """Our modules of a house by their dotted names."""
    found = {}
    for path in sorted(HOUSES[house].rglob("*.py")):
        parts = path.relative_to(HOUSES[house].parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room(folder: str, module: str) -> str | None:
    """The room of a folder in which a module stands; None for the folder itself and for what stands elsewhere."""
    if not module.startswith(f"{folder}."):
        return None
    name = module.removeprefix(f"{folder}.").partition(".")[0]
    named = set().union(*FLOORS[folder])
    is_file = f"{folder}.{name}" == module and files(folder.partition(".")[0])[module].name != "__init__.py"
    return "." if is_file and name not in named and "." in named else name


@cache
def imports(house: str, module: str) -> frozenset[str]:
    """Every module that a file imports anywhere, also for types alone; of ours as exactly as it can be told."""
    return frozenset(_imports(ast.parse(files(house)[module].read_text())))


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        yield from _of(node)


def _of(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports hide the layer"
        yield from (_exact(node.module or "", alias.name) for alias in node.names)


def _exact(module: str, name: str) -> str:
    house = module.partition(".")[0]
    full = f"{module}.{name}"
    return full if house in HOUSES and full in files(house) else module


MODULES = [(house, module) for house in HOUSES for module in files(house)]


@pytest.mark.parametrize(("house", "module"), MODULES, ids=[module for _, module in MODULES])
def test_a_house_sees_only_those_below(house: str, module: str) -> None:
    seen = {name.partition(".")[0] for name in imports(house, module)} & {*HOUSES, "tests", "bench"}
    assert seen - {house} <= MAY_SEE[house]


@pytest.mark.parametrize("folder", FLOORS)
def test_every_room_is_listed(folder: str) -> None:
    found = {room(folder, module) for module in files(folder.partition(".")[0])} - {None}
    assert found == set().union(*FLOORS[folder])


@pytest.mark.parametrize("house", HOUSES)
def test_a_folder_in_a_room_has_floors_too(house: str) -> None:
    packages = [module for module, path in files(house).items() if path.name == "__init__.py" and module != house]
    holders = {module.rpartition(".")[0] for module in packages}
    assert holders <= FLOORS.keys()


@pytest.mark.parametrize("folder", FLOORS)
def test_a_room_sees_only_the_floors_below(folder: str) -> None:
    house = folder.partition(".")[0]
    floor_of = {name: floor for floor, rooms in enumerate(FLOORS[folder]) for name in rooms}
    wrong = [
        f"{module} imports {name}"
        for module in files(house)
        if (own := room(folder, module)) is not None
        for name in imports(house, module) & files(house).keys()
        if (other := room(folder, name)) is not None and own != other and floor_of[other] >= floor_of[own]
    ]
    assert wrong == []


@pytest.mark.parametrize("house", HOUSES)
def test_no_files_import_each_other_in_a_circle(house: str) -> None:
    left = {module: imports(house, module) & files(house).keys() - {house} for module in files(house)}
    while free := {module for module, names in left.items() if not names & left.keys()}:
        left = {module: names for module, names in left.items() if module not in free}
    assert {module: sorted(names & left.keys()) for module, names in left.items()} == {}


@pytest.mark.parametrize("house", HOUSES)
def test_a_folder_fits_one_glance(house: str) -> None:
    folders = {path.parent for path in files(house).values()}
    sizes = {folder: sum(path.name != "__init__.py" for path in folder.glob("*.py")) for folder in folders}
    assert [folder for folder, size in sizes.items() if size > MOST_FILES] == []


# The SDK's embedded transport, its codec and its gateway, and the daemon's store.
ENGINE_USERS = {"tmem._transport.local", "tmem._protocol.codec", "tmem.adapters.san", "tmemd.store.engine_store"}
# Modules that Windows does not have: the SDK may use them inside functions only.
POSIX_ONLY = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty", "uvloop"}


def test_only_the_named_files_import_the_engine() -> None:
    users = {module for house, module in MODULES for name in imports(house, module) if _is_of("tmem_engine", name)}
    assert {user for user in users if not _is_of("tmem_engine", user)} == ENGINE_USERS


def test_only_the_command_imports_what_commands_need() -> None:
    for module in files("tmem"):
        used = {name.partition(".")[0] for name in imports("tmem", module)} & {"click", "rich"}
        assert used == set() or _is_of("tmem.cli", module), module


@pytest.mark.parametrize("module", files("tmem"))
def test_the_sdk_can_be_imported_anywhere_without_the_engine(module: str) -> None:
    tree = ast.parse(files("tmem")[module].read_text())
    later = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.If)]
    later = [node for node in later if not isinstance(node, ast.If) or ast.unparse(node.test) == "TYPE_CHECKING"]
    inside = {child for node in later for child in ast.walk(node)}
    at_once = {name for node in ast.walk(tree) if node not in inside for name in _of(node)}
    assert {name.partition(".")[0] for name in at_once} & {"tmem_engine", *POSIX_ONLY} == set()


def _is_of(package: str, module: str) -> bool:
    return f"{module}.".startswith(f"{package}.")
