"""What a call costs, by which the event loop decides whether it makes it itself."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from tmemd.config.settings import Config
from tmemd.rpc import call_cost
from tmemd.store.api import Batch, PoolSettings

PAGES = 16


def pool(codec: str) -> Any:
    """A pool as far as its costs go."""
    settings = PoolSettings(kind="persistent", codec=codec)
    return cast("Any", SimpleNamespace(page_size=4096, family=settings.family))


def put(codec: str, *, blocks: bool) -> float:
    """What a put of pages, or of LZ4 blocks, costs a pool of that codec."""
    lengths = [100] * PAGES if blocks else None
    return call_cost.of_put(Batch(bytes(24), range(PAGES), lengths, b""), pool(codec))


@pytest.mark.parametrize("codec", ["lz4hc", "lz4hc:3", "zstd:19"])
def test_blocks_cost_as_much_as_pages_where_they_are_compressed_anew(codec: str) -> None:
    assert put(codec, blocks=True) == put(codec, blocks=False) > put("lz4", blocks=False) > put("lz4", blocks=True)


def test_a_few_pages_of_lz4hc_are_for_a_thread() -> None:
    assert put("lz4:4", blocks=False) <= Config().inline_bytes < put("lz4hc", blocks=True)


@pytest.mark.parametrize("codec", ["lz4", "lz4:8", "lz4hc:9"])
def test_a_get_of_lz4_blocks_is_a_copy_whichever_search_made_them(codec: str) -> None:
    assert call_cost.of_get(PAGES, pool(codec), True) < call_cost.of_get(PAGES, pool(codec), False)
    assert call_cost.of_get(PAGES, pool(codec), False) < call_cost.of_get(PAGES, pool("zstd"), True)
