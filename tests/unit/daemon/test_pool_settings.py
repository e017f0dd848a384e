"""Settings of pools: written once in the daemon, and every one in the messages."""

from contextlib import closing
from dataclasses import fields

import pytest

from tmem_proto.limits import PAGE_SIZES
from tmem_proto.v1 import tmem_pb2 as pb
from tmemd.config.settings import Config
from tmemd.messages.settings import settings_from, settings_to
from tmemd.store.api import PoolSettings, Store
from tmemd.store.engine_store import EngineStore
from tmemd.store.null_store import NullStore

WHOLE = PoolSettings(
    kind="ephemeral",
    codec="zstd:3",
    allocator="zsmalloc",
    page_size=8192,
    quota=1 << 40,
    weight=3,
    shared=True,
    inclusive=True,
    max_zpage=2048,
    owner="guest-7",
)


def test_the_messages_have_every_setting() -> None:
    assert {field.name for field in fields(PoolSettings)} == set(pb.PoolSettings.DESCRIPTOR.fields_by_name)


def test_a_message_has_settings_whole() -> None:
    assert settings_from(settings_to(WHOLE)) == WHOLE


def test_what_a_message_leaves_out_is_the_default_and_the_weight_is_the_daemons_to_say() -> None:
    assert settings_from(pb.PoolSettings(kind="persistent")) == PoolSettings(kind="persistent", weight=0)
    assert settings_from(pb.PoolSettings()).kind == ""


@pytest.mark.parametrize("kind", [EngineStore, NullStore])
def test_a_store_takes_the_page_sizes_of_the_protocol_and_no_others(kind: type[EngineStore] | type[NullStore]) -> None:
    def is_taken(store: Store, size: int) -> bool:
        try:
            store.create_pool(f"of {size}", PoolSettings(kind="persistent", page_size=size))
        except ValueError:
            return False
        return True

    with closing(kind(Config(memory=16 << 20))) as store:
        assert [size for size in (2**power for power in range(24)) if is_taken(store, size)] == [*PAGE_SIZES]
