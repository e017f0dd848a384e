"""Measured figures, the bounds they have to keep, and the table that shows both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One measured figure: ours, a peer's, and the ratio that its bound is for."""

    name: str
    value: float
    unit: str
    peer: str
    peer_value: float
    ratio: float
    corpus: str

    @classmethod
    def of(cls, line: dict[str, Any]) -> Figure:
        """From a line of JSON."""
        return cls(**line)

    def line(self) -> dict[str, Any]:
        """For a line of JSON."""
        return {key: round(value, 6) if isinstance(value, float) else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Bound:
    """What a ratio has to be."""

    limit: float
    at_least: bool

    def holds(self, ratio: float) -> bool:
        """Whether the ratio keeps it."""
        return ratio >= self.limit if self.at_least else ratio <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"


def at_least(limit: float) -> Bound:
    """A ratio of that or more."""
    return Bound(limit, at_least=True)


def at_most(limit: float) -> Bound:
    """A ratio of that or less."""
    return Bound(limit, at_least=False)


BOUNDS = {
    "put.batch64": at_least(0.90),
    "get.batch64": at_least(0.85),
    "scale.put.threads": at_least(1.8),
    "scale.get.threads": at_least(1.8),
    "scale.put.processes": at_least(1.8),
    "scale.get.processes": at_least(1.8),
    "zram.held": at_least(1.00),
    "density.filled": at_least(0.965),
    "density.churned": at_least(0.93),
    "metadata.dense": at_most(32),
    "metadata.sparse": at_most(64),
    "size.put.single": at_most(1.2),
    "size.put.batch64": at_most(1.2),
    "size.get.single": at_most(1.5),
    "size.get.batch64": at_most(1.5),
    "full.put.zbud": at_most(1.5),
    "full.put.zsmalloc": at_most(1.5),
    "hits.zbud": at_least(1.00),
    "hits.zsmalloc": at_least(1.00),
    "python.get.single": at_most(5.0),
    "attach.clean": at_most(0.2),
    "attach.killed": at_most(2.0),
}
"""What each figure has to reach; figures without a bound are there to explain the others."""

_HEAD = ("figure", "corpus", "ours", "peer", "unit", "against", "ratio", "bound", "")
_LEFT = (0, 1, 4, 5, 7, 8)


def table(figures: list[Figure], bounds: Mapping[str, Bound] = BOUNDS) -> str:
    """The figures in aligned columns, and how many bounds were kept."""
    rows = [_HEAD, *(_row(figure, bounds.get(figure.name)) for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    bounded = [bounds[figure.name].holds(figure.ratio) for figure in figures if figure.name in bounds]
    lines = ["  ".join(_cell(column, row, widths) for column in range(len(_HEAD))).rstrip() for row in rows]
    return "\n".join([*lines, "", f"{sum(bounded)} of {len(bounded)} bounds kept"])


def _cell(column: int, row: tuple[str, ...], widths: list[int]) -> str:
    text = row[column]
    return text.ljust(widths[column]) if column in _LEFT else text.rjust(widths[column])


def _row(figure: Figure, bound: Bound | None) -> tuple[str, ...]:
    verdict = "" if bound is None else "pass" if bound.holds(figure.ratio) else "MISS"
    return (
        figure.name,
        figure.corpus,
        _number(figure.value),
        _number(figure.peer_value),
        figure.unit,
        figure.peer,
        _number(figure.ratio),
        "" if bound is None else str(bound),
        verdict,
    )


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3f}"
