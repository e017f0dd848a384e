"""fio's nbd engine: one job, and what it found."""

from __future__ import annotations

import json
import mmap
import os
import random
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.lib.corpus import PAGE

_EVERY = 0.005
_SPARE = 4 * PAGE


@dataclass(frozen=True)
class Found:
    """Requests and bytes a second of all jobs, and the median time of one request from submission to answer."""

    iops: float
    bytes_per_second: float
    median_us: float
    requests: int


@dataclass(frozen=True)
class Job:
    """What fio is to do: `rw` as fio names it, blocks of `block` bytes, `depth` of them under way in each of `jobs`."""

    rw: str
    block: int
    depth: int
    size: int
    seconds: float | None = None
    jobs: int = 1
    compressible: int | None = None

    def options(self) -> list[str]:
        """As fio's arguments."""
        timed = [] if self.seconds is None else ["--time_based", f"--runtime={round(self.seconds * 1000)}ms"]
        content = [] if self.compressible is None else [f"--buffer_compress_percentage={self.compressible}"]
        return [
            "--name=job",
            "--thread",
            "--group_reporting",
            "--lat_percentiles=1",
            f"--rw={self.rw}",
            f"--bs={self.block}",
            f"--iodepth={self.depth}",
            f"--numjobs={self.jobs}",
            f"--size={self.size}",
            *timed,
            *content,
        ]


def missing() -> str | None:
    """What is not there that it takes; None where all is."""
    if shutil.which("fio") is None:
        return "there is no program fio"
    known = subprocess.run(["fio", "--enghelp"], capture_output=True, text=True, check=False).stdout
    return None if "nbd" in known.split() else "this fio has no nbd engine"


def run(uri: str, job: Job, more: tuple[str, ...] = ()) -> Found:
    """Do it, and read the result."""
    command = ["fio", "--ioengine=nbd", f"--uri={uri}", *job.options(), *more, "--output-format=json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    _, brace, rest = done.stdout.partition("{")
    if done.returncode or not brace:
        raise RuntimeError(f"fio failed: {done.stderr.strip()[-500:]} {done.stdout.strip()[-500:]}")
    return _found(json.loads(brace + rest)["jobs"][0], "write" if "write" in job.rw else "read")


def run_with_pages(uri: str, job: Job, pages: bytes) -> Found:
    """Write real pages. fio itself has only patterns: its buffers are a file that is shared with whoever fills them."""
    with tempfile.NamedTemporaryFile(prefix="tmem-fio-") as file:
        os.truncate(file.name, job.block * job.depth + _SPARE)
        with _fed(Path(file.name), pages):
            return run(uri, job, (f"--iomem=mmapshared:{file.name}", "--scramble_buffers=0"))


@contextmanager
def _fed(path: Path, pages: bytes) -> Iterator[None]:
    """Copy other pages into the file again and again."""
    over, rng = threading.Event(), random.Random(7)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as buffers:

        def feed() -> None:
            while not over.wait(_EVERY):
                for at in range(0, len(buffers), PAGE):
                    page = rng.randrange(len(pages) // PAGE) * PAGE
                    buffers[at : at + PAGE] = pages[page : page + PAGE]

        feeder = threading.Thread(target=feed)
        feeder.start()
        try:
            yield
        finally:
            over.set()
            feeder.join()


def _found(job: dict[str, Any], direction: str) -> Found:
    side = job[direction]
    if job["error"] or not side["total_ios"]:
        raise RuntimeError(f"fio's job failed with error {job['error']}")
    return Found(side["iops"], side["bw_bytes"], side["lat_ns"]["percentile"]["50.000000"] / 1000, side["total_ios"])
