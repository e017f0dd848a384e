"""Badges that need no service: the licence and the versions of Python, as pyproject.toml has them."""

import tomllib
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
_WIDTH_OF_A_LETTER = 6.6


def licence() -> str:
    """The licence that the package declares."""
    return _badge("licence", _project()["license"])


def python() -> str:
    """The versions of Python that the package installs on."""
    return _badge("Python", _project()["requires-python"].removeprefix(">=") + "+")


def platform() -> str:
    """The systems that the native part is built for."""
    return _badge("Linux", "x86-64, aarch64")


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    return project


def _badge(name: str, value: str) -> str:
    left, right = (round(len(words) * _WIDTH_OF_A_LETTER + 14) for words in (name, value))
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" font-size="11" \
font-family="Verdana, DejaVu Sans, sans-serif" fill="#ffffff" text-anchor="middle">
  <title>{name}: {value}</title>
  <rect width="{left + right}" height="20" rx="3" fill="#0757b8"/>
  <path d="M3 0h{left - 3}v20H3a3 3 0 0 1-3-3V3a3 3 0 0 1 3-3z" fill="#555555"/>
  <text x="{left / 2:g}" y="14">{name}</text>
  <text x="{left + right / 2:g}" y="14">{value}</text>
</svg>
"""
