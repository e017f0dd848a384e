import pytest

import tmem


def test_an_oid_of_text_is_24_bytes_and_never_changes() -> None:
    assert tmem.oid("any text").hex() == "a82a2aa7755a9ffe20992de1a809c3edceeec64b4fb3f63f"
    assert tmem.oid("any text") != tmem.oid("any text ")


def test_any_text_has_an_oid() -> None:
    assert len(tmem.oid("")) == len(tmem.oid("ünïcode \udcff")) == 24


def test_only_text_has_an_oid() -> None:
    with pytest.raises(TypeError, match="text must be a str, not bytes"):
        tmem.oid(b"bytes")  # type: ignore[arg-type]
