"""Every relative link of the documents leads to a file that is there, and to a heading that it has."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[3]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob(".github/**/*.md"), *ROOT.glob("[!.]*/**/*.md")])
DOCUMENTS = [path for path in DOCUMENTS if "target" not in path.parts]
_CODE = re.compile(r"^( *)(```|~~~).*?^\1\2 *$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(
    r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|^\[[^\]]+\]: +(\S+)|(?:href|src)=\"([^\"]+)\"", re.MULTILINE
)
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)


def links(text: str) -> list[str]:
    found = ("".join(groups) for groups in _LINK.findall(_CODE.sub("", text)))
    return [link for link in found if not re.match(r"[a-z][a-z0-9+.-]*:", link)]


def anchors(text: str) -> set[str]:
    """What links to the headings are called, as GitHub and the site make them."""
    made: dict[str, int] = {}
    fences = re.compile(r"^( *)(```|~~~).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
    for heading in _HEADING.findall(fences.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        made[slug] = made.get(slug, -1) + 1
        if made[slug]:
            made[f"{slug}-{made[slug]}"] = 0
    return made.keys() | set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))


def broken(document: Path) -> list[str]:
    wrong = []
    for link in links(document.read_text()):
        path, _, anchor = unquote(link).partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target.read_text())):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    assert not broken(document)


def test_a_link_that_leads_nowhere_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# One `thing`, two\n\n## Twice\n\n## Twice\n\n```sh\n# no heading\n```\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](there.md) [b](there.md#one-thing-two) [c](there.md#twice-1) [d](https://example.org/no) `[e](code)`\n"
        "[f](away.md) [g](there.md#thrice) [h](#none) ![i](none.svg)\n\n[j]: away.txt\n"
    )
    assert broken(page) == ["away.md", "there.md#thrice", "#none", "none.svg", "away.txt"]
    page.write_text("[a](there.md#no-heading)")
    assert broken(page) == ["there.md#no-heading"]
