"""When certificates expire, beside what a library reads from the same files."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509

from tmemd.security.certificate_expiry import expiry

NOW = datetime.now(UTC).replace(microsecond=0)


def written(path: Path, *ends: datetime) -> str:
    """A file of certificates that expire then."""
    ca = trustme.CA()
    made = [ca.issue_cert("host.example", not_after=end).cert_chain_pems[0] for end in ends]
    path.write_bytes(b"".join(each.bytes() for each in made))
    return str(path)


@pytest.mark.parametrize(
    "end", [NOW + timedelta(days=9), datetime(2049, 12, 31, tzinfo=UTC), datetime(2051, 1, 2, tzinfo=UTC)]
)
def test_the_end_is_what_a_library_reads(tmp_path: Path, end: datetime) -> None:
    path = written(tmp_path / "cert.pem", end)
    (certificate,) = x509.load_pem_x509_certificates(Path(path).read_bytes())
    assert expiry(path) == certificate.not_valid_after_utc.timestamp() == end.timestamp()


def test_the_first_of_several_counts(tmp_path: Path) -> None:
    ends = [NOW + timedelta(days=days) for days in (30, 3, 300)]
    assert expiry(written(tmp_path / "chain.pem", *ends)) == ends[1].timestamp()


def test_an_authority_has_an_end_too(tmp_path: Path) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    end = x509.load_pem_x509_certificate(ca.cert_pem.bytes()).not_valid_after_utc
    assert expiry(str(tmp_path / "ca.pem")) == end.timestamp()


def test_what_is_no_certificate_has_no_end(tmp_path: Path) -> None:
    path = tmp_path / "cert.pem"
    assert expiry(str(path)) is None
    good = Path(written(path, NOW)).read_bytes()
    lines = good.splitlines(keepends=True)
    for bad in (
        b"",
        b"nothing",
        lines[0] + lines[-1],
        lines[0] + b"AAAA\n" + lines[-1],
        lines[0] + b"MIIB\n" + lines[-1],
    ):
        path.write_bytes(bad)
        assert expiry(str(path)) is None, bad
    for cut in range(2, len(lines) - 1):
        path.write_bytes(b"".join(lines[:cut]) + lines[-1])
        assert expiry(str(path)) is None
    path.write_bytes(
        b"".join([lines[0], *(line.translate(bytes(reversed(range(256)))) for line in lines[1:-1]), lines[-1]])
    )
    assert expiry(str(path)) is None
