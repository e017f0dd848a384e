"""Messages serialized by hand, so that their pages are not copied repeatedly."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SerializedMessage:
    """A serialized message, in parts that are joined once."""

    parts: tuple[bytes, ...]
