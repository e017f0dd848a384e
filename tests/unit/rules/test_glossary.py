"""The glossary agrees with the code: its names are there, and what the wire speaks of has a term."""

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ROWS = re.findall(r"^\| \*\*(.+?)\*\* \|(.+)\|(.*)\|$", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
NAMES = {name: term for term, _, names in ROWS for name in re.findall(r"`([^`]+)`", names)}
WIRE = "".join(path.read_text() for path in sorted((ROOT / "proto").rglob("*.proto")))


@cache
def words() -> frozenset[str]:
    """Every word of the sources."""
    sources = [path for folder in ("server", "client") for path in (ROOT / folder).rglob("*") if path.is_file()]
    text = "\n".join(path.read_text() for path in sources if path.suffix in {".py", ".rs"})
    text += WIRE
    return frozenset([*re.findall(r"\w+", text), *re.findall(r"[\w-]+", text), *(path.stem for path in sources)])


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_the_glossary_is_in_the_code(name: str) -> None:
    assert name in words(), f"the term is {NAMES[name]}"


def test_every_message_has_a_term() -> None:
    messages = re.findall(r"^(?:message|enum) (\w+)", WIRE, re.MULTILINE)
    assert [name for name in messages if not re.search(r"(Request|Response)$", name) and name not in NAMES] == []


def test_every_call_of_one_word_has_a_term() -> None:
    calls = re.findall(r"^  rpc ([A-Z][a-z]+)\(", WIRE, re.MULTILINE)
    assert [name for name in calls if name not in NAMES] == []


def test_every_setting_of_a_pool_has_a_term() -> None:
    settings = re.search(r"^message PoolSettings \{(.*?)^\}", WIRE, re.MULTILINE | re.DOTALL)
    assert settings is not None
    fields = re.findall(r"^  \w+ (\w+) = \d+;", settings[1], re.MULTILINE)
    assert "quota" in fields
    assert [name for name in fields if name not in NAMES] == []


def test_a_term_stands_once() -> None:
    terms = [term for term, _, _ in ROWS]
    assert len(terms) > 50
    assert sorted(terms) == sorted(set(terms))
