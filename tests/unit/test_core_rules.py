"""The core's layers, lower ones first, and where `unsafe` may stand: read from the Rust sources."""

import re
from pathlib import Path

import pytest

ENGINE = Path(__file__).parents[2] / "server" / "engine"
CORE = ENGINE / "core" / "src"
MAY_USE = {
    "error": set[str](),
    "types": {"error"},
    "arena": {"types", "error"},
    "codec": {"types", "error"},
    "pool_table": {"arena", "types", "error"},
    "index": {"arena", "types", "error"},
    "alloc": {"arena", "codec", "types", "error"},
}
# The index keeps typed ids in tables; where those lie in the arena it cannot know.
HIDDEN_FROM_INDEX = {"Arena", "Map", "Budget", "Geometry", "ShardHeader", "ShardMap", "layout"}
MAY_BE_UNSAFE = {"core/src/arena", "core/src/codec/lz4.rs", "core/src/codec/lz4hc.rs", "python/src/buffers.rs"}


def code(path: Path) -> str:
    """The source without its comments, strings and unit tests."""
    text = path.read_text().partition("#[cfg(test)]\nmod ")[0]
    return re.sub(r'//[^\n]*|"(?:\\.|[^"\\])*"', "", text)


def layer(name: str) -> list[Path]:
    paths = [*CORE.glob(f"{name}.rs"), *(CORE / name).rglob("*.rs")]
    return [path for path in paths if path.name != "tests.rs"]


@pytest.mark.parametrize("name", MAY_USE)
def test_a_layer_uses_only_the_layers_below(name: str) -> None:
    assert layer(name)
    for path in layer(name):
        used = set(re.findall(r"\bcrate::(\w+)", code(path)))
        assert used - {name} <= MAY_USE[name], path.name


def test_the_index_knows_no_layout() -> None:
    for path in layer("index"):
        uses = re.findall(r"\bcrate::arena::(\{[^}]*\}|\w+)", code(path))
        assert set(re.findall(r"\w+", " ".join(uses))) & HIDDEN_FROM_INDEX == set(), path.name


def test_unsafe_stands_in_the_named_places_only() -> None:
    found = {
        path.relative_to(ENGINE).as_posix()
        for path in (*CORE.rglob("*.rs"), *(ENGINE / "python" / "src").rglob("*.rs"))
        if re.search(r"\bunsafe\b|allow\(unsafe_code\)", code(path))
    }
    assert {name for name in found if not any(name.startswith(place) for place in MAY_BE_UNSAFE)} == set()


def test_every_unsafe_of_the_bindings_says_why() -> None:
    text = (ENGINE / "python" / "src" / "buffers.rs").read_text()
    assert text.count("unsafe {") == text.count("// SAFETY:") > 0
