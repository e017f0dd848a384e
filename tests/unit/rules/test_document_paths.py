"""Files and folders that the documents name are there."""

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOLDERS = ("bench", "client", "deploy", "docs", "proto", "server", "tests")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
# A file of the sources by as much of its path as it takes, or a path from the root.
NAMED = re.compile(rf"(?<![\w/.:-])((?:[\w.-]+/)*\w[\w.-]*\.(?:py|rs|proto)\b|(?:{'|'.join(FOLDERS)})/[\w./-]*\w)")
NOT_OURS = {"deploy/tls", "server.py"}


@cache
def places() -> frozenset[str]:
    """Every path below the root, and all that it ends with."""
    found = {path.name for path in ROOT.glob("*.*")}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            parts = path.relative_to(ROOT).parts
            found |= {"/".join(parts[start:]) for start in range(len(parts))}
    return frozenset(found)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_it_names_is_there(document: Path) -> None:
    named = set(NAMED.findall(document.read_text())) - NOT_OURS
    assert sorted(named - places()) == []
