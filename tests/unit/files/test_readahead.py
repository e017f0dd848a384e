"""Which pages read-ahead asks for, from requests alone."""

import itertools
import random

from tmem._files.readahead import Streams

END = 1_000_000


def follow(streams: Streams, requests: list[int], count: int = 1, end: int = END) -> tuple[int, int]:
    """How many of the requested pages were advised before, and how many advised pages were never requested."""
    advised: set[int] = set()
    found = 0
    for first in requests:
        found += first in advised
        advised.update(streams.advise(first, count, end))
    return found, len(advised - {page for first in requests for page in range(first, first + count)})


def test_a_sequential_stream_is_followed_to_its_end_and_no_farther() -> None:
    found, wasted = follow(Streams(32), list(range(200)), end=200)
    assert (found, wasted) == (197, 0)


def test_streams_go_backwards_and_by_strides() -> None:
    assert follow(Streams(32), list(range(5000, 4800, -1)))[0] == 197
    found, wasted = follow(Streams(32), list(range(0, 200 * 5000, 5000)))
    assert found == 196
    assert wasted == 0


def test_interleaved_streams_are_told_apart() -> None:
    rng = random.Random(1)
    streams = [iter(range(300)), iter(range(100_000, 400_000, 1000)), iter(range(900_000, 899_700, -1))]
    requests = [next(rng.choice(streams)) for _ in range(600)]
    found, wasted = follow(Streams(32), requests)
    assert found > 570
    assert wasted <= 3 * 32


def test_an_odd_step_does_not_end_a_stream() -> None:
    requests = [page for page in range(0, 400, 2) if page % 50]
    assert follow(Streams(32), requests)[0] > 180


def test_wide_requests_are_followed_page_by_page() -> None:
    streams = Streams(32)
    ahead = [streams.advise(first, 4, END) for first in (0, 4, 8, 12, 16, 20)]
    assert ahead[:2] == [[], []]
    assert list(itertools.chain(*ahead)) == list(range(12, 12 + sum(map(len, ahead))))


def test_requests_without_a_pattern_are_left_alone() -> None:
    rng = random.Random(2)
    assert follow(Streams(32), [rng.randrange(END) for _ in range(2000)]) == (0, 0)
    assert follow(Streams(64), [rng.randrange(2000) for _ in range(2000)], end=2000)[1] < 100


def test_the_depth_grows_while_the_stream_goes_on() -> None:
    streams = Streams(64)
    batches = [len(pages) for first in range(300) if (pages := streams.advise(first, 1, END))]
    assert batches[0] == 4
    assert max(batches) >= 32
    assert sum(batches) <= 300 + 64


def test_waste_stops_it_and_use_brings_it_back() -> None:
    streams = Streams(64)
    for _ in range(8):
        streams.judge(wasted=32)
    assert [streams.advise(first, 1, END) for first in range(100)] == [[]] * 100
    tried = [pages for first in range(100, 500) if (pages := streams.advise(first, 1, END))]
    assert {len(pages) for pages in tried} <= {2, 3, 4}
    for _ in range(8):
        streams.judge(used=32)
    assert max(len(streams.advise(first, 1, END)) for first in range(500, 900)) >= 32


def test_none_is_none() -> None:
    assert follow(Streams(0), list(range(100))) == (0, 0)


def test_pages_outside_the_file_are_not_asked_for() -> None:
    assert follow(Streams(32), [4, 3, 2, 1, 0], end=5)[1] == 0
    assert follow(Streams(32), [5, 6, 7, 8], end=9)[1] == 0
