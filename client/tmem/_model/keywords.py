"""Shows the keyword arguments of a method that passes them on whole, so that they are written in one place."""

import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Any, TypeVar

_Method = TypeVar("_Method", bound=Callable[..., Any])

_ENTRY = re.compile(r"\n(?=    \w)")


def takes(options: type, settings: type) -> Callable[[_Method], _Method]:
    """Show `**options` as the keywords that they are: fields of `settings`, as `options` (a TypedDict) has them.

    `help` and `inspect.signature` show them then; type checkers know them by `Unpack`.
    """

    def show(method: _Method) -> _Method:
        signature = inspect.signature(method)
        named = list(signature.parameters.values())[:-1]
        keywords = [_keyword(field, options) for field in fields(settings) if field.name in options.__annotations__]
        method.__signature__ = signature.replace(parameters=[*named, *keywords])  # type: ignore[attr-defined]
        method.__doc__ = _documented(method, settings, keywords)
        return method

    return show


def _keyword(field: Field[Any], options: type) -> inspect.Parameter:
    default = None if field.default is MISSING else field.default
    kind, annotation = inspect.Parameter.KEYWORD_ONLY, options.__annotations__[field.name]
    return inspect.Parameter(field.name, kind, default=default, annotation=annotation)


def _documented(method: Callable[..., Any], settings: type, keywords: list[inspect.Parameter]) -> str:
    """The method's documentation, with that of the keywords in place of the line on `**options`."""
    lines = inspect.cleandoc(method.__doc__ or "").splitlines()
    attributes = inspect.cleandoc(settings.__doc__ or "").partition("Attributes:\n")[2]
    known = {entry.split(":")[0].strip(): entry for entry in _ENTRY.split(attributes)}
    shown = "\n".join(known.get(keyword.name, "") for keyword in keywords)
    return "\n".join(shown if line.startswith("    **options:") else line for line in lines)
