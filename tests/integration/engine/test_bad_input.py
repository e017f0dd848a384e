"""Calls that make no sense: a clear error before anything is touched."""

from collections.abc import Callable
from typing import Any

import pytest

import tmem
from tests.lib.support import PAGE, page, run

Call = Callable[[Any], object]
KEPT = page(7)

WRONG_VALUES: dict[str, tuple[Call, str]] = {
    "page too short": (lambda p: p.put(1, {8: page(8), 7: b"short"}), "5 bytes.*4096"),
    "page too long": (lambda p: p.put(1, {8: page(8), 7: page(7, 8192)}), "8192 bytes.*4096"),
    "page empty": (lambda p: p.put(1, {7: b""}), "0 bytes.*4096"),
    "index negative": (lambda p: p.put(1, {8: page(8), -1: page(7)}), "index is -1"),
    "index too large": (lambda p: p.put(1, {2**32: page(7)}), "index is 4294967296"),
    "index huge": (lambda p: p.get(1, [2**100]), "index is 1267"),
    "index to flush": (lambda p: p.flush(1, [7, 2**32]), "index is 4294967296"),
    "oid negative": (lambda p: p.put(-1, {7: page(8)}), "oid is out of range"),
    "oid too large": (lambda p: p.get(2**192, [7]), "oid is out of range"),
    "oid too long": (lambda p: p.get(b"x" * 25, [7]), "oid is 25 bytes long; at most 24"),
    "range misaligned": (lambda p: p.put_range(1, 7, run(7, 2)[:-1]), "8191.*4096"),
    "range shorter than a page": (lambda p: p.put_range(1, 7, b"x"), "1 .*4096"),
    "range beyond the end": (lambda p: p.put_range(1, 2**32 - 1, run(7, 2)), "4294967295"),
    "range first": (lambda p: p.put_range(1, -1, run(7, 2)), "first is -1"),
    "get_range beyond the end": (lambda p: p.get_range(1, 2**32 - 1, 2), "ends beyond index 4294967295"),
    "get_range count": (lambda p: p.get_range(1, 0, -1), "count is -1"),
    "has beyond the end": (lambda p: p.has(1, 1, 2**32 - 1 + 1), "count is 4294967296"),
    "into too short": (
        lambda p: p.get_range(1, 7, 2, bytearray(PAGE)),
        "into is 4096 bytes long; the range takes 8192",
    ),
    "into too long": (
        lambda p: p.get_range(1, 7, 1, bytearray(2 * PAGE)),
        "into is 8192 bytes long; the range takes 4096",
    ),
    "into read-only": (lambda p: p.get_range(1, 7, 1, KEPT), "into is read-only"),
    "into strided": (lambda p: p.get_range(1, 7, 1, memoryview(bytearray(2 * PAGE))[::2]), "into is not C-contiguous"),
    "buffer strided": (lambda p: p.put_range(1, 7, memoryview(run(7, 2))[::2]), "buffer is not C-contiguous"),
    "page strided": (lambda p: p.put(1, {7: memoryview(run(7, 2))[::2]}), "page is not C-contiguous"),
    "quota negative": (lambda p: setattr(p, "quota", -1), "quota is -1"),
    "weight zero": (lambda p: setattr(p, "weight", 0), "weight is 0"),
}
WRONG_TYPES: dict[str, tuple[Call, str]] = {
    "oid of text": (lambda p: p.put("text", {7: page(8)}), r"oid must be an int or bytes, not str; tmem.oid\(text\)"),
    "oid of None": (lambda p: p.get(None, [7]), "oid must be an int or bytes, not NoneType"),
    "oid of float": (lambda p: p.flush_object(1.0), "oid must be an int or bytes, not float"),
    "index of text": (lambda p: p.put(1, {"7": page(8)}), "index must be an int, not str"),
    "index of float": (lambda p: p.get(1, [7.0]), "index must be an int, not float"),
    "one index": (lambda p: p.get(1, 7), "indices must be an iterable of ints, not an int"),
    "no indices": (lambda p: p.flush(1, None), "not iterable"),
    "page of text": (lambda p: p.put(1, {7: "x" * PAGE}), "page must be bytes or a buffer, not str"),
    "page of None": (lambda p: p.put(1, {7: None}), "page must be bytes or a buffer, not NoneType"),
    "pages in a list": (lambda p: p.put(1, [page(7)]), "pages must be a mapping of index to page, not list"),
    "buffer of text": (lambda p: p.put_range(1, 7, "x" * PAGE), "buffer must be bytes or a buffer, not str"),
    "block of text": (lambda p: p.put_lz4(1, {7: "x"}), "block must be bytes or a buffer, not str"),
    "into of text": (lambda p: p.get_range(1, 7, 1, "x" * PAGE), "into must be bytes or a buffer, not str"),
    "count of text": (lambda p: p.get_range(1, 7, "1"), "count must be an int, not str"),
    "exclusive of int": (lambda p: p.get(1, [7], exclusive=1), "exclusive"),
    "weight of text": (lambda p: setattr(p, "weight", "2"), "weight must be an int, not str"),
}


@pytest.mark.parametrize("case", WRONG_VALUES)
def test_a_wrong_value_is_a_value_error_and_touches_nothing(persistent: tmem.Pool, case: str) -> None:
    persistent.put(1, {7: KEPT})
    call, message = WRONG_VALUES[case]
    with pytest.raises(ValueError, match=message):
        call(persistent)
    assert persistent.get(1, range(20)) == {7: KEPT}


@pytest.mark.parametrize("case", WRONG_TYPES)
def test_a_wrong_type_is_a_type_error_and_touches_nothing(persistent: tmem.Pool, case: str) -> None:
    persistent.put(1, {7: KEPT})
    call, message = WRONG_TYPES[case]
    with pytest.raises(TypeError, match=message):
        call(persistent)
    assert persistent.get(1, range(20)) == {7: KEPT}


BAD_SETTINGS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "kind": ({"kind": "eternal"}, ValueError, "neither persistent nor ephemeral"),
    "codec": ({"codec": "gzip"}, ValueError, "is not one of lz4"),
    "codec parameter": ({"codec": "lz4:fast"}, ValueError, "is not one of lz4"),
    "lz4 acceleration": ({"codec": "lz4:0"}, ValueError, "1 to 65537"),
    "lz4hc level": ({"codec": "lz4hc:2"}, ValueError, "lz4hc level is 2; it must be 3 to 12"),
    "lz4hc level high": ({"codec": "lz4hc:13"}, ValueError, "lz4hc level is 13; it must be 3 to 12"),
    "lz4hc level of text": ({"codec": "lz4hc:best"}, ValueError, "lz4hc:best. is not one of lz4, .*lz4hc:LEVEL"),
    "zstd level": ({"codec": "zstd:20"}, ValueError, "-7 to 19"),
    "allocator": ({"allocator": "malloc"}, ValueError, "neither zsmalloc nor zbud"),
    "page size": ({"page_size": 5000}, ValueError, "page_size is 5000"),
    "page size huge": ({"page_size": "4GiB"}, ValueError, "page_size is 4294967296"),
    "quota": ({"quota": "lots"}, ValueError, "quota is 'lots'"),
    "weight": ({"weight": 0}, ValueError, "weight is 0"),
    "weight negative": ({"weight": -1}, ValueError, "weight is -1"),
    "shared persistent": ({"shared": True}, ValueError, "for ephemeral pools"),
    "inclusive persistent": ({"inclusive": True}, ValueError, "for ephemeral pools"),
    "owner": ({"owner": "x" * 65}, ValueError, "owner is longer than 64 bytes"),
    "kind of int": ({"kind": 1}, TypeError, "kind"),
    "codec of None": ({"codec": None}, TypeError, "codec"),
    "weight of text": ({"weight": "1"}, TypeError, "weight must be an int"),
    "shared of int": ({"kind": "ephemeral", "shared": 1}, TypeError, "shared"),
    "page size of float": ({"page_size": 4096.0}, TypeError, "page_size must be"),
    "owner of bytes": ({"owner": b"me"}, TypeError, "owner"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_settings_make_no_pool(store: tmem.Store, case: str) -> None:
    settings, error, message = BAD_SETTINGS[case]
    with pytest.raises(error, match=message):
        store.pool("bad", **settings)
    assert store.pools() == []


@pytest.mark.parametrize("name", ["", "x" * 65, "ü" * 33])
def test_a_bad_name_makes_no_pool(store: tmem.Store, name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        store.pool(name)
    assert store.pools() == []


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"memory": "1KiB"}, ValueError, "memory"),
        ({"memory": -1}, ValueError, "memory is -1"),
        ({"memory": None}, TypeError, "memory must be"),
        ({"memory": 2**70}, ValueError, "memory is"),
        ({"memory": "4MiB", "shards": 3}, ValueError, "shards|power of two"),
        ({"memory": "4MiB", "shards": 0}, ValueError, "shards is 0"),
        ({"memory": "4MiB", "accept_threshold": 0}, ValueError, "accept_threshold"),
        ({"memory": "4MiB", "accept_threshold": 101}, ValueError, "accept_threshold"),
        ({"memory": "4MiB", "accept_threshold": 2**40}, ValueError, "accept_threshold"),
        ({"memory": "4MiB", "arena": 7}, TypeError, "arena"),
        ({"memory": "4MiB", "mlock": "yes"}, TypeError, "mlock"),
    ],
)
def test_a_store_is_not_opened_with_bad_settings(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        tmem.open(**settings)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "ramhost:",
        "ramhost:0",
        "ramhost:65536",
        "ramhost:77 17",
        "grpc://",
        "user@ramhost",
        "unix:/run/tmem.sock",
        "http://ramhost:7717",
        "::1:7717",
        "shm:",
        "shm://",
        "shm://default",
    ],
)
def test_an_address_of_another_kind_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="address is"):
        tmem.connect(address)


def test_an_address_is_text() -> None:
    with pytest.raises(TypeError, match="address must be a str, not int"):
        tmem.connect(7)  # type: ignore[arg-type]
