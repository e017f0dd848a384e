"""The handshake as a strict NBD client has it: byte for byte what it is told, and no reply taken that breaks a rule."""

from __future__ import annotations

import struct
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from tests.block.lib.client import Client, Export
from tests.block.lib.protocol import (
    ALLOCATION,
    FIXED,
    GREETING,
    NO_ZEROES,
    OPTION_MAGIC,
    OPTION_REPLY_MAGIC,
    Can,
    Info,
    Opt,
    Rep,
)
from tests.block.lib.stream import PATIENCE, BrokenError, Stream, connect, must

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence


class Reply(NamedTuple):
    """One reply to an option."""

    kind: int
    data: bytes


class Wire(Stream):
    """A connection in its handshake."""

    def __init__(self, address: str, timeout: float = PATIENCE) -> None:
        super().__init__(connect(address, timeout))
        try:
            greeting = self.receive(18)
        except OSError:
            self.close()
            raise
        must(greeting[:16] == GREETING, greeting)
        self.flags = int.from_bytes(greeting[16:], "big")
        must(self.flags & FIXED, self.flags)
        must(not self.flags & ~(FIXED | NO_ZEROES), self.flags)
        self.zeroes = True
        self.structured = False
        self.contexts: dict[str, int] = {}

    def __enter__(self) -> Wire:
        return self

    def begin(self, flags: int = FIXED | NO_ZEROES) -> Wire:
        self.zeroes = not flags & NO_ZEROES
        self.send(struct.pack(">I", flags))
        return self

    def ask(self, option: int, data: bytes = b"", *, length: int | None = None, magic: int = OPTION_MAGIC) -> None:
        """Send an option, with a length that may be a lie."""
        self.send(struct.pack(">QII", magic, option, len(data) if length is None else length) + data)

    def reply(self, option: int) -> Reply:
        magic, echoed, kind, length = struct.unpack(">QIII", self.receive(20))
        must(magic == OPTION_REPLY_MAGIC, hex(magic))
        must(echoed == option, "a reply to", echoed, "not to", option)
        must(length <= 65536, "a reply of", length)
        data = self.receive(length)
        must(kind in list(Rep), "a reply of type", hex(kind))
        if kind >= Rep.ERR_UNSUP:
            data.decode()
        return Reply(kind, data)

    def option(self, option: int, data: bytes = b"", *, length: int | None = None) -> list[Reply]:
        """An option and all replies to it; the last is an acknowledgement or an error."""
        self.ask(option, data, length=length)
        replies = [self.reply(option)]
        while replies[-1].kind in (Rep.SERVER, Rep.INFO, Rep.META_CONTEXT):
            replies.append(self.reply(option))
        return replies

    def refused(self, option: int, data: bytes = b"", *, length: int | None = None) -> int:
        """The error that an option is answered with, and nothing else."""
        replies = self.option(option, data, length=length)
        must(len(replies) == 1 and replies[0].kind >= Rep.ERR_UNSUP, option, replies)
        return replies[0].kind

    def names(self) -> dict[str, str]:
        """Exports, and what is said of each."""
        *listed, last = self.option(Opt.LIST)
        must(last == Reply(Rep.ACK, b""), last)
        found = {}
        for kind, data in listed:
            must(kind == Rep.SERVER, kind)
            (length,) = struct.unpack_from(">I", data)
            must(length <= len(data) - 4, "a name of", length, "in", len(data))
            found[data[4 : 4 + length].decode()] = data[4 + length :].decode()
        return found

    def encrypt(self, context: ssl.SSLContext, host: str = "localhost") -> Wire:
        """Go over to TLS."""
        replies = self.option(Opt.STARTTLS)
        must(replies == [Reply(Rep.ACK, b"")], replies)
        self.sock = context.wrap_socket(self.sock, server_hostname=host)
        return self

    def use_structured(self) -> Wire:
        replies = self.option(Opt.STRUCTURED_REPLY)
        must(replies == [Reply(Rep.ACK, b"")], replies)
        self.structured = True
        return self

    def meta(self, option: int, name: str, *queries: str) -> dict[str, int]:
        """The contexts that an option on contexts gives."""
        *given, last = self.option(option, meta_query(name, *queries))
        must(last == Reply(Rep.ACK, b""), last)
        found = {}
        for kind, data in given:
            must(kind == Rep.META_CONTEXT and len(data) > 4, kind, data)
            found[data[4:].decode()] = int.from_bytes(data[:4], "big")
        if option == Opt.SET_META_CONTEXT:
            must(len(set(found.values())) == len(found), "ids are told apart", found)
            self.contexts = found
        return found

    def describe(self, option: int, name: str, *wanted: int) -> Export:
        """The export that INFO or GO tells of."""
        *given, last = self.option(option, info_query(name, *wanted))
        must(last == Reply(Rep.ACK, b""), last)
        export = Export(contexts=self.contexts)
        for kind, data in given:
            must(kind == Rep.INFO, kind)
            _take_info(export, data)
        must(export.size >= 0, "no NBD_INFO_EXPORT")
        return export

    def go(self, name: str, *wanted: int) -> Client:
        export = self.describe(Opt.GO, name, *wanted)
        return Client(self.sock, export, self.structured)

    def export_name(self, name: str) -> Client:
        self.ask(Opt.EXPORT_NAME, name.encode())
        size, flags = struct.unpack(">QH", self.receive(10))
        if self.zeroes:
            must(self.receive(124) == bytes(124), "124 bytes that are not zeros")
        return Client(self.sock, Export(size, _flags(flags), contexts=self.contexts), self.structured)


def info_query(name: str | bytes, *wanted: int) -> bytes:
    """The data of INFO and GO."""
    name = name.encode() if isinstance(name, str) else name
    return struct.pack(">I", len(name)) + name + struct.pack(f">H{len(wanted)}H", len(wanted), *wanted)


def meta_query(name: str, *queries: str) -> bytes:
    """The data of LIST_META_CONTEXT and SET_META_CONTEXT."""
    parts = [_text(name), struct.pack(">I", len(queries)), *map(_text, queries)]
    return b"".join(parts)


def opened(
    address: str,
    name: str,
    *,
    structured: bool = True,
    contexts: Sequence[str] = (ALLOCATION,),
    timeout: float = PATIENCE,
) -> Client:
    """A client of an export, with all that was asked for agreed on."""
    with ExitStack() as stack:
        wire = stack.enter_context(Wire(address, timeout)).begin()
        if structured:
            wire.use_structured()
            if contexts:
                given = wire.meta(Opt.SET_META_CONTEXT, name, *contexts)
                must(set(given) == set(contexts), given)
        client = wire.go(name, Info.BLOCK_SIZE)
        stack.pop_all()
        return client


def _text(text: str) -> bytes:
    return struct.pack(">I", len(text.encode())) + text.encode()


def _flags(flags: int) -> Can:
    must(flags & Can.HAS_FLAGS, "flags without HAS_FLAGS", flags)
    must(not flags & ~sum(Can), "flags that nobody knows", flags)
    return Can(flags)


def _take_info(export: Export, data: bytes) -> None:
    (kind,) = struct.unpack_from(">H", data)
    match kind:
        case Info.EXPORT:
            must(export.size < 0, "NBD_INFO_EXPORT twice")
            must(len(data) == 12, "NBD_INFO_EXPORT of", len(data))
            export.size, flags = struct.unpack(">QH", data[2:])
            export.can = _flags(flags)
        case Info.BLOCK_SIZE:
            must(len(data) == 14, "NBD_INFO_BLOCK_SIZE of", len(data))
            smallest, preferred, largest = export.blocks = struct.unpack(">III", data[2:])
            must(smallest.bit_count() == 1 and smallest <= 65536, "the smallest block", smallest)
            must(preferred.bit_count() == 1 and preferred >= max(512, smallest), "the preferred block", preferred)
            must(largest == 2**32 - 1 or largest % smallest == 0, "the largest block", largest)
            must(largest >= 1 << 20, "the largest block", largest)
        case Info.NAME | Info.DESCRIPTION:
            export.texts[kind] = data[2:].decode()
        case _:
            raise BrokenError("an information of type", kind)
