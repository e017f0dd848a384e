"""Converts settings of pools to messages and back, field by field, by name."""

from dataclasses import asdict
from typing import Any

from tmem_proto.v1 import tmem_pb2 as pb
from tmemd.store.api import PoolSettings

_LEFT_OUT: dict[str, Any] = {"kind": "", "weight": 0}
"""Values of these fields if a message leaves them out; all others have their defaults."""


def settings_from(message: pb.PoolSettings) -> PoolSettings:
    """The settings that are asked for; a weight of 0 leaves that to the daemon."""
    given = {field.name: value for field, value in message.ListFields()}
    return PoolSettings(**_LEFT_OUT | given)


def settings_to(settings: PoolSettings) -> pb.PoolSettings:
    return pb.PoolSettings(**asdict(settings))
