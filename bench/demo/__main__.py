"""The demo: a daemon among real processes, its crash, a slow SAN, and what was saved. `python -m bench.demo`.

It takes about a minute, leaves nothing behind, and fails if anything is not as it should.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from bench.demo.block import show
from bench.demo.engine import Shown, measure
from bench.demo.progress import done, progress
from bench.demo.screen import screen
from bench.demo.story import tell
from bench.lib import corpus, ending

_MEGABYTES = 32
_FILE_PAGES = 6000


def _collect(directory: Path) -> tuple[list[Shown], Path, Path, list[str]]:
    """Pages of shared libraries and of live processes; both as files too; and files to read."""
    kinds = []
    for name, maker in (("heaps", corpus.heaps), ("libraries", corpus.libraries)):
        progress(f"reading {name} of this machine")
        kinds.append(Shown(name, b"".join(maker(_MEGABYTES * 1_000_000))))
    pages = directory / "heaps"
    pages.write_bytes(kinds[0].pages)
    image = directory / "libraries"
    image.write_bytes(kinds[1].pages)
    return kinds, pages, image, list(_files())


def _files() -> Iterator[str]:
    left = _FILE_PAGES
    for path in islice(corpus.library_files(), 1000):
        pages = path.stat().st_size // corpus.PAGE
        if 0 < pages <= left:
            left -= pages
            yield str(path)


def main() -> int:
    """Run the demo; 0 when all was as it should be."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="tmem-demo-", dir=shm if shm.is_dir() else None) as name:
        kinds, pages, image, files = _collect(Path(name))
        begun = time.monotonic()
        story = tell(pages, files)
        block = show(image, pages)
        alone = measure(Path(name), kinds)
    done()
    faults = story.faults + block.faults + alone.faults
    sys.stdout.write(f"{screen(story, block, alone, faults)}  ({time.monotonic() - begun:.0f} s)\n")
    return 1 if faults else 0


if __name__ == "__main__":
    ending.run(main)
