"""Settings of pools and injections, as messages and as the daemon has them."""

from grpc import StatusCode

from tmem_proto.v1 import admin_pb2
from tmem_proto.v1 import tmem_pb2 as pb
from tmemd.config.faults import Injection
from tmemd.store.api import Settings

_STATUS: dict[int, StatusCode] = {code.value[0]: code for code in StatusCode if code is not StatusCode.OK}


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


def injection_from(message: admin_pb2.Injection) -> Injection:
    if message.code and message.code not in _STATUS:
        raise ValueError(f"there is no status {message.code}")
    return Injection(
        method=message.method,
        delay_ms=message.delay_ms,
        code=_STATUS.get(message.code),
        fraction=message.fraction or 1.0,
        after=message.after,
    )


def injection_to(injection: Injection) -> admin_pb2.Injection:
    return admin_pb2.Injection(
        method=injection.method,
        delay_ms=injection.delay_ms,
        code=injection.code.value[0] if injection.code else 0,
        fraction=injection.fraction,
        after=injection.after,
    )
