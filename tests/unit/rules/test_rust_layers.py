"""The folders of the Rust crates are their layers: read from every `use` and every path of the sources."""

import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.unit.rules.rust_sources import Crate, code

ENGINE = next(parent for parent in Path(__file__).parents if (parent / "server").is_dir()) / "server" / "engine"
MOST_FILES = 12

# Lower floors first: a file uses what stands on floors below its own, and nothing else of its own floor.
FLOORS = {
    "core/src": "error | outcome types | arena codec | alloc index pool_table | shard | batch | store | lib",
    "core/src/arena": "mapping trust | locks | layout | header | file | promise | budget | table | mod",
    "core/src/alloc": "slot | frames | heap | zbud zsmalloc | mod",
    "core/src/store": "available_memory stats | backing | pool | reserve | mod",
    "nbd/src": "protocol stdio tls | wire | backend client | backends exports | san server | lib",
    "nbd/src/backends": "cache_object pool_device | mod",
    "nbd/src/server": "connections input listen options | shared | handshake metrics_http | transmission | connection"
    " | mod",
    "nbd/src/san": "bytes counters stripes | cache exposition readahead | volume | shared | changes putting | reads"
    " | mod",
    "python/src": "args buffers dicts errors | packing settings | pool | engine snapshot | nbd san | lib",
}
CRATES = ["core/src", "nbd/src", "python/src"]
# The index keeps typed ids in tables; where those lie in the arena it cannot know.
HIDDEN_FROM_INDEX = {"Arena", "Map", "Budget", "Geometry", "ShardHeader", "ShardMap", "layout"}
MAY_BE_UNSAFE = {"core/src/arena", "core/src/codec/lz4.rs", "core/src/codec/lz4hc.rs", "python/src/buffers.rs"}


def floors(folder: str) -> dict[str, int]:
    return {name: floor for floor, names in enumerate(FLOORS[folder].split("|")) for name in names.split()}


def crate_of(folder: str) -> str:
    return next(crate for crate in CRATES if f"{folder}/".startswith(f"{crate}/"))


def first_name(file: str) -> str:
    return file.partition("/")[0].removesuffix(".rs")


@pytest.mark.parametrize("folder", FLOORS)
def test_every_folder_and_file_is_listed(folder: str) -> None:
    paths = (ENGINE / folder).iterdir()
    assert {path.stem for path in paths if path.name != "tests.rs"} == set(floors(folder))


@pytest.mark.parametrize("crate", CRATES)
def test_every_folder_of_folders_is_listed(crate: str) -> None:
    found = {path.parent.relative_to(ENGINE).as_posix() for path in (ENGINE / crate).rglob("*") if path.is_dir()}
    assert found <= FLOORS.keys()


@pytest.mark.parametrize("folder", FLOORS)
def test_a_file_uses_only_what_lies_below(folder: str) -> None:
    crate, listed = crate_of(folder), floors(folder)
    inside = f"{folder}/".removeprefix(f"{crate}/")
    upward: list[str] = []
    for file, used in Crate(ENGINE / crate).uses().items():
        if not file.startswith(inside):
            continue
        own = first_name(file.removeprefix(inside))
        for other in used:
            name = first_name(other.removeprefix(inside))
            if other.startswith(inside) and name != own and listed[name] >= listed[own]:
                upward.append(f"{file} uses {other}")
    assert sorted(upward) == []


@pytest.mark.parametrize("crate", CRATES)
def test_no_files_use_one_another_in_a_circle(crate: str) -> None:
    TopologicalSorter(Crate(ENGINE / crate).uses()).prepare()  # raises CycleError, which names them


@pytest.mark.parametrize("crate", CRATES)
def test_no_folder_has_too_many_files(crate: str) -> None:
    folders = {path.parent for path in (ENGINE / crate).rglob("*.rs")}
    counts = {
        folder.relative_to(ENGINE).as_posix(): sum(
            path.name not in {"mod.rs", "lib.rs"} for path in folder.glob("*.rs")
        )
        for folder in folders
    }
    assert {folder: count for folder, count in counts.items() if count > MOST_FILES} == {}


def test_the_index_knows_no_layout() -> None:
    for path in (ENGINE / "core/src/index").glob("*.rs"):
        uses = re.findall(r"\bcrate::arena::(\{[^}]*\}|\w+)", code(path))
        assert set(re.findall(r"\w+", " ".join(uses))) & HIDDEN_FROM_INDEX == set(), path.name


def test_unsafe_stands_in_the_named_places_only() -> None:
    found = {
        path.relative_to(ENGINE).as_posix()
        for crate in CRATES
        for path in (ENGINE / crate).rglob("*.rs")
        if re.search(r"\bunsafe\b|allow\(unsafe_code\)", code(path))
    }
    assert {name for name in found if not any(name.startswith(place) for place in MAY_BE_UNSAFE)} == set()


def test_every_unsafe_of_the_bindings_says_why() -> None:
    text = (ENGINE / "python" / "src" / "buffers.rs").read_text()
    assert text.count("unsafe {") == text.count("// SAFETY:") > 0
