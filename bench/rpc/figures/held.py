"""Resident memory of the server for each page it holds, everything counted, by codec."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bench.lib.corpus import PAGE
from bench.lib.figures import Figure
from bench.lib.servers import Server, Tmemd
from bench.rpc.clients import BATCH, Client, Tmem
from bench.rpc.figures.batches import client_of
from bench.rpc.setting import Setting, against_better, peers, say

_CODECS = {"held.lz4": "lz4", "held.zstd": "zstd:1"}


def measure(setting: Setting) -> Iterator[Figure]:
    """The same pages to each server, once: memory does not vary from run to run as time does."""
    count = setting.held_pages
    with peers() as others:
        theirs = {}
        for server in others.values():
            client = client_of(server)
            theirs[client.name] = [_bytes_a_page(setting, client, server)]
    for name, codec in _CODECS.items():
        with Tmemd(memory=str(count * PAGE + (256 << 20))) as daemon:
            ours = [_bytes_a_page(setting, Tmem(daemon.address, codec), daemon)]
        yield from against_better(setting, name, "bytes resident/page", ours, theirs, more_is_better=False)


def _bytes_a_page(setting: Setting, client: Client, server: Server) -> float:
    say(f"  filling {client.name}")
    with contextlib.closing(client):
        for first in range(0, setting.held_pages, BATCH):
            if not client.put(setting.pages.batch(first, min(BATCH, setting.held_pages - first))):
                raise RuntimeError(f"{client.name} did not store all that it was given")
        for number in range(0, setting.held_pages, max(setting.held_pages // 64, 1)):
            if client.get([number]) != setting.pages.batch(number, 1):
                raise RuntimeError(f"{client.name} has lost page {number}")
        return server.resident_bytes() / setting.held_pages
