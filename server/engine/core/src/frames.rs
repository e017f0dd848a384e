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

use std::sync::atomic::{Ordering, fence};

use crate::arena::{
    Arena, Budget, ENTRY, Full, MAX_RUN, SEGMENT_FRAMES, ShardHeader, ShardMap, Table, TableId,
    W32, is_backed, kept, owed, owed_after, promised_to, with_index,
};
use crate::slot::{HEADER, HEADER_WORDS, Slot, Zhandle};
use crate::types::FRAME;

const PAGE: u64 = FRAME as u64;
const ENTRIES_PER_FRAME: u32 = (PAGE / ENTRY) as u32;
const SEGMENT_WORDS: usize = (ENTRY / 4) as usize;
/// Frames committed at once to be kept behind promises; what is committed beyond them is less than that.
pub const KEPT_RUN: u32 = 32;

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
            segments: arena.table(shard, TableId::Segments as usize, budget),
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

    // --- segments ---

    fn segment(&self, segment: u32) -> &'a [W32] {
        self.segments
            .words(u64::from(segment) * ENTRY, SEGMENT_WORDS)
    }

    /// Segments ever opened.
    pub fn segment_count(&self) -> u32 {
        self.head.segments.get()
    }

    /// Frames to a run of a segment; 0 where it is closed.
    #[inline(always)]
    pub fn run_length(&self, segment: u32) -> u32 {
        self.segment(segment)[0].get()
    }

    /// Runs of a segment that were ever used.
    pub fn fresh(&self, segment: u32) -> u32 {
        self.segment(segment)[1].get()
    }

    fn open_segment(&self, frames: u32) -> Result<u32, Full> {
        let free = self.head.segment_free.get();
        let segment = if free != 0 {
            self.head.segment_free.set(self.segment(free - 1)[4].get());
            free - 1
        } else {
            let next = self.head.segments.get();
            if next >= self.map.segments {
                return Err(Full::Memory);
            }
            self.segments.grow(u64::from(next + 1) * ENTRY)?;
            self.segment(next)[0].set(0);
            self.head.segments.set(next + 1);
            next
        };
        let cells = self.segment(segment);
        cells[1..].iter().for_each(|cell| cell.set(0));
        cells[0].publish(frames);
        self.list_segment(segment, frames);
        Ok(segment)
    }

    /// Close a segment whose runs are all free.
    fn close_segment(&self, segment: u32) {
        let cells = self.segment(segment);
        self.unlist_segment(segment, cells[0].get());
        let entries = cells[1].get().div_ceil(ENTRIES_PER_FRAME);
        cells[0].publish(0);
        cells[1..4].iter().for_each(|cell| cell.set(0));
        self.budget
            .release(self.entries_at(segment), u64::from(entries) * PAGE);
        cells[4].set(self.head.segment_free.get());
        self.head.segment_free.set(segment + 1);
    }

    fn entries_at(&self, segment: u32) -> u64 {
        self.base + self.map.frame_table + u64::from(segment * SEGMENT_FRAMES) * ENTRY
    }

    fn list_segment(&self, segment: u32, frames: u32) {
        let (cells, list) = (self.segment(segment), &self.head.available[frames as usize]);
        let first = list.get();
        cells[4].set(first);
        cells[5].set(0);
        if first != 0 {
            self.segment(first - 1)[5].set(segment + 1);
        }
        list.set(segment + 1);
    }

    fn unlist_segment(&self, segment: u32, frames: u32) {
        let cells = self.segment(segment);
        let (next, prev) = (cells[4].get(), cells[5].get());
        match prev {
            0 => self.head.available[frames as usize].set(next),
            _ => self.segment(prev - 1)[4].set(next),
        }
        if next != 0 {
            self.segment(next - 1)[5].set(prev);
        }
    }

    fn has_run(&self, segment: u32) -> bool {
        let cells = self.segment(segment);
        cells[3].get() != 0 || cells[1].get() < SEGMENT_FRAMES / cells[0].get()
    }

    // --- runs ---

    /// A free run of `frames` frames; its entry says how many are committed. It is `Reserved` until tagged.
    pub fn take_run(&self, frames: u32) -> Result<Run, Full> {
        debug_assert!((1..=MAX_RUN).contains(&frames));
        if self.head.reserve[frames as usize].get() != 0 && self.may_take_kept(frames) {
            self.budget.allow_committed()?;
            return Ok(self.pop_reserve(frames));
        }
        self.new_run(frames)
    }

    /// The same with no frame committed.
    fn new_run(&self, frames: u32) -> Result<Run, Full> {
        let listed = self.head.available[frames as usize].get();
        let segment = if listed != 0 {
            listed - 1
        } else {
            self.open_segment(frames)?
        };
        let cells = self.segment(segment);
        let number = match cells[3].get() {
            0 => self.fresh_run(segment)?,
            free => {
                cells[3].set(self.entry(self.run(segment, free - 1))[3].get());
                free - 1
            }
        };
        cells[2].add(1);
        if !self.has_run(segment) {
            self.unlist_segment(segment, frames);
        }
        let run = self.run(segment, number);
        self.entry(run)[2].set(0);
        Ok(run)
    }

    fn fresh_run(&self, segment: u32) -> Result<u32, Full> {
        let cells = self.segment(segment);
        let number = cells[1].get();
        if number.is_multiple_of(ENTRIES_PER_FRAME) {
            let at = self.entries_at(segment) + u64::from(number) * ENTRY;
            if let Err(full) = self.budget.commit(at, PAGE) {
                if cells[2].get() == 0 {
                    self.close_segment(segment);
                }
                return Err(full);
            }
        }
        self.entry(self.run(segment, number))[0].set(0);
        cells[1].publish(number + 1);
        Ok(number)
    }

    /// Frames of a run that are committed, from its first.
    #[inline(always)]
    pub fn committed(&self, run: Run) -> u32 {
        self.entry(run)[2].get() & 0xff
    }

    /// Commit a run's frames up to `frames` in all.
    pub fn commit(&self, run: Run, frames: u32) -> Result<(), Full> {
        let have = self.committed(run);
        if frames > have {
            let at = self.file_offset(run.offset() + u64::from(have) * PAGE);
            let len = u64::from(frames - have) * PAGE;
            self.budget
                .commit(at, len)
                .or_else(|full| self.exchange(frames - have, at, len).ok_or(full))?;
            self.entry(run)[2].add(frames - have);
        }
        Ok(())
    }

    /// Give back a run's frames beyond the first `frames`.
    pub fn decommit(&self, run: Run, frames: u32) {
        let have = self.committed(run);
        if frames < have {
            self.entry(run)[2].sub(have - frames);
            let at = self.file_offset(run.offset() + u64::from(frames) * PAGE);
            self.budget.release(at, u64::from(have - frames) * PAGE);
        }
    }

    /// A run that nothing uses any more.
    pub fn free_run(&self, run: Run) {
        let committed = self.committed(run);
        let few = self.head.reserve_frames.get() + committed <= self.reserve;
        if committed > 0 && (few || self.is_wanting()) {
            self.keep(run, committed);
        } else {
            self.set_tag(run, RunKind::Free, 0, 0);
            self.decommit(run, 0);
            self.return_run(run);
        }
    }

    /// Have a free run keep its frames.
    fn keep(&self, run: Run, committed: u32) {
        self.set_tag(run, RunKind::Reserved, 0, 0);
        let (entry, kept) = (self.entry(run), &self.head.reserve[run.frames as usize]);
        entry[2].set(committed);
        entry[3].set(kept.get());
        kept.set(run.first + 1);
        self.head.reserve_frames.add(committed);
    }

    fn pop_reserve(&self, frames: u32) -> Run {
        let kept = &self.head.reserve[frames as usize];
        let run = self.run_of(kept.get() - 1);
        kept.set(self.entry(run)[3].get());
        self.head.reserve_frames.sub(self.committed(run));
        run
    }

    /// Put an uncommitted run back into its segment.
    fn return_run(&self, run: Run) {
        let (segment, cells) = (run.segment(), self.segment(run.segment()));
        if !self.has_run(segment) {
            self.list_segment(segment, run.frames);
        }
        let entry = self.entry(run);
        entry[2].set(0);
        entry[3].set(cells[3].get());
        cells[3].set(run.number + 1);
        cells[2].sub(1);
        if cells[2].get() == 0 {
            self.close_segment(segment);
        }
    }

    /// Give the reserve back to the system but for what is promised; the frames freed.
    pub fn trim_reserve(&self) -> u32 {
        let pool = self.budget.pool();
        let own = pool.is_some_and(|pool| promised_to(self.arena, pool) > 0);
        let owed = owed(self.arena);
        // Beside what is owed, room for its index is kept, for the pools that it is promised to.
        self.give_back(u32::MAX, if own { owed } else { with_index(owed) })
    }

    /// Give back at most so many kept frames as long as `floor` bytes are kept in all; the frames freed.
    fn give_back(&self, most: u32, floor: u64) -> u32 {
        let mut given = 0;
        for frames in (1..=MAX_RUN).rev() {
            let list = &self.head.reserve[frames as usize];
            while list.get() != 0 && given < most {
                let run = self.run_of(list.get() - 1);
                let committed = self.committed(run);
                let some = committed.min(most - given);
                if !self.discount(some, floor) {
                    return given;
                }
                if some == committed {
                    list.set(self.entry(run)[3].get());
                    self.set_tag(run, RunKind::Free, 0, 0);
                    self.decommit(run, 0);
                    self.return_run(run);
                } else {
                    self.decommit(run, committed - some);
                }
                given += some;
            }
        }
        given
    }

    /// Take frames from the count of those kept, if no fewer than `floor` bytes remain.
    fn discount(&self, frames: u32, floor: u64) -> bool {
        self.head.reserve_frames.sub(frames);
        fence(Ordering::SeqCst);
        if floor == 0 || kept(self.arena) >= floor {
            return true;
        }
        self.head.reserve_frames.add(frames);
        false
    }

    // --- promises that are backed ---

    /// Whether more frames should be kept than are.
    fn is_wanting(&self) -> bool {
        is_backed(self.arena) && kept(self.arena) < with_index(owed(self.arena))
    }

    /// Whether the last frame that is free to go has gone: whoever gives up `frames` of a pool must keep them.
    pub fn is_short(&self, frames: u32) -> bool {
        is_backed(self.arena)
            && kept(self.arena) < owed(self.arena).saturating_add(u64::from(frames) * PAGE)
    }

    /// Whether the budget's pool may have a kept run: it, or what is left after it is promised.
    fn may_take_kept(&self, frames: u32) -> bool {
        if !is_backed(self.arena) {
            return true;
        }
        let taken = u64::from(frames) * PAGE;
        let pool = self.budget.pool();
        let own = pool.is_some_and(|pool| promised_to(self.arena, pool) > 0);
        let left = owed_after(self.arena, pool, taken);
        let left = if own { left } else { with_index(left) };
        kept(self.arena) >= left.saturating_add(taken)
    }

    /// Commit frames in the place of kept ones that the budget's pool was promised.
    fn exchange(&self, frames: u32, at: u64, len: u64) -> Option<()> {
        let enough = self.head.reserve_frames.get() >= frames && self.lend(frames) == frames;
        enough.then(|| self.budget.commit(at, len).ok()).flatten()
    }

    /// Give back kept frames that the budget's pool was promised, for it to commit as many elsewhere; how many.
    pub fn lend(&self, frames: u32) -> u32 {
        let pool = self.budget.pool();
        if !is_backed(self.arena) || pool.is_none_or(|pool| promised_to(self.arena, pool) == 0) {
            return 0;
        }
        self.give_back(
            frames,
            owed_after(self.arena, pool, u64::from(frames) * PAGE),
        )
    }

    /// As many frames were committed anew as need be kept no more.
    pub fn balance(&self, frames: u32) {
        if is_backed(self.arena) {
            self.give_back(frames, with_index(owed(self.arena)));
        }
    }

    /// Commit free frames while more are promised than kept, at most so many runs; whether there is more to do. The budget
    /// knows no limit: what is promised is counted already.
    pub fn stock(&self, runs: u32) -> Result<bool, Full> {
        for _ in 0..runs {
            if !self.is_wanting() {
                return Ok(false);
            }
            let run = self.new_run(KEPT_RUN)?;
            self.commit(run, KEPT_RUN)
                .inspect_err(|_| self.free_run(run))?;
            self.keep(run, KEPT_RUN);
        }
        Ok(true)
    }

    /// Have all committed frames of a segment mapped, and so locked where this process locks its memory.
    pub fn map_segment(&self, segment: u32) -> Result<(), Full> {
        if self.run_length(segment) == 0 {
            return Ok(());
        }
        for number in 0..self.fresh(segment) {
            let run = self.run(segment, number);
            let (at, committed) = (self.file_offset(run.offset()), self.committed(run));
            if committed > 0 {
                self.arena
                    .map()
                    .populate_again(at, u64::from(committed) * PAGE)?;
            }
        }
        Ok(())
    }

    // --- rebuilding ---

    /// Forget which runs are free, ahead of `adopt` or `discard` for every run. Says how many segments are believable.
    pub fn begin_rebuild(&self) -> u32 {
        self.head
            .available
            .iter()
            .chain(&self.head.reserve)
            .for_each(|list| list.set(0));
        self.head.reserve_frames.set(0);
        self.head.segment_free.set(0);
        let known = (self.segments.committed() / ENTRY).min(u64::from(self.map.segments));
        let count = self.head.segments.get().min(known as u32);
        self.head.segments.set(count);
        for segment in 0..count {
            let cells = self.segment(segment);
            if cells[0].get() > MAX_RUN {
                cells[0].set(0);
            }
            let runs = SEGMENT_FRAMES.checked_div(cells[0].get()).unwrap_or(0);
            if cells[1].get() > runs {
                cells[1].set(runs);
            }
            (2..6).for_each(|i| cells[i].set(0));
        }
        self.segments.punch_beyond();
        count
    }

    /// Rebuilding: the run is used by what its entry says, with this many frames committed.
    pub fn adopt(&self, run: Run, committed: u32) {
        let entry = self.entry(run);
        entry[2].set(entry[2].get() & !0xff | committed);
        self.segment(run.segment())[2].add(1);
    }

    /// Rebuilding: keep a run that was kept, where frames are wanted; whether it is.
    pub fn adopt_kept(&self, run: Run) -> bool {
        let (word, committed) = (self.entry(run)[0].get(), self.committed(run));
        let was_kept = word >> 28 == RunKind::Reserved as u32;
        if !was_kept || !(1..=run.frames).contains(&committed) || !self.is_wanting() {
            return false;
        }
        self.adopt(run, committed);
        self.keep(run, committed);
        true
    }

    /// Rebuilding: nothing uses the run.
    pub fn discard(&self, run: Run) {
        self.set_tag(run, RunKind::Free, 0, 0);
        let (cells, entry) = (self.segment(run.segment()), self.entry(run));
        entry[2].set(0);
        entry[3].set(cells[3].get());
        cells[3].set(run.number + 1);
    }

    /// Rebuilding: list the segments and punch out what nothing uses. Returns the bytes that stay committed.
    pub fn end_rebuild(&self) -> u64 {
        let mut kept = self.segments.committed();
        for segment in 0..self.segment_count() {
            kept += self.sweep_segment(segment);
        }
        let used = u64::from(self.segment_count() * SEGMENT_FRAMES);
        let all = u64::from(self.map.segments * SEGMENT_FRAMES);
        self.punch_frames(used, all);
        let (from, to) = (used * ENTRY, all * ENTRY);
        self.arena
            .map()
            .punch(self.base + self.map.frame_table + from, to - from);
        kept
    }

    fn sweep_segment(&self, segment: u32) -> u64 {
        let cells = self.segment(segment);
        let first = u64::from(segment * SEGMENT_FRAMES);
        let end = first + u64::from(SEGMENT_FRAMES);
        if cells[2].get() == 0 {
            cells[0].publish(0);
            cells[1..4].iter().for_each(|cell| cell.set(0));
            cells[4].set(self.head.segment_free.get());
            self.head.segment_free.set(segment + 1);
        } else if self.has_run(segment) {
            self.list_segment(segment, cells[0].get());
        }
        let (mut kept, mut hole) = (0, first);
        for number in 0..cells[1].get() {
            let run = self.run(segment, number);
            let committed = u64::from(self.committed(run));
            if committed > 0 {
                self.punch_frames(hole, u64::from(run.first));
                hole = u64::from(run.first) + committed;
                kept += committed * PAGE;
            }
        }
        self.punch_frames(hole, end);
        let entries = u64::from(cells[1].get().div_ceil(ENTRIES_PER_FRAME)) * PAGE;
        let room = u64::from(SEGMENT_FRAMES) * ENTRY;
        self.arena
            .map()
            .punch(self.entries_at(segment) + entries, room - entries);
        kept + entries
    }

    fn punch_frames(&self, from: u64, to: u64) {
        if to > from {
            self.arena
                .map()
                .punch(self.file_offset(from * PAGE), (to - from) * PAGE);
        }
    }

    /// Violations of what this file promises, for `check`; `committed` frames are added up into the second value.
    pub fn check(&self, faults: &mut Vec<String>) -> u64 {
        let mut total = 0;
        let mut reserved = 0;
        for segment in 0..self.segment_count() {
            let cells = self.segment(segment);
            let mut live = 0;
            for number in 0..cells[1].get() {
                let run = self.run(segment, number);
                let (kind, committed) = (self.tag(run).0, self.committed(run));
                total += u64::from(committed);
                live += u32::from(kind != RunKind::Free);
                if kind == RunKind::Reserved {
                    reserved += committed;
                }
                if kind == RunKind::Free && committed != 0 || committed > run.frames {
                    faults.push(format!(
                        "{run:?} is {kind:?} with {committed} frames committed"
                    ));
                }
            }
            if live != cells[2].get() {
                faults.push(format!(
                    "segment {segment} has {live} runs in use and counts {}",
                    cells[2].get()
                ));
            }
            let free = self.count_free_runs(segment);
            if free != Some(cells[1].get() - live) {
                faults.push(format!(
                    "segment {segment}: its free list has {free:?} runs of {}",
                    cells[1].get() - live
                ));
            }
        }
        if reserved != self.head.reserve_frames.get() {
            faults.push(format!(
                "reserve is {reserved} frames and counts {}",
                self.head.reserve_frames.get()
            ));
        }
        total
    }

    fn count_free_runs(&self, segment: u32) -> Option<u32> {
        let cells = self.segment(segment);
        let (mut at, mut count) = (cells[3].get(), 0);
        while at != 0 {
            count += 1;
            if at > cells[1].get() || count > cells[1].get() {
                return None;
            }
            at = self.entry(self.run(segment, at - 1))[3].get();
        }
        Some(count)
    }

    /// Bytes of committed frame-table pages, and of the segment table.
    pub fn table_bytes(&self) -> u64 {
        let pages = |s| u64::from(self.fresh(s).div_ceil(ENTRIES_PER_FRAME)) * PAGE;
        self.segments.committed() + (0..self.segment_count()).map(pages).sum::<u64>()
    }
}
