"""Standard error that nobody reads: nothing waits for it, and what was lost is told."""

import fcntl
import os

from tests.lib.support import PATIENCE
from tmemd.base.log_streams import MOST_BYTES, BackgroundWriter


def test_what_nobody_reads_is_dropped_and_counted() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    outlet = BackgroundWriter(writer, lambda dropped: f"{dropped} dropped\n".encode())
    line = b"x" * 1023 + b"\n"
    for _ in range(2 * MOST_BYTES // len(line)):
        outlet.write(line)  # never waits, else this is no end
    outlet.flush()
    with open(reader, "rb") as lines:
        kept = 0
        while (read := lines.readline()) == line:
            kept += 1
        assert read.endswith(b" dropped\n")
        dropped = int(read.split()[0])
        outlet.write(b"more\n")
        rest = lines.readline()
        while rest == line:
            kept += 1
            rest = lines.readline()
        assert rest == b"more\n"
    assert dropped > 0
    assert kept + dropped == 2 * MOST_BYTES // len(line)
    os.close(writer)


def test_a_reader_that_is_gone_holds_nothing_up() -> None:
    reader, writer = os.pipe()
    outlet = BackgroundWriter(writer)
    os.close(reader)
    for _ in range(100):
        outlet.write(b"x" * 1000)
    outlet.flush()
    assert PATIENCE
    os.close(writer)
