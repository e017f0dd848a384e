//! Setting a pool's reserve: memory that other pools give up, now and in the future.
//!
//! A reserve is granted if there is room beside what cannot be evicted and other pools' promises. Ephemeral pages are
//! evicted at once, so that the pool finds its memory free. The reserve is a word of the pool's record and holds from
//! then on, whoever dies.

use crate::alloc::heap::Heap;
use crate::arena::{
    HEAP_FRAMES, heap_head, held_backing, is_backed, pool_frames, promised, promised_beyond,
    promised_to, with_index,
};
use crate::batch::shrink;
use crate::error::{Error, Result, unless_busy};
use crate::outcome::Cause;
use crate::pool_table;
use crate::shard::{with_shard, with_shard_for};
use crate::store::backing;
use crate::store::pool::Pool;
use crate::types::{FRAME, Kind};

const PAGE: u64 = FRAME as u64;
/// Bytes asked of each shard in a round of eviction.
const PIECE: u64 = 1 << 20;
/// Rounds of eviction over all shards until it is given up: each is bounded, and others may put meanwhile.
const ROUNDS: u32 = 4096;

impl Pool {
    /// Bytes of footprint that the pool is sure of; 0 where it has no reserve.
    pub fn reserve(&self) -> Result<u64> {
        self.record().map(|record| record.reserve.get())
    }

    /// Keep `bytes` of memory for this pool, at the expense of ephemeral pages where need be; or refuse, and change nothing.
    pub fn set_reserve(&self, bytes: u64) -> Result<()> {
        self.check_reserve(bytes)?;
        let before = self.arena.with_admin(|| self.promise(bytes))??;
        let kept = self
            .clear_room(bytes)
            .and_then(|()| self.make_heaps(bytes))
            .and_then(|()| backing::stock(&self.arena));
        if kept.is_err() {
            let undone = self.arena.with_admin(|| self.publish(before));
            debug_assert!(undone.is_ok_and(|undone| undone.is_ok()));
        }
        let less = kept.is_err() || bytes < before;
        if less && self.arena.superblock().backed.get() != 0 {
            backing::trim(&self.arena)?;
        }
        kept
    }

    fn check_reserve(&self, bytes: u64) -> Result<()> {
        let settings = self.settings();
        if bytes > 0 && settings.kind != Kind::Persistent {
            return Err(Error::Invalid(
                "only a persistent pool can have a reserve".into(),
            ));
        }
        if settings.quota != 0 && bytes > settings.quota {
            return Err(Error::Invalid(format!(
                "a reserve of {bytes} bytes exceeds the pool's quota of {} bytes",
                settings.quota
            )));
        }
        Ok(())
    }

    /// Set the reserve if it can be kept; what it was. The admin lock is held.
    fn promise(&self, bytes: u64) -> Result<u64> {
        let before = self.record()?.reserve.get();
        if bytes > before {
            self.room_for(bytes)?;
        }
        self.publish(bytes)?;
        Ok(before)
    }

    fn publish(&self, bytes: u64) -> Result<()> {
        let record = self.record()?;
        let sb = self.arena.superblock();
        let others = pool_table::reserves(&self.arena, Some(self.slot()));
        sb.reserves
            .publish(others.saturating_add(bytes.max(record.reserve.get())));
        record.reserve.publish(bytes);
        sb.reserves.publish(others.saturating_add(bytes));
        Ok(())
    }

    /// Refuse a reserve that cannot be kept, with the numbers.
    fn room_for(&self, bytes: u64) -> Result<()> {
        let arena = &self.arena;
        let unused = bytes.saturating_sub(pool_frames(arena, self.slot()) * PAGE);
        let needed = with_index(unused).saturating_add(self.heaps_to_make());
        let kept = if is_backed(arena) {
            held_backing(arena)
        } else {
            0
        };
        let held = arena
            .used()
            .saturating_sub(pool_table::ephemeral_frames(arena) * PAGE + kept);
        let others = promised(arena, Some(self.slot()));
        let memory = arena.superblock().memory.get();
        let free = memory.saturating_sub(held.saturating_add(others));
        if needed <= free {
            return Ok(());
        }
        Err(Error::Exhausted(format!(
            "a reserve of {bytes} bytes cannot be kept: {needed} more are needed, index included, and {free} are free; of {memory} bytes of memory, {held} hold what cannot be evicted and {others} are reserved for other pools"
        )))
    }

    fn heaps_to_make(&self) -> u64 {
        let shards = 0..self.arena.shards();
        let unmade = shards.filter(|&shard| heap_head(&self.arena, shard, self.slot()).is_none());
        unmade.count() as u64 * HEAP_FRAMES * PAGE
    }

    /// Evict until what is used and what is promised fit together, the heaps to come included.
    fn clear_room(&self, bytes: u64) -> Result<()> {
        let mut more = true;
        for _ in 0..ROUNDS {
            if self.fits() {
                return Ok(());
            }
            if !more {
                break;
            }
            more = self.evict_round()?;
        }
        self.room_for(bytes).and_then(|()| Err(too_busy(bytes)))
    }

    fn fits(&self) -> bool {
        let promised = promised_beyond(&self.arena, None);
        let sum = (self.arena.used() + self.heaps_to_make()).saturating_add(promised);
        promised_to(&self.arena, self.slot()) == 0 || sum <= self.arena.superblock().memory.get()
    }

    /// A bounded piece of eviction from every shard in turn; whether there may be more to evict.
    fn evict_round(&self) -> Result<bool> {
        let mut more = false;
        for shard in 0..self.arena.shards() {
            let used = self.arena.used();
            let target = used.saturating_sub(PIECE);
            let shrunk = with_shard(&self.arena, shard, |shard| {
                shrink(shard, target, Cause::Memory)
            });
            more |= unless_busy(shrunk)?.unwrap_or(false);
            more |= self.arena.used() < used;
            if self.fits() {
                return Ok(true);
            }
        }
        Ok(more)
    }

    /// What the pool needs in every shard before its first page.
    fn make_heaps(&self, bytes: u64) -> Result<()> {
        let shards = 0..if bytes > 0 { self.arena.shards() } else { 0 };
        for shard in shards {
            let made = with_shard_for(&self.arena, shard, self.slot(), |shard| {
                Heap::make(&self.arena, shard.id, self.slot(), shard.frames).is_ok()
            })?;
            if !made {
                return Err(too_busy(bytes));
            }
        }
        Ok(())
    }
}

fn too_busy(bytes: u64) -> Error {
    Error::Exhausted(format!(
        "a reserve of {bytes} bytes cannot be kept: other pools have taken the memory in the meantime"
    ))
}
