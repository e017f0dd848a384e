"""Settings of pools, as messages and as the daemon has them."""

from tmem_proto.v1 import tmem_pb2 as pb
from tmemd.store.api import Settings


def settings_from(message: pb.PoolSettings) -> Settings:
    return Settings(
        kind=message.kind,
        codec=message.codec or "lz4",
        allocator=message.allocator,
        page_size=message.page_size or 4096,
        quota=message.quota,
        weight=message.weight,
        shared=message.shared,
        inclusive=message.inclusive,
        max_zpage=message.max_zpage,
        owner=message.owner,
    )


def settings_to(settings: Settings) -> pb.PoolSettings:
    return pb.PoolSettings(
        kind=settings.kind,
        codec=settings.codec,
        allocator=settings.allocator,
        page_size=settings.page_size,
        quota=settings.quota,
        weight=settings.weight,
        shared=settings.shared,
        inclusive=settings.inclusive,
        max_zpage=settings.max_zpage,
        owner=settings.owner,
    )
