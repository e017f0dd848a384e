"""Messages that are serialized by hand, so that their pages are not copied into one after another."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SerializedMessage:
    """A message that is serialized already, in parts: its pages were not copied into one message after another."""

    parts: tuple[bytes, ...]
