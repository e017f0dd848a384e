//! A growable array in the arena: bytes from a fixed place, committed as it grows.
//!
//! It grows in steps of a sixteenth, so that growth is rare and the unused tail small.

use super::budget::{Budget, Full};
use super::file::Arena;
use super::layout::TableHead;
use super::mapping::cell::W32;
use crate::types::FRAME;

#[derive(Clone, Copy)]
pub struct Table<'a> {
    arena: &'a Arena,
    budget: Budget<'a>,
    head: &'a TableHead,
    base: u64,
    room: u64,
}

impl<'a> Table<'a> {
    /// A table of a shard.
    #[inline(always)]
    pub fn of(arena: &'a Arena, shard: u32, id: usize, budget: Budget<'a>) -> Table<'a> {
        let (start, room) = arena.shard_map().tables[id];
        Table {
            arena,
            budget,
            head: &arena.shard(shard).tables[id],
            base: arena.shard_at(shard) + start,
            room,
        }
    }

    /// `count` cells from byte `at` of the table.
    #[inline(always)]
    pub fn words(&self, at: u64, count: usize) -> &'a [W32] {
        debug_assert!(at + count as u64 * 4 <= self.head.committed.get());
        self.arena.map().words(self.base + at, count)
    }

    /// Ask for the cache line of byte `at` ahead of time.
    #[inline(always)]
    pub fn prefetch(&self, at: u64) {
        self.arena.map().prefetch(self.base + at);
    }

    pub fn copy_within(&self, from: u64, to: u64, len: u64) {
        self.arena
            .map()
            .copy_within(self.base + from, self.base + to, len as usize);
    }

    /// Bytes in use.
    pub fn len(&self) -> u64 {
        self.head.len.get()
    }

    /// Bytes committed.
    pub fn committed(&self) -> u64 {
        self.head.committed.get()
    }

    /// Make the first `len` bytes usable. New bytes are not cleared.
    pub fn grow(&self, len: u64) -> Result<(), Full> {
        let committed = self.head.committed.get();
        if len > committed {
            let step = (committed / 16).next_multiple_of(FRAME as u64);
            let target = len
                .next_multiple_of(FRAME as u64)
                .max((committed + step).min(self.room));
            if target > self.room {
                return Err(Full::Memory);
            }
            let smallest = len.next_multiple_of(FRAME as u64);
            let got = self
                .commit_to(target)
                .or_else(|_| self.commit_to(smallest))?;
            self.head.committed.set(got);
        }
        self.head.len.set(len);
        Ok(())
    }

    fn commit_to(&self, target: u64) -> Result<u64, Full> {
        let committed = self.head.committed.get();
        self.budget
            .commit(self.base + committed, target - committed)?;
        Ok(target)
    }

    /// Use only the first `len` bytes, and give back frames beyond them when there are many.
    pub fn shrink(&self, len: u64) {
        self.head.len.set(len);
        let slack = self.head.committed.get() - len;
        if slack > 4 * FRAME as u64 && slack > len / 4 {
            self.trim();
        }
    }

    /// Give back every frame beyond those in use.
    pub fn trim(&self) {
        let keep = self.head.len.get().next_multiple_of(FRAME as u64);
        let committed = self.head.committed.get();
        if committed > keep {
            self.head.committed.set(keep);
            self.budget.release(self.base + keep, committed - keep);
        }
    }

    /// Forget everything and leave nothing committed; the shard's count is set by the caller.
    pub fn reset(&self) {
        self.head.len.set(0);
        self.head.committed.set(0);
        self.arena.map().punch(self.base, self.room);
    }

    /// Give back what a crash left committed beyond what is recorded; the shard's count is set by the caller.
    pub fn punch_beyond(&self) {
        let committed = self.head.committed.get();
        self.arena
            .map()
            .punch(self.base + committed, self.room - committed);
    }
}
