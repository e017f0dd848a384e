"""Settings of pools, as messages and as the daemon has them: field by field, by their names."""

from dataclasses import asdict
from typing import Any

from tmem_proto.v1 import tmem_pb2 as pb
from tmemd.store.api import PoolSettings

_LEFT_OUT: dict[str, Any] = {"kind": "", "weight": 0}
"""What a message says that leaves these out; all else has its default then."""


def settings_from(message: pb.PoolSettings) -> PoolSettings:
    """Settings as they are asked for: with a weight of 0 where that is left to the daemon."""
    given = {field.name: value for field, value in message.ListFields()}
    return PoolSettings(**_LEFT_OUT | given)


def settings_to(settings: PoolSettings) -> pb.PoolSettings:
    return pb.PoolSettings(**asdict(settings))
