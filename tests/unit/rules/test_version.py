"""The version stands in Cargo.toml; whatever else has it was told by that, or tells history."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
VERSION = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
SKIPPED = {
    "target",
    "build",
    "dist",
    "sbom",
    "site",
    "__pycache__",
    "CHANGELOG.md",
    "Cargo.lock",
    "requirements-release.lock",
}
SKIPPED |= {"requirements-dev.lock", "requirements.lock"}
HIDDEN = {".ci", ".github"}


def _texts(folder: Path = ROOT) -> Iterator[tuple[str, str]]:
    """The project's own text files, each by its path."""
    for path in folder.iterdir():
        if path.name in SKIPPED or path.name.endswith(".egg-info"):
            continue
        if path.is_dir() and (path.name in HIDDEN or not path.name.startswith(".")):
            yield from _texts(path)
        elif path.is_file() and path.suffix not in (".so", ".lz4", ".svg"):
            yield str(path.relative_to(ROOT)), path.read_text(errors="replace")


def test_the_version_is_stated_once() -> None:
    stated = re.compile(rf"(?<![\d.]){re.escape(VERSION)}(?![\d.])")
    assert [name for name, text in _texts() if stated.search(text)] == ["Cargo.toml"]
    written = re.compile(r"^__version__ *= *[\"']|^version = \"\d", re.MULTILINE)
    assert [name for name, text in _texts() if written.search(text)] == ["Cargo.toml"]


def test_the_changelog_has_the_version_after_what_is_unreleased() -> None:
    headings = re.findall(r"^## (.*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert re.fullmatch(rf"\[{re.escape(VERSION)}\] - \d{{4}}-\d\d-\d\d", headings[1])


def test_the_changelog_sorts_what_changed_by_its_kind() -> None:
    kinds = set(re.findall(r"^### (.*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
