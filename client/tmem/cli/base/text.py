"""Numbers and names as people read them. The exact numbers are in the JSON."""

from __future__ import annotations

import time
import unicodedata

_SIZES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_COUNTS = ("", "k", "M", "G", "T", "P", "E")
NONE = "-"


def size(number: float) -> str:
    """Bytes with a unit, three digits: `1.25 MiB`."""
    return _scaled(number, 1024, _SIZES)


def count(number: float) -> str:
    """A number: exact below a million, with three digits above it: `12,345`, `1.25 M`."""
    if abs(number) < 1_000_000:
        return f"{number:,.0f}"
    return _scaled(number, 1000, _COUNTS)


def rate(number: float) -> str:
    """A number a second; a dash where there is none."""
    if number == 0:
        return NONE
    return f"{number:.1f}" if number < 10 else count(number)


def duration(seconds: float) -> str:
    """A short time with its unit: `1.25 ms`."""
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        if seconds * factor >= 1:
            return f"{_three(seconds * factor)} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def ratio(whole: float, part: float) -> str:
    """How many times larger the whole is than what became of it: `2.51`; a dash where there is nothing."""
    return f"{whole / part:.2f}" if whole and part else NONE


def percent(part: float, whole: float) -> str:
    """`12 %`; a dash of nothing."""
    return f"{100 * part / whole:.0f} %" if whole else NONE


def quantity(number: int, one: str, many: str | None = None) -> str:
    """A number of things: `1 page`, `2 pages`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def moment(seconds: float) -> str:
    """A time of day here, to the millisecond."""
    return f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{int(seconds % 1 * 1000):03}"


def printable(text: str) -> str:
    """The text with what would move a terminal's cursor or change its colours spelled out."""
    return "".join(
        letter if unicodedata.category(letter)[0] != "C" else letter.encode("unicode_escape").decode()
        for letter in text
    )


def _scaled(number: float, base: int, units: tuple[str, ...]) -> str:
    value, at = float(number), 0
    while at + 1 < len(units) and abs(value) >= base - 0.5:
        value, at = value / base, at + 1
    return f"{number:,.0f} {units[0]}".rstrip() if at == 0 else f"{_three(value)} {units[at]}"


def _three(value: float) -> str:
    if abs(value) < 9.995:
        return f"{value:.2f}"
    return f"{value:.1f}" if abs(value) < 99.95 else f"{value:.0f}"
