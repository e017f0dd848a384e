"""Cleancache over the embedded engine."""

import uuid

import pytest

import tmem
from tests.lib.support import page

KEY, OTHER = b"k" * 24, b"o" * 24


@pytest.fixture
def cache(store: tmem.Store) -> tmem.Cleancache:
    return tmem.Cleancache(store)


def test_a_page_of_a_private_file_system_is_given_away(cache: tmem.Cleancache) -> None:
    fs = cache.init_fs()
    cache.put_page(fs, KEY, 7, page(7))
    assert [cache.get_page(fs, KEY, 7), cache.get_page(fs, KEY, 7)] == [page(7), None]


def test_a_shared_file_system_is_one_for_all_and_keeps_pages(store: tmem.Store) -> None:
    name = uuid.uuid4()
    one, two = tmem.Cleancache(store), tmem.Cleancache(store)
    fs_one, fs_two = one.init_shared_fs(name), two.init_shared_fs(name.bytes)
    one.put_page(fs_one, KEY, 7, page(7))
    assert two.get_page(fs_two, KEY, 7) == one.get_page(fs_one, KEY, 7) == page(7)
    two.invalidate_page(fs_two, KEY, 7)
    assert one.get_page(fs_one, KEY, 7) is None
    one.put_page(fs_one, KEY, 8, page(8))
    one.invalidate_fs(fs_one)
    assert two.get_page(fs_two, KEY, 8) == page(8)


def test_private_file_systems_are_apart(cache: tmem.Cleancache) -> None:
    one, two = cache.init_fs(), cache.init_fs("8KiB")
    cache.put_page(one, KEY, 7, page(7))
    assert cache.get_page(two, KEY, 7) is None
    cache.put_page(two, KEY, 7, page(7, 8192))
    assert cache.get_page(two, KEY, 7) == page(7, 8192)


def test_an_inode_goes_at_once_and_others_stay(cache: tmem.Cleancache) -> None:
    fs = cache.init_fs()
    for key in (KEY, OTHER):
        cache.put_page(fs, key, 0, page(0))
        cache.put_page(fs, key, 999, page(1))
    cache.invalidate_inode(fs, KEY)
    assert [cache.get_page(fs, KEY, 0), cache.get_page(fs, KEY, 999)] == [None, None]
    assert cache.get_page(fs, OTHER, 999) == page(1)


def test_a_file_system_goes_with_its_pool(cache: tmem.Cleancache, store: tmem.Store) -> None:
    fs = cache.init_fs()
    cache.put_page(fs, KEY, 7, page(7))
    cache.invalidate_fs(fs)
    assert store.pools() == []
    with pytest.raises(ValueError, match="file system 0"):
        cache.get_page(fs, KEY, 7)
    with pytest.raises(ValueError, match="file system 0"):
        cache.invalidate_fs(fs)


def test_an_index_beyond_32_bits_is_ignored(cache: tmem.Cleancache) -> None:
    fs = cache.init_fs()
    cache.put_page(fs, KEY, 2**32, page(7))
    assert cache.get_page(fs, KEY, 2**32) is None
    cache.invalidate_page(fs, KEY, 2**32)
    assert cache.get_page(fs, KEY, 0) is None


def test_a_key_is_24_bytes(cache: tmem.Cleancache) -> None:
    fs = cache.init_fs()
    with pytest.raises(ValueError, match="key is 3 bytes long"):
        cache.put_page(fs, b"key", 7, page(7))
    with pytest.raises(TypeError, match="key must be bytes, not str"):
        cache.get_page(fs, "k" * 24, 7)  # type: ignore[arg-type]
