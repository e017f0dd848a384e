"""Settings of pools: written once in the daemon, and every one in the messages."""

from dataclasses import fields

from tmem_proto.v1 import tmem_pb2 as pb
from tmemd.messages.settings import settings_from, settings_to
from tmemd.store.api import PoolSettings

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
