"""What `stats` and `compact` answer. Sizes are in bytes; what is not a gauge counts from the creation on."""

from typing import TypedDict

from tmem._model.outcome import Refusals


class ClassStats(TypedDict):
    """A size class of zsmalloc that is in use."""

    size: int
    """Bytes of an object, its header included."""
    frames: int
    """Frames of a zspage."""
    objects_per_zspage: int
    zspages: int
    objects: int
    """Objects in use; `capacity` is how many the zspages could hold."""
    capacity: int
    freeable_frames: int
    """The most frames that compaction could free."""


class _Common(Refusals):
    """What a pool counts, and the store as the sum over its pools."""

    # Gauges.
    pages: int
    payload_bytes: int
    footprint_bytes: int
    footprint_frames: int
    same_filled_pages: int
    raw_pages: int
    promised_bytes: int
    """Kept for a pool with a reserve and not used by it yet, index included: nobody else may use it."""
    # Puts, by outcome.
    puts_stored: int
    puts_replaced: int
    puts_old_flushed: int
    # Gets, by outcome.
    gets_hit: int
    gets_miss: int
    gets_corrupt: int
    # Flushes, and what they found.
    flushes: int
    flushed_pages: int
    flushed_objects: int
    # Pages evicted, by cause; the causes sum to `evicted_pages`.
    evicted_memory: int
    evicted_quota: int
    evicted_relinquish: int
    evicted_pages: int
    evicted_frames: int
    # Compaction.
    compactions: int
    moved_pages: int
    compacted_frames: int


class PoolStats(_Common):
    """What one pool holds and has done."""

    size_histogram: list[int]
    """Pages ever stored by compressed size, in 64ths of a page."""
    classes: list[ClassStats]


class StoreStats(_Common):
    """What the whole store holds and has done."""

    memory_bytes: int
    """The limit; `used_bytes` is what is in use, everything counted."""
    used_bytes: int
    metadata_bytes: int
    table_bytes: int
    slot_header_bytes: int
    reserve_bytes: int
    """Freed frames kept for the next put."""
    objects: int
    pools: int
    shards: int
    full: int
    """1 while persistent pages are refused, until use falls below the accept threshold."""
    limit_hits: int
    corrupt_pages: int
    recoveries: int
    """Shards rebuilt from their slots, and the slots that were read and dropped for it."""
    slots_replayed: int
    slots_dropped: int
    lock_waits: int
    lock_recoveries: int
    """Locks taken over from a process that died."""
    generation: int
    """Times the arena was attached by nobody else."""


class Compaction(TypedDict):
    """What a compaction did."""

    moved_pages: int
    freed_bytes: int
