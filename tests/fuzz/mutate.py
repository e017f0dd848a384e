"""Messages gone wrong: fields with values at the edges of what they hold, and bytes that are hardly a message."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor import FieldDescriptor as Field

if TYPE_CHECKING:
    from google.protobuf.message import Message

_EDGES = (0, 1, 2, 3, 63, 64, 127, 128, 255, 256, 4095, 4096, 4097, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)
_LARGE = (2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
_TEXTS = (
    "",
    "x",
    "fuzzed",
    "*",
    "é" * 32,
    "a" * 64,
    "a" * 65,
    "a" * 4000,
    "\0",
    "../x",
    "lz4:0",
    "lz4hc:2",
    "zstd:99",
    "persistent",
)
_RANGES = {
    Field.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    Field.CPPTYPE_UINT32: (0, 2**32 - 1),
    Field.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    Field.CPPTYPE_UINT64: (0, 2**64 - 1),
    Field.CPPTYPE_ENUM: (0, 100),
}
_MOST_ITEMS = 600


class Mutator:
    """Makes bad messages of good ones, the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)

    def bytes_of(self, message: Message) -> bytes:
        """A message with fields changed, or its bytes changed, or bytes alone."""
        kind = self.dice.random()
        if kind < 0.7:
            changed = type(message)()
            changed.CopyFrom(message)
            for _ in range(self.dice.choice((1, 1, 2, 4))):
                self._change(changed)
            return changed.SerializeToString()
        if kind < 0.95:
            return self._damage(message.SerializeToString())
        return self.dice.randbytes(self.dice.choice((0, 1, 5, 30, 300)))

    def _change(self, message: Message) -> None:
        fields: list[Any] = list(message.DESCRIPTOR.fields)
        if not fields:
            return
        field = self.dice.choice(fields)
        if field.message_type is not None and not field.is_repeated:
            self._change(getattr(message, field.name))
        elif field.is_repeated:
            self._change_list(message, field)
        else:
            setattr(message, field.name, self._value(field))

    def _change_list(self, message: Message, field: Any) -> None:
        items: Any = getattr(message, field.name)
        if field.message_type is not None:
            for _ in range(self.dice.choice((1, 2, 40))):
                self._change(items.add())
            return
        match self.dice.choice(("clear", "append", "repeat", "many", "swap")):
            case "clear":
                del items[:]
            case "append":
                items.append(self._value(field))
            case "repeat":
                items.extend(list(items)[:_MOST_ITEMS])
            case "many":
                items.extend(self._value(field) for _ in range(self.dice.randrange(_MOST_ITEMS)))
            case "swap":
                if items:
                    items[self.dice.randrange(len(items))] = self._value(field)

    def _value(self, field: Any) -> Any:
        dice = self.dice
        match field.cpp_type:
            case Field.CPPTYPE_BOOL:
                return dice.random() < 0.5
            case Field.CPPTYPE_DOUBLE:
                return dice.choice((0.0, -1.0, 0.5, 1e308, float("inf"), float("nan")))
            case Field.CPPTYPE_STRING if field.type == Field.TYPE_BYTES:
                return dice.randbytes(dice.choice((0, 1, 22, 23, 24, 25, 4095, 4096, 4097, 100_000)))
            case Field.CPPTYPE_STRING:
                return dice.choice(_TEXTS)
            case kind:
                low, high = _RANGES[kind]
                return dice.choice([edge for edge in (*_EDGES, *_LARGE, dice.getrandbits(63)) if low <= edge <= high])

    def _damage(self, data: bytes) -> bytes:
        damaged = bytearray(data)
        for _ in range(self.dice.choice((1, 2, 8))):
            at = self.dice.randrange(len(damaged) + 1)
            match self.dice.choice(("flip", "cut", "insert", "repeat")):
                case "flip" if at < len(damaged):
                    damaged[at] ^= 1 << self.dice.randrange(8)
                case "cut":
                    del damaged[at : at + self.dice.choice((1, 8, 1000))]
                case "insert":
                    damaged[at:at] = self.dice.randbytes(self.dice.choice((1, 8)))
                case "repeat":
                    damaged[at:at] = damaged[at : at + 200]
        return bytes(damaged)
