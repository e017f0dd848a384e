//! What lies where: superblock, pool table, shards, and the overlays that give their cells names.
//!
//! ```text
//! file:   | superblock | pool table | shard 0 | shard 1 | ... |        all sparse: only what is used is committed
//! shard:  | header | heaps | object heads | objects | node heads | nodes x 8 | segments | frame table | frames |
//! frames: segments of 2048 frames; each is cut into runs of 1 to 128 frames; a run is a zspage, a zbud page or a raw page
//! ```
//! Sizes are asserted here and pictured in `docs/design.md`. Every offset inside a shard follows from one number,
//! the shard's capacity, so the superblock need only keep that.

#![allow(unsafe_code)] // `unsafe impl Overlay` alone: every overlay is made of cells

use std::mem::offset_of;

use super::locks::lock::LockWord;
use super::locks::owner::{KNOWN_OWNERS, OWNERS_AT};
use super::mapping::cell::{W32, W64};
use super::mapping::map::Overlay;
use crate::outcome::{COUNTERS, Counter};
use crate::types::{FRAME, MAX_POOLS};

/// "tmemarna" in a file's first eight bytes.
pub const MAGIC: u64 = u64::from_le_bytes(*b"tmemarna");
/// Bumped whenever any layout here changes.
pub const VERSION: u32 = 5;
/// The one before, whose arenas are migrated in place: it differs in what a lock is, and knew no owners.
pub const BEFORE: u32 = 4;

const PAGE: u64 = FRAME as u64;
/// Frames to a segment.
pub const SEGMENT_FRAMES: u32 = 2048;
/// Longest run, in frames: two of the largest pages, which is the longest zspage.
pub const MAX_RUN: u32 = 128;
/// Bytes of a frame-table entry; one for each run.
pub const ENTRY: u64 = 32;
/// Bytes of an object record.
pub const OBJECT: u64 = 40;
/// Sizes in which index nodes come, by the pages they hold.
pub const NODE_PAGES: [u32; 8] = [1, 2, 4, 8, 16, 32, 48, 64];
/// Words before an index node's page words.
pub const NODE_HEAD: u32 = 5;
/// Frames of a heap: its counters, then its class table.
pub const HEAP_FRAMES: u64 = 5;
/// Words of a class-table entry.
pub const CLASS_WORDS: u64 = 6;
/// Most segments of a shard: a zhandle has 31 bits of 16-byte units.
pub const MAX_SEGMENTS: u64 = (1 << 31) * 16 / (SEGMENT_FRAMES as u64 * PAGE);
/// Segments of a shard beyond those that its memory fills: every length of run that is in use has one of its own.
const SPARE_SEGMENTS: u64 = 64;
/// Counters that stand at the start of a heap; those that were added since stand at the end of its first frame's cells.
const FIRST_COUNTERS: usize = 26;
/// How far upward an arena can be resized: times its first size.
pub const CEILING: u64 = 4;

/// `PoolRecord::state` of a pool that is in use.
pub const POOL_LIVE: u32 = 1;

/// The first frame of the file.
#[repr(C)]
pub struct Superblock {
    pub magic: W64,
    pub version: W32,
    pub frame: W32,
    /// Fixed at creation: `geometry_crc` covers these three and the version.
    pub ceiling: W64,
    pub shard_capacity: W64,
    pub shards: W32,
    pub geometry_crc: W32,
    /// The limit on memory in use, in bytes; grows by `resize`.
    pub memory: W64,
    /// Per cent of `memory`.
    pub accept_threshold: W32,
    /// A persistent put was refused for want of memory, and use has not fallen below the threshold since.
    pub full: W32,
    /// The system's boot id when the arena was last attached by nobody else.
    pub boot: [W64; 2],
    /// Times it was attached by nobody else.
    pub generation: W64,
    /// The last pool uid given out; they are never reused.
    pub last_uid: W64,
    /// Bytes committed outside the shards.
    pub committed: W64,
    pub limit_hits: W64,
    /// Random, so that nobody can choose keys that collide.
    pub seed: W64,
    /// At least the sum of all pools' reserves, in bytes; 0 where no pool has one.
    pub reserves: W64,
    /// 1: what is promised is committed ahead.
    pub backed: W64,
    /// Guards the pool table and `memory`.
    pub admin: LockWord,
    /// The last owner's number given out, which may have wrapped.
    pub owners: W64,
    /// By the remainder of its number an owner's number, then its process's as it was there: for messages alone.
    pub processes: [W64; KNOWN_OWNERS as usize],
}

/// One pool of the table that follows the superblock.
#[repr(C)]
pub struct PoolRecord {
    /// Never reused; 0 while the slot is free. Written last.
    pub uid: W64,
    pub quota: W64,
    pub state: W32,
    pub frozen: W32,
    pub kind: W32,
    pub allocator: W32,
    pub codec: W32,
    pub codec_parameter: W32,
    pub page_size: W32,
    pub weight: W32,
    pub shared: W32,
    pub inclusive: W32,
    pub max_zpage: W32,
    pub name_len: W32,
    pub owner_len: W32,
    pub _room: W32,
    /// Footprint the pool is sure of, in bytes.
    pub reserve: W64,
    pub _more_room: [W32; 12],
    pub name: [W64; 8],
    pub owner: [W64; 8],
}

/// A growable array of the arena.
#[repr(C)]
pub struct TableHead {
    /// Bytes in use.
    pub len: W64,
    /// Bytes committed, whole frames.
    pub committed: W64,
}

/// The tables of a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableId {
    ObjectHeads = 0,
    Objects = 1,
    NodeHeads = 2,
    Nodes0 = 3,
    Segments = 11,
}

pub const TABLES: usize = 12;

/// `ShardHeader::dirty` while the lock is held.
pub const DIRTY: u32 = 1;
/// `ShardHeader::dirty` when the shard's bytes themselves are in doubt.
pub const SUSPECT: u32 = 2;

/// The first frame of a shard.
#[repr(C)]
pub struct ShardHeader {
    pub lock: LockWord,
    /// Set while the lock is held: found set by the next taker, the shard is rebuilt from its slots.
    pub dirty: W32,
    /// The number the last slot was stamped with.
    pub seq: W32,
    /// Bytes of the arena this shard has committed, all told.
    pub committed: W64,
    pub tables: [TableHead; TABLES],
    pub object_buckets: W32,
    pub object_free: W32,
    pub objects: W32,
    pub node_buckets: W32,
    pub nodes: W32,
    pub node_len: [W32; 8],
    /// Segments ever opened; those with no run length are on `segment_free`.
    pub segments: W32,
    pub segment_free: W32,
    /// By run length: segments with a run to give, and free runs kept committed.
    pub available: [W32; MAX_RUN as usize + 1],
    pub reserve: [W32; MAX_RUN as usize + 1],
    pub reserve_frames: W32,
    /// One bit for each pool that has a heap here.
    pub heaps: [W32; MAX_POOLS / 32],
    /// Moves with every growth of the node hash, so that a scan of it can tell.
    pub splits: W32,
    pub recoveries: W64,
    pub slots_replayed: W64,
    pub slots_dropped: W64,
    pub lock_waits: W64,
    pub owners_died: W64,
}

/// The first frame of a heap: what one pool holds in one shard.
#[repr(C)]
pub struct HeapHead {
    counters: [W64; FIRST_COUNTERS],
    /// Pages stored, ever, by compressed size in 64ths of a page.
    pub sizes: [W64; 64],
    /// zbud pages with one buddy, by free chunks.
    pub unbuddied: [W32; 64],
    /// The eviction hand: the frame it looks at next.
    pub hand: W32,
    _room: W32,
    /// Counters that came later: zeros in an arena of before.
    more_counters: [W64; COUNTERS - FIRST_COUNTERS],
}

impl HeapHead {
    #[inline(always)]
    pub fn counter(&self, counter: Counter) -> &W64 {
        let at = counter as usize;
        if at < FIRST_COUNTERS {
            &self.counters[at]
        } else {
            &self.more_counters[at - FIRST_COUNTERS]
        }
    }

    /// All counters in their order, gauges first.
    pub fn counters(&self) -> impl Iterator<Item = &W64> {
        self.counters.iter().chain(&self.more_counters)
    }
}

// SAFETY: made of cells and of a lock, and their padding is never read.
unsafe impl Overlay for Superblock {}
// SAFETY: made of cells.
unsafe impl Overlay for PoolRecord {}
// SAFETY: made of cells and of a lock.
unsafe impl Overlay for ShardHeader {}
// SAFETY: made of cells.
unsafe impl Overlay for HeapHead {}

const _: () = {
    assert!(size_of::<Superblock>() == 1280 && size_of::<Superblock>() <= FRAME);
    assert!(offset_of!(Superblock, memory) == 40);
    assert!(offset_of!(Superblock, reserves) == 112);
    assert!(offset_of!(Superblock, backed) == 120);
    assert!(offset_of!(Superblock, admin) == 128);
    assert!(offset_of!(Superblock, owners) as u64 == OWNERS_AT);
    assert!(offset_of!(Superblock, processes) == offset_of!(Superblock, owners) + 8);
    assert!(size_of::<PoolRecord>() == 256);
    assert!(offset_of!(PoolRecord, reserve) == 72);
    assert!(offset_of!(PoolRecord, name) == 128);
    assert!(size_of::<ShardHeader>() == 1600 && size_of::<ShardHeader>() <= FRAME);
    assert!(offset_of!(ShardHeader, tables) == 80);
    assert!(offset_of!(ShardHeader, heaps) == 1368);
    assert!(size_of::<HeapHead>() <= FRAME);
    assert!(offset_of!(HeapHead, unbuddied) == 720);
    assert!(offset_of!(HeapHead, more_counters) == 984);
    assert!(size_of::<TableHead>() == 16);
    assert!(ENTRY == 8 * 4 && OBJECT == 10 * 4 && NODE_HEAD == 5 && CLASS_WORDS == 6);
};

/// Where the parts of a shard lie, relative to its start. All frame-aligned.
#[derive(Clone, Debug)]
pub struct ShardMap {
    pub heaps: u64,
    /// Start and room of each table, by `TableId`.
    pub tables: [(u64, u64); TABLES],
    pub frame_table: u64,
    pub frames: u64,
    pub segments: u32,
    /// Bytes from one shard's start to the next.
    pub stride: u64,
}

impl ShardMap {
    /// The map of a shard that may hold up to `capacity` bytes.
    pub fn new(capacity: u64) -> ShardMap {
        let segments =
            (2 * capacity / (u64::from(SEGMENT_FRAMES) * PAGE) + SPARE_SEGMENTS).min(MAX_SEGMENTS);
        let mut at = PAGE;
        let mut take = |bytes: u64| {
            let start = at;
            at += bytes.next_multiple_of(PAGE).max(16 * PAGE);
            start
        };
        let heaps = take(MAX_POOLS as u64 * HEAP_FRAMES * PAGE);
        let tables = std::array::from_fn(|id| {
            let room = match id {
                0 | 2 => capacity / 16,
                1 => capacity / 64 * OBJECT,
                11 => segments * ENTRY,
                _ => capacity / 2,
            };
            let room = room.next_multiple_of(PAGE).max(16 * PAGE);
            (take(room), room)
        });
        let frame_table = take(segments * u64::from(SEGMENT_FRAMES) * ENTRY);
        let frames = take(segments * u64::from(SEGMENT_FRAMES) * PAGE);
        ShardMap {
            heaps,
            tables,
            frame_table,
            frames,
            segments: segments as u32,
            stride: at,
        }
    }
}

/// What of an arena is fixed at creation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// The most `memory` can ever be, in bytes.
    pub ceiling: u64,
    pub shards: u32,
    /// Bytes one shard can hold.
    pub shard_capacity: u64,
}

/// Where the pool table starts.
pub const POOLS_AT: u64 = PAGE;
/// Where the first shard starts.
pub const SHARDS_AT: u64 = POOLS_AT + MAX_POOLS as u64 * size_of::<PoolRecord>() as u64;

impl Geometry {
    /// The geometry for a limit of `memory` bytes; shards follow the arena's size where they are not given.
    pub fn plan(memory: u64, shards: Option<u32>) -> Geometry {
        let ceiling = memory.saturating_mul(CEILING);
        let shards = shards.unwrap_or_else(|| {
            let fit = (memory >> 27).clamp(1, 1024);
            1 << fit.ilog2()
        });
        let share = 2 * ceiling / u64::from(shards.max(1)) + (64 << 20);
        Geometry {
            ceiling,
            shards,
            shard_capacity: ceiling.min(share),
        }
    }

    /// Why no arena can have this geometry, if so.
    pub fn fault(&self) -> Option<String> {
        let largest = MAX_SEGMENTS / 2 * u64::from(SEGMENT_FRAMES) * PAGE;
        if !self.shards.is_power_of_two() || self.shards > 4096 {
            return Some(format!(
                "shards is {}; it must be a power of two up to 4096",
                self.shards
            ));
        }
        if self.shard_capacity > largest {
            return Some(format!(
                "{} shards are too few for this much memory",
                self.shards
            ));
        }
        (self.ceiling < CEILING << 20 || self.shard_capacity < 1 << 20)
            .then(|| "memory is less than 1 MiB".into())
    }

    /// Covers the layout's version too.
    pub fn crc(&self, version: u32) -> u32 {
        let mut bytes = Vec::from(self.ceiling.to_le_bytes());
        bytes.extend(self.shard_capacity.to_le_bytes());
        bytes.extend(self.shards.to_le_bytes());
        bytes.extend(version.to_le_bytes());
        crc32c::crc32c(&bytes)
    }

    /// Apparent bytes of the whole file.
    pub fn file_len(&self) -> u64 {
        SHARDS_AT + u64::from(self.shards) * ShardMap::new(self.shard_capacity).stride
    }
}
