"""The Rust sources of a crate, and which of its files each one uses."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

Names = tuple[str, ...]
Import = tuple[Names, str, bool]

COMMENT_OR_STRING = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\])*"|\'(?:\\.[^\']*|[^\\\'])\'', re.DOTALL)
TEST_FILE = re.compile(r"#\[cfg\(test\)\]\s*mod \w+;")
INLINE_MODULE = re.compile(r"(#\[cfg\(test\)\]\s*)?\bmod (\w+) \{")
USE = re.compile(r"\b(pub(?:\([^)]*\))? )?use ([^;]+);")
CHILD = re.compile(r"\bmod (\w+);")
PATH = re.compile(r"(?<![\w:])\w+(?:::\w+)+")


@dataclass
class Module:
    """A module: a file, or a part of one in braces."""

    file: str
    name: Names
    text: str
    children: set[str] = field(default_factory=set[str])
    imports: list[Import] = field(default_factory=list[Import])

    def defines(self, name: str) -> bool:
        """Whether an item of this name is written here."""
        return (
            re.search(rf"\b(?:struct|enum|union|trait|type|fn|const|static|macro_rules!) {name}\b", self.text)
            is not None
        )

    def mentions(self, name: str) -> bool:
        return re.search(rf"\b{name}\b", self.text) is not None


class Crate:
    """What stands in the folder `src` of a crate; unit tests are left out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.modules: dict[Names, Module] = {}
        for path in sorted(root.rglob("*.rs")):
            if path.name != "tests.rs":
                self._add(path.relative_to(root).as_posix(), module_name(path.relative_to(root)), code(path))

    def files(self) -> set[str]:
        return {module.file for module in self.modules.values()}

    def uses(self) -> dict[str, set[str]]:
        """For each file the others whose items it names, through whatever façade."""
        found: dict[str, set[str]] = {file: set() for file in self.files()}
        for module in self.modules.values():
            found[module.file] |= {self._home(path).file for path in self._paths(module)} - {module.file}
        return found

    def _add(self, file: str, name: Names, text: str) -> None:
        text, inner = take_inline_modules(text)
        module = Module(file, name, USE.sub("", text), set(CHILD.findall(text)) | {child for child, _ in inner})
        self.modules[name] = module
        for public, tree in USE.findall(text):
            for path, alias in expand(tree):
                module.imports.append((self._absolute(module, path), alias, bool(public)))
        for child, body in inner:
            self._add(file, (*name, child), body)

    def _absolute(self, module: Module, path: Names) -> Names:
        """A path from the crate's root; empty where it leads out of the crate."""
        first, rest = path[0], path[1:]
        if first == "crate":
            return rest
        if first == "self":
            return (*module.name, *rest)
        if first == "super":
            above = module.name
            while path and path[0] == "super":
                above, path = above[:-1], path[1:]
            return (*above, *path)
        return (*module.name, *path) if first in module.children else ()

    def _paths(self, module: Module) -> Iterator[Names]:
        """What a module imports for itself, and what it names in full. What it only hands on is no use of it."""
        for path, alias, public in module.imports:
            if path and not (public and (alias == "*" or not module.mentions(alias))):
                yield path
        for text in PATH.findall(module.text):
            if path := self._absolute(module, tuple(text.split("::"))):
                yield path

    def _home(self, path: Names) -> Module:
        """The module that has what a path leads to."""
        length = next(n for n in range(len(path), -1, -1) if path[:n] in self.modules)
        module, rest = self.modules[path[:length]], path[length:]
        if not rest or module.defines(rest[0]):
            return module
        for target, alias, _ in module.imports:
            if target and alias == rest[0]:
                return self._home((*target, *rest[1:]))
            if target and alias == "*" and self._home((*target, rest[0])).defines(rest[0]):
                return self._home((*target, rest[0]))
        return module


def module_name(path: Path) -> Names:
    names = path.with_suffix("").parts
    return names[:-1] if names[-1] in {"mod", "lib"} else names


def code(path: Path) -> str:
    """The source without comments, strings and test files."""
    return TEST_FILE.sub("", COMMENT_OR_STRING.sub("", path.read_text()))


def take_inline_modules(text: str) -> tuple[str, list[tuple[str, str]]]:
    """The text without its modules in braces, and those by name; tests are left out."""
    inner: list[tuple[str, str]] = []
    while found := INLINE_MODULE.search(text):
        end = closing_brace(text, found.end())
        if not found[1]:
            inner.append((found[2], text[found.end() : end]))
        text = text[: found.start()] + text[end + 1 :]
    return text, inner


def closing_brace(text: str, start: int) -> int:
    depth = 1
    for found in re.finditer(r"[{}]", text[start:]):
        depth += 1 if found[0] == "{" else -1
        if depth == 0:
            return start + found.start()
    raise ValueError("braces do not match")


def expand(tree: str) -> Iterator[tuple[Names, str]]:
    """The paths of a `use`, each with the name that it brings."""
    head, brace, rest = tree.strip().partition("{")
    if brace:
        prefix = tuple(name for name in head.strip().split("::") if name)
        for part in split_list(rest.rstrip().removesuffix("}")):
            for path, alias in expand(part):
                yield (prefix, prefix[-1]) if path == ("self",) else ((*prefix, *path), alias)
        return
    name, _, alias = head.partition(" as ")
    names = tuple(name.strip().split("::"))
    yield (names[:-1], "*") if names[-1] == "*" else (names, alias.strip() or names[-1])


def split_list(text: str) -> list[str]:
    """Cut at the commas outside of braces."""
    parts, depth = [""], 0
    for character in text:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part.strip()]
