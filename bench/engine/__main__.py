"""Measure the engine: `python -m bench.engine.__main__ [--quick] [--only FIGURE]...`.

Lines of JSON go to standard output, the first of them naming machine and corpora; progress and, at the end, a table
with bounds go to standard error. Ours and the peer are measured in turn, and a ratio is the median of the pairs'.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.lib import corpus as corpora
from bench.lib import ending, machine, zram
from bench.lib.corpus import PAGE, Corpus
from bench.lib.figures import Figure, table

_ROOT = Path(__file__).resolve().parents[2]
_ALL = corpora.NAMES
_ONE = ("libraries",)
_SINGLE_GETS = 20_000
_BATCH = 64


@dataclass(frozen=True)
class Bench:
    """The core's own benchmark program, and how long to run it."""

    program: str
    quick: bool

    def run(self, figure: str, corpus: Corpus) -> Iterator[Figure]:
        """The lines of one of its figures, as they come."""
        command = [self.program, figure, str(corpus.path), *(["--quick", "--pairs", "5"] if self.quick else [])]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    yield Figure.of(json.loads(line))
            finally:
                if process.poll() is None and sys.exception() is not None:
                    process.kill()
        if process.returncode:
            raise SystemExit(f"the benchmark of {figure} failed with status {process.returncode}")


def build() -> str:
    """Build the core's benchmark program; its path."""
    command = ["cargo", "build", "--release", "--package", "tmem-core", "--example", "bench"]
    built = subprocess.run(
        [*command, "--message-format", "json-render-diagnostics"], cwd=_ROOT, stdout=subprocess.PIPE, check=False
    )
    messages = [json.loads(line) for line in built.stdout.splitlines()]
    programs = [m["executable"] for m in messages if m.get("target", {}).get("name") == "bench" and m.get("executable")]
    if built.returncode or not programs:
        raise SystemExit("the benchmark could not be built")
    return str(programs[-1])


def _core(figure: str) -> Callable[[Bench, Corpus], Iterator[Figure]]:
    return lambda bench, corpus: bench.run(figure, corpus)


def _against_zram(bench: Bench, corpus: Corpus) -> Iterator[Figure]:
    """Bytes of pages held for a byte of memory in use: ours, all metadata counted, and zram's."""
    try:
        theirs = zram.memory_for([corpus.path.read_bytes()])
    except zram.NoZramError as reason:
        _say(f"zram {corpus.name}: skipped, {reason}")
        return
    # The core stores whole batches of 64 pages.
    ours = next(figure for figure in bench.run("density", corpus) if figure.name == "density.held")
    held, peer_held = ours.ratio, corpus.pages * PAGE / theirs
    yield Figure("zram.held", held, "bytes/byte in use", "kernel zram, lz4", peer_held, held / peer_held, corpus.name)


def _from_python(bench: Bench, corpus: Corpus) -> Iterator[Figure]:
    """Single pages through the Python API, embedded, at random places: median microseconds."""
    import random

    import tmem

    pages = corpus.path.read_bytes()[: 64_000_000 // PAGE * PAGE]
    count = len(pages) // PAGE
    picks = random.Random(1).choices(range(count), k=_SINGLE_GETS // (4 if bench.quick else 1))
    plain = {index: pages[index * PAGE : (index + 1) * PAGE] for index in range(count)}
    with tmem.open(memory="128MiB") as store:
        pool = store.pool("bench")
        for first in range(0, count, _BATCH):
            pool.put_range(1, first, pages[first * PAGE : (first + _BATCH) * PAGE])
        get = _median_us(lambda index: pool.get(1, [index]), picks)
        put = _median_us(lambda index: pool.put(1, {index: plain[index]}), picks)
    peer = "a copy out of a dict"
    copied = _median_us(lambda index: bytearray(plain[index]), picks)
    yield Figure("python.get.single", get, "us, median", peer, copied, get, corpus.name)
    yield Figure("python.put.single", put, "us, median", peer, copied, put, corpus.name)


def _median_us(call: Callable[[int], object], picks: list[int]) -> float:
    clock, times = time.perf_counter_ns, []
    for index in picks:
        begun = clock()
        call(index)
        times.append(clock() - begun)
    return statistics.median(times) / 1000


_FIGURES: dict[str, tuple[Callable[[Bench, Corpus], Iterator[Figure]], tuple[str, ...]]] = {
    "put": (_core("put"), _ALL),
    "get": (_core("get"), _ALL),
    "first": (_core("first"), _ONE),
    "threads": (_core("threads"), _ONE),
    "processes": (_core("processes"), _ONE),
    "zram": (_against_zram, _ALL),
    "density": (_core("density"), _ALL),
    "metadata": (_core("metadata"), _ONE),
    "size": (_core("size"), _ONE),
    "full": (_core("full"), _ONE),
    "hits": (_core("hits"), _ONE),
    "python": (_from_python, _ONE),
    "attach": (_core("attach"), _ONE),
}
"""Each group of figures, and the corpora it is measured with."""


def measure(bench: Bench, chosen: list[str], have: dict[str, Corpus]) -> list[Figure]:
    """Measure the chosen groups, each figure printed as it is known."""
    figures = []
    for name in chosen:
        run, names = _FIGURES[name]
        for corpus in map(have.__getitem__, names):
            _say(f"measuring {name} with {corpus.name}")
            for figure in run(bench, corpus):
                _print(figure.line())
                figures.append(figure)
    return figures


def _print(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.engine.__main__", description="Measure the engine.")
    parser.add_argument("--quick", action="store_true", help="small corpora and few pairs: a look, not a record")
    parser.add_argument("--only", action="append", choices=_FIGURES, metavar="FIGURE", help=", ".join(_FIGURES))
    return parser.parse_args()


def main() -> int:
    """Build, make the corpora, measure, and show the table."""
    arguments = _arguments()
    chosen = [name for name in _FIGURES if not arguments.only or name in arguments.only]
    _say("building the benchmark")
    bench = Bench(build(), arguments.quick)
    wanted = [name for name in _ALL if any(name in _FIGURES[figure][1] for figure in chosen)]
    have = {}
    for name in wanted:
        _say(f"making the corpus of {name}")
        have[name] = corpora.make(name, corpora.QUICK_MEGABYTES if arguments.quick else corpora.MEGABYTES)
    _print({"machine": machine.describe(), "corpora": [corpus.describe() for corpus in have.values()]})
    figures = measure(bench, chosen, have)
    _say(f"\n{machine.in_words()}\n\n{table(figures)}")
    return 0


if __name__ == "__main__":
    ending.run(main)
