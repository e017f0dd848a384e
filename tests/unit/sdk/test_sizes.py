import pytest

from tmem._model.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (0, 0),
        (4096, 4096),
        ("4096", 4096),
        ("4096B", 4096),
        ("64MiB", 64 << 20),
        ("2GiB", 2 << 30),
        ("10MB", 10_000_000),
        ("1kB", 1000),
        ("1KiB", 1024),
        ("1TiB", 1 << 40),
        ("1.5 GiB", 3 << 29),
        (" 64 mib ", 64 << 20),
        ("64K", 64 << 10),
        ("512M", 512 << 20),
        ("2G", 2 << 30),
        ("2g", 2 << 30),
        ("2Gi", 2 << 30),
        ("2gib", 2 << 30),
        ("2GB", 2_000_000_000),
        ("2gb", 2_000_000_000),
        ("1.5 T", 3 << 39),
    ],
)
def test_a_size_is_bytes_or_a_number_with_a_unit(text: int | str, size: int) -> None:
    assert parse_size(text, "memory") == size


@pytest.mark.parametrize(
    "text", ["", "MiB", "64 parsecs", "-1MiB", "1e6", "0x10", "64Mo", "Gi", "1,5GiB", "٣MiB", "1.2.3B", "9" * 5000]
)
def test_any_other_string_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="memory is"):
        parse_size(text, "memory")


def test_a_size_is_never_negative() -> None:
    with pytest.raises(ValueError, match="quota is -1"):
        parse_size(-1, "quota")


def test_a_size_is_whole() -> None:
    with pytest.raises(ValueError, match="whole number of bytes"):
        parse_size("0.3KiB", "memory")


@pytest.mark.parametrize("size", [True, 1.5, None, b"64MiB"])
def test_other_types_are_refused(size: object) -> None:
    with pytest.raises(TypeError, match="memory must be"):
        parse_size(size, "memory")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["0B", "1B", "4KiB", "256MiB", "3GiB", "1TiB", "1025B"])
def test_a_formatted_size_parses_back(text: str) -> None:
    assert format_size(parse_size(text, "size")) == text
