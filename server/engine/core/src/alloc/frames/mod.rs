//! Frames: the runs of 1 to 128 neighbouring frames from which everything stored is made, and the table that says whose they are.
//!
//! A shard's address space is cut into segments of 2048 frames. An open segment is cut into runs of one length, each
//! with an entry in the frame table. Addresses cost nothing, memory does: a run's frames are committed from its start,
//! as far as they are needed, and only what is committed counts. So a run is contiguous, an object in it may span
//! frames without being cut, and a half-filled run costs what it holds.
//! A freed run keeps its frames while the reserve is small, and is punched out otherwise. Where promises are backed (see
//! `arena/promise.rs`) as many are kept as are promised. A pool that wants a run of a length of which none is kept has its
//! frames committed, and as many of other runs given back: first those where there is no room for both.
//!
//! ```text
//! segment:  | run length | fresh | live | free run + 1 | next + 1 | prev + 1 |    lists of segments with runs to give
//! entry:    | kind, class, pool | . | committed, . | five words |    `.` is the kind's own; the five are links, or a raw
//!                                                                   page's header; a free run's first is the next free one
//! ```
//! Locking: runs under the shard lock; takes none of its own.

mod check;
mod rebuild;
mod reserve;
mod runs;
mod segments;

pub use reserve::RESERVE_RUN;

use crate::alloc::slot::{HEADER, HEADER_WORDS, Slot, Zhandle};
use crate::arena::{
    Arena, Budget, ENTRY, SEGMENT_FRAMES, ShardHeader, ShardMap, Table, TableId, W32,
};
use crate::types::FRAME;

const PAGE: u64 = FRAME as u64;
const ENTRIES_PER_FRAME: u32 = (PAGE / ENTRY) as u32;
const SEGMENT_WORDS: usize = (ENTRY / 4) as usize;

/// What a run is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunKind {
    Free,
    /// Free, its frames still committed.
    Reserved,
    Zspage,
    Zbud,
    Raw,
}

impl RunKind {
    fn from_bits(bits: u32) -> Option<RunKind> {
        use RunKind::*;
        [Free, Reserved, Zspage, Zbud, Raw]
            .get(bits as usize)
            .copied()
    }
}

/// A run of frames, by its first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    pub first: u32,
    pub frames: u32,
    /// Its number within its segment.
    pub number: u32,
}

impl Run {
    pub fn segment(self) -> u32 {
        self.first / SEGMENT_FRAMES
    }

    /// Bytes from the shard's first frame.
    pub fn offset(self) -> u64 {
        u64::from(self.first) * PAGE
    }

    pub fn bytes(self) -> u64 {
        u64::from(self.frames) * PAGE
    }
}

/// The frames of one shard.
#[derive(Clone, Copy)]
pub struct Frames<'a> {
    arena: &'a Arena,
    pub budget: Budget<'a>,
    head: &'a ShardHeader,
    map: &'a ShardMap,
    segments: Table<'a>,
    /// Where the shard starts in the file.
    base: u64,
    /// Frames the reserve may hold.
    reserve: u32,
}

impl<'a> Frames<'a> {
    pub fn new(arena: &'a Arena, shard: u32, budget: Budget<'a>) -> Frames<'a> {
        let share = arena.superblock().memory.get() / u64::from(arena.shards()) / PAGE;
        Frames {
            arena,
            budget,
            head: arena.shard(shard),
            map: arena.shard_map(),
            segments: Table::of(arena, shard, TableId::Segments as usize, budget),
            base: arena.shard_at(shard),
            reserve: (share / 256).min(128) as u32,
        }
    }

    // --- places ---

    /// The offset in the file of byte `offset` of the shard's frames.
    #[inline(always)]
    pub fn file_offset(&self, offset: u64) -> u64 {
        self.base + self.map.frames + offset
    }

    pub fn arena(&self) -> &'a Arena {
        self.arena
    }

    /// The slot a zhandle names.
    #[inline(always)]
    pub fn slot(&self, zhandle: Zhandle) -> Slot<'a> {
        if zhandle.is_raw() {
            return self.raw_slot(self.run_of(zhandle.frame()));
        }
        let at = self.file_offset(zhandle.offset());
        Slot {
            cells: self.arena.map().words(at, HEADER_WORDS),
            payload: at + HEADER as u64,
        }
    }

    /// Ask for the start of a slot, header first, ahead of time.
    #[inline(always)]
    pub fn prefetch(&self, zhandle: Zhandle, lines: u64) {
        let at = self.file_offset(zhandle.offset());
        for line in 0..lines {
            self.arena.map().prefetch(at + line * 64);
        }
    }

    /// Ask for the frame-table entry of the run a slot is in.
    #[inline(always)]
    pub fn prefetch_entry(&self, zhandle: Zhandle) {
        let at = self.entry_at(self.run_of(zhandle.frame()));
        self.arena.map().prefetch(at);
    }

    /// The slot of a raw page: its header is in the frame table.
    pub fn raw_slot(&self, run: Run) -> Slot<'a> {
        Slot {
            cells: &self.entry(run)[3..3 + HEADER_WORDS],
            payload: self.file_offset(run.offset()),
        }
    }

    /// The run a frame of an open segment belongs to.
    #[inline(always)]
    pub fn run_of(&self, frame: u32) -> Run {
        let (segment, within) = (frame / SEGMENT_FRAMES, frame % SEGMENT_FRAMES);
        let frames = self.run_length(segment);
        assert!(frames != 0, "frame {frame} is in a closed segment");
        let number = within / frames;
        Run {
            first: segment * SEGMENT_FRAMES + number * frames,
            frames,
            number,
        }
    }

    /// Run `number` of an open segment.
    pub fn run(&self, segment: u32, number: u32) -> Run {
        let frames = self.run_length(segment);
        Run {
            first: segment * SEGMENT_FRAMES + number * frames,
            frames,
            number,
        }
    }

    /// A run's entry in the frame table.
    #[inline(always)]
    pub fn entry(&self, run: Run) -> &'a [W32] {
        self.arena.map().words(self.entry_at(run), SEGMENT_WORDS)
    }

    #[inline(always)]
    fn entry_at(&self, run: Run) -> u64 {
        let number = u64::from(run.segment() * SEGMENT_FRAMES + run.number);
        self.base + self.map.frame_table + number * ENTRY
    }

    /// Kind, class and pool of a run.
    #[inline(always)]
    pub fn tag(&self, run: Run) -> (RunKind, u32, u32) {
        let word = self.entry(run)[0].get();
        let kind = RunKind::from_bits(word >> 28).expect("a run of a known kind");
        (kind, word >> 16 & 0xfff, word & 0xffff)
    }

    /// Say what a run is for from now on: the store that gives it its owner.
    pub fn set_tag(&self, run: Run, kind: RunKind, class: u32, pool: u32) {
        self.entry(run)[0].publish((kind as u32) << 28 | class << 16 | pool);
    }
}
