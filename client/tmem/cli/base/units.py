"""What the numbers of `Store.stats` and `Pool.stats` are, and their units: by group, in the order they are shown."""

from __future__ import annotations

from tmem._model.outcome import REFUSALS

GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "Memory": {
        "memory_bytes": ("bytes", "the limit"),
        "used_bytes": ("bytes", "in use, everything counted"),
        "payload_bytes": ("bytes", "compressed pages"),
        "footprint_bytes": ("bytes", "frames of the pools"),
        "footprint_frames": ("frames", "the same"),
        "metadata_bytes": ("bytes", "index, tables, headers"),
        "table_bytes": ("bytes", "of these, tables"),
        "slot_header_bytes": ("bytes", "headers of stored pages"),
        "reserve_bytes": ("bytes", "freed, kept for the next put"),
        "promised_bytes": ("bytes", "reserved for pools and not used yet"),
        "full": ("yes/no", "new persistent pages are refused"),
        "limit_hits": ("times", "the limit was reached"),
    },
    "Content": {
        "pages": ("pages", "held"),
        "objects": ("objects", "with pages"),
        "pools": ("pools", ""),
        "shards": ("shards", "locked apart"),
        "same_filled_pages": ("pages", "of one 8-byte pattern"),
        "raw_pages": ("pages", "kept as they are"),
    },
    "Puts": {
        "puts_stored": ("pages", "stored"),
        "puts_replaced": ("pages", "stored in place of older ones"),
        "puts_old_flushed": ("pages", "flushed by a refused put"),
        **{f"refused_{reason}": ("pages", f"refused: {about}") for reason, about in REFUSALS.items()},
    },
    "Gets and flushes": {
        "gets_hit": ("pages", "found"),
        "gets_miss": ("pages", "not there"),
        "gets_corrupt": ("pages", "failed their checksum"),
        "corrupt_pages": ("pages", "failed their checksum, anywhere"),
        "flushes": ("calls", "that flush"),
        "flushed_pages": ("pages", "flushed"),
        "flushed_objects": ("objects", "flushed"),
    },
    "Evictions": {
        "evicted_pages": ("pages", "evicted"),
        "evicted_memory": ("pages", "of these, for memory"),
        "evicted_quota": ("pages", "of these, by a quota"),
        "evicted_relinquish": ("pages", "of these, to give memory back"),
        "evicted_frames": ("frames", "freed so"),
    },
    "Compaction": {
        "compactions": ("times", "compacted"),
        "moved_pages": ("pages", "moved"),
        "compacted_frames": ("frames", "freed so"),
    },
    "Recovery": {
        "recoveries": ("shards", "rebuilt after a death"),
        "slots_replayed": ("slots", "read for that"),
        "slots_dropped": ("slots", "dropped by that"),
        "lock_waits": ("times", "a lock was waited for"),
        "lock_recoveries": ("locks", "taken over from the dead"),
        "generation": ("times", "the arena was attached anew"),
    },
}
"""Group, statistic, its unit and meaning."""

OTHER = "Other"


def unit_of(name: str) -> str:
    """The unit of a number that is in no group: a newer server may count more than is known here."""
    for end, unit in (("_bytes", "bytes"), ("_frames", "frames"), ("_pages", "pages"), ("_seconds", "seconds")):
        if name.endswith(end):
            return unit
    return {"sessions": "sessions", "late_messages": "messages", "calls": "calls"}.get(name, "count")


def grouped(stats: dict[str, int]) -> dict[str, list[tuple[str, int, str, str]]]:
    """The statistics by group, each with value, unit and meaning; what no group knows comes last."""
    known = {
        group: [(name, stats[name], unit, about) for name, (unit, about) in entries.items() if name in stats]
        for group, entries in GROUPS.items()
    }
    named = {name for entries in GROUPS.values() for name in entries}
    known[OTHER] = [(name, value, unit_of(name), "") for name, value in sorted(stats.items()) if name not in named]
    return {group: entries for group, entries in known.items() if entries}
