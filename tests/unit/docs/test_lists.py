"""A blank line stands before each list of the documents: the site takes the list for text otherwise."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_STUCK = re.compile(r"^(?!- |\d+\. |[ #|<\n]).+\n(?:- |\d+\. ).*", re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_lists_are_set_off(document: Path) -> None:
    assert _STUCK.findall(_FENCED.sub("", document.read_text())) == []
