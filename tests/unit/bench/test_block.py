"""What `make bench-block` and the demo measure the block front with: a SAN's stand-in, the client, traces, an image."""

import shutil
from pathlib import Path

import pytest

from bench.block import fio, image
from bench.block.san import traces
from bench.block.san.volume import San
from bench.block.wire import Connection
from bench.lib.corpus import PAGE

MIB = 1 << 20


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "volume"
    path.write_bytes(b"".join(number.to_bytes(8, "big") * (PAGE // 8) for number in range(64)))
    return path


def test_the_stand_in_for_a_san_serves_its_image_slowly_and_counts(volume: Path) -> None:
    with San(volume, stand_in=True) as slow:
        with Connection(str(slow.socket)) as connection:
            assert connection.size == 64 * PAGE
            assert connection.read(5 * PAGE + 8, 16) == (5).to_bytes(8, "big") * 2
            connection.write_all([(7 * PAGE, b"a" * PAGE), (9 * PAGE, b"b" * PAGE)])
            assert connection.read(6 * PAGE, 2 * PAGE) == (6).to_bytes(8, "big") * (PAGE // 8) + b"a" * PAGE
            with pytest.raises(OSError, match="answered with an error"):
                connection.read(64 * PAGE, 1)
        served = slow.served()
    assert (served.reads, served.read_bytes) == (2, 16 + 2 * PAGE)
    assert volume.read_bytes()[9 * PAGE : 10 * PAGE] == b"b" * PAGE


@pytest.mark.skipif(shutil.which("nbdkit") is None, reason="there is no nbdkit")
def test_nbdkit_as_a_san_counts_the_same(volume: Path) -> None:
    with San(volume) as slow:
        with Connection(str(slow.socket)) as connection:
            assert connection.read(5 * PAGE, PAGE) == (5).to_bytes(8, "big") * (PAGE // 8)
        served = slow.served()
    assert (served.reads, served.read_bytes) == (1, PAGE)


@pytest.mark.skipif(fio.missing() is not None, reason=str(fio.missing()))
def test_fio_writes_the_pages_that_it_is_given(volume: Path) -> None:
    pages = b"".join(bytes([number]) * PAGE for number in range(1, 9))
    with San(volume) as slow:
        found = fio.run_with_pages(slow.uri, fio.Job("randwrite", PAGE, 4, 64 * PAGE, 1.0), pages)
        assert found.iops > 0
    written = volume.read_bytes()
    assert {written[at : at + PAGE] for at in range(0, len(written), PAGE)} & {
        pages[at : at + PAGE] for at in range(0, len(pages), PAGE)
    }


def test_a_boot_reads_nothing_twice_and_the_same_each_time() -> None:
    trace = traces.boot(64 * MIB, 8 * MIB, 3)
    assert trace == traces.boot(64 * MIB, 8 * MIB, 3)
    assert sum(length for _, _, length in trace) == 8 * MIB
    touched = [page for _, offset, length in trace for page in range(offset // PAGE, (offset + length) // PAGE)]
    assert len(touched) == len(set(touched)) == 8 * MIB // PAGE


def test_a_host_does_not_ask_for_what_its_own_cache_has() -> None:
    everything_cached = [offset for write, offset, _ in traces.skewed(64, 64, 5000, 1) if not write]
    assert len(everything_cached) == len(set(everything_cached))
    through = list(traces.skewed(64, 16, 5000, 1))
    writes = sum(write for write, _, _ in through)
    assert 900 < writes < 1100
    assert len(through) - writes > len(everything_cached)


def test_an_image_is_given_without_its_zeros(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(MIB) + b"x" * PAGE + bytes(MIB - PAGE))
    made = image.Image(path, "a page")
    assert [(offset, len(piece)) for offset, piece in made.pieces()] == [(MIB, MIB)]
    assert made.pages(MIB) == b"x" * PAGE
