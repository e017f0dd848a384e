"""The pictures are what their script draws, and the chart shows what docs/benchmarks.md says."""

import xml.etree.ElementTree as ElementTree

import pytest

from docs.pictures import chart
from docs.pictures.draw import HERE, PICTURES

BENCHMARKS = (HERE.parent / "benchmarks.md").read_text()


@pytest.mark.parametrize("name", PICTURES)
def test_the_picture_is_what_the_script_draws(name: str) -> None:
    drawn = PICTURES[name]()
    assert (HERE / name).read_text() == drawn, "run make pictures"
    ElementTree.fromstring(drawn)


def test_no_picture_lacks_a_script() -> None:
    assert {path.name for path in HERE.glob("*.svg")} == set(PICTURES)


@pytest.mark.parametrize("row", chart.ROWS, ids=lambda row: row.name)
def test_each_figure_of_the_chart_is_in_a_table(row: chart.Row) -> None:
    ratios = [
        f"{line['ratio']:.2f}".removesuffix("0") for line in chart.lines(row.suite)[1:] if line["name"] == row.name
    ]
    assert ratios
    assert [ratio for ratio in ratios if f" {ratio}" not in BENCHMARKS] == []
