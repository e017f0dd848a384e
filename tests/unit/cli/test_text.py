"""What the command `tmem` prints: numbers, tables, units, faults and rates, without a terminal or a server."""

import typing
from dataclasses import replace

import pytest

from tmem._model.stats import PoolStats, StoreStats
from tmem.cli.base import text
from tmem.cli.base.output import Column, lay_out
from tmem.cli.base.target import PoolView
from tmem.cli.base.units import grouped, unit_of
from tmem.cli.commands.top_sample import Sample, as_dict, lines, of_pools, rates
from tmem_proto import faults
from tmem_proto.v1 import admin_pb2 as admin

COLUMNS = (Column("NAME"), Column("PAGES", right=True), Column("HIT", right=True, rank=1), Column("OWNER", rank=2))
ROWS = [["swap0", "1,234", "50 %", "a"], ["ü-pool", "7", "-", "somebody"]]


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (1024, "1.00 KiB"),
        (10 * 1024, "10.0 KiB"),
        (1 << 20, "1.00 MiB"),
        (999 << 30, "999 GiB"),
        ((1 << 40) - 1, "1.00 TiB"),
        (1 << 63, "8.00 EiB"),
    ],
)
def test_sizes(number: int, says: str) -> None:
    assert text.size(number) == says


@pytest.mark.parametrize(
    ("number", "says"),
    [(0, "0"), (999_999, "999,999"), (1_000_000, "1.00 M"), (12_345_678, "12.3 M"), (10**12, "1.00 T")],
)
def test_counts(number: int, says: str) -> None:
    assert text.count(number) == says


@pytest.mark.parametrize(
    ("seconds", "says"), [(2, "2.00 s"), (0.0125, "12.5 ms"), (0.00025, "250 µs"), (5e-8, "50 ns")]
)
def test_durations(seconds: float, says: str) -> None:
    assert text.duration(seconds) == says


def test_what_cannot_be_said_is_a_dash() -> None:
    assert (text.ratio(8, 4), text.ratio(8, 0), text.percent(1, 4), text.percent(0, 0)) == ("2.00", "-", "25 %", "-")
    assert (text.rate(0), text.rate(0.25), text.rate(1234)) == ("-", "0.2", "1,234")
    assert [text.quantity(count, "page") for count in (0, 1, 1200)] == ["0 pages", "1 page", "1,200 pages"]


def test_names_cannot_move_the_cursor() -> None:
    assert text.printable("a\x1b[2Jb\n\u202ec") == "a\\x1b[2Jb\\n\\u202ec"
    assert text.printable("grün 日本") == "grün 日本"


def test_a_table_lines_up() -> None:
    assert lay_out(COLUMNS, ROWS, None) == [
        "NAME    PAGES   HIT  OWNER",
        "swap0   1,234  50 %  a",
        "ü-pool      7     -  somebody",
    ]


def test_a_table_lines_up_where_letters_are_wide() -> None:
    assert lay_out(COLUMNS[:2], [["日本", "1"], ["abcd", "2"]], None)[1:] == ["日本      1", "abcd      2"]


@pytest.mark.parametrize(
    ("width", "titles"), [(31, "NAME PAGES HIT OWNER"), (28, "NAME PAGES HIT"), (18, "NAME PAGES")]
)
def test_a_narrow_terminal_leaves_out_what_matters_least(width: int, titles: str) -> None:
    shown = lay_out(COLUMNS, ROWS, width)
    assert shown[0].split() == titles.split()
    assert max(map(len, shown)) <= width


def test_names_are_cut_when_nothing_else_can_go() -> None:
    shown = lay_out(COLUMNS[:2], [["a-very-long-name-of-a-pool", "1"]], 22)
    assert shown[1] == "a-very-long-na…      1"


@pytest.mark.parametrize("kind", [PoolStats, StoreStats])
def test_every_statistic_has_a_group_and_a_unit(kind: type) -> None:
    hints = typing.get_type_hints(kind)
    found = grouped({name: 0 for name, of in hints.items() if of is int})
    assert "Other" not in found
    assert all(unit for entries in found.values() for _, _, unit, _ in entries)


def test_a_statistic_that_is_not_known_is_shown_all_the_same() -> None:
    assert grouped({"pages": 1, "shiny_bytes": 2})["Other"] == [("shiny_bytes", 2, "bytes", "")]
    assert unit_of("whatever") == "count"


def test_a_fault_is_read() -> None:
    assert faults.parse("Put:delay=50ms") == [admin.Injection(method="Put", delay_ms=50)]
    assert faults.parse("*:delay=1.5s, fraction=0.1,code=UNAVAILABLE,after; Get:code=ABORTED;") == [
        admin.Injection(method="*", delay_ms=1500, fraction=0.1, code=14, after=True),
        admin.Injection(method="Get", code=10),
    ]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("Put", "'Put' is not a fault"),
        (":delay=50ms", "':delay=50ms' is not a fault"),
        ("Put:", "'Put:' is not a fault"),
        ("Put=50ms", "'Put=50ms' is not a fault"),
        ("Put:50ms", "'50ms' is not one of"),
        ("Put:delay=fast", "delay is 'fast'"),
        ("Put:fraction=0", "fraction is '0'"),
        ("Put:fraction=2", "fraction is '2'"),
        ("Put:fraction=x", "fraction is 'x'"),
        ("Put:after", "'Put:after' has `after` but no code"),
        ("Put:code=OK", "code is 'OK'"),
        ("Put:code=ABORTED,after=1", "after has no value"),
        ("Put:delay=1s,delay=2s", "delay appears twice"),
    ],
)
def test_what_is_no_fault_is_named(given: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        faults.parse(given)


def _pool(name: str, **stats: int) -> PoolView:
    counters = {name: 0 for name, of in typing.get_type_hints(PoolStats).items() if of is int}
    settings = {"kind": "ephemeral", "page_size": 4096}
    return PoolView(name, settings, False, {**counters, **stats})


def _sample(clock: float, *pools: PoolView) -> Sample:
    return Sample(clock, 1e9 + clock, 0.002, of_pools(pools), pools)


def test_rates_are_growth_over_time() -> None:
    now = {"puts_stored": 30, "puts_replaced": 10, "gets_hit": 5, "evicted_quota": 8}
    found = rates(now, {"puts_stored": 10, "gets_hit": 5}, 2)
    assert (found["puts"], found["hits"], found["evicted_quota"]) == (15, 0, 4)
    assert set(rates(now, None, 0).values()) == {0}
    assert rates({"puts_stored": 1}, {"puts_stored": 9}, 1)["puts"] == 0


def test_top_shows_the_busiest_pool_first_and_what_it_does() -> None:
    quiet, busy = _pool("a-quiet", pages=1), _pool("busy", pages=100, footprint_bytes=204800)
    later = replace(
        busy, stats={**busy.stats, "puts_stored": 1500, "gets_hit": 30, "gets_miss": 10, "evicted_memory": 7}
    )
    shown = lines(_sample(2, quiet, later), _sample(1, quiet, busy), "host:1", 120)
    heading, first, second = shown[-3:]
    cells = dict(zip(heading.split(), first.replace(" KiB", "KiB").replace(" %", "%").split(), strict=True))
    assert (cells["POOL"], cells["PUT/s"], cells["GET/s"], cells["HIT"], cells["EV.MEM/s"]) == (
        "busy",
        "1,500",
        "40",
        "75%",
        "7.0",
    )
    assert cells["RATIO"] == "2.00"
    assert second.startswith("a-quiet")
    assert "host:1" in shown[0]


def test_a_pool_that_is_new_has_no_rates_yet() -> None:
    found = as_dict(_sample(2, _pool("new", puts_stored=1000)), _sample(1))
    assert set(found["pools"][0]["rates"].values()) == {0}


@pytest.mark.parametrize("width", [80, 120])
def test_top_fits_its_terminal(width: int) -> None:
    pools = [_pool("x" * 64, pages=10**9, footprint_bytes=10**12, puts_stored=10**9) for _ in range(3)]
    assert max(map(len, lines(_sample(1, *pools), None, "127.0.0.1:7717", width))) <= width
