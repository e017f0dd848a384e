//! Reclaim: makes room in shards other than the one that needs it, one lock at a time.

use crate::alloc::frames::Frames;
use crate::arena::{Arena, Budget, is_backed, pool_frames, promised_to};
use crate::error::{Result, unless_busy};
use crate::outcome::Cause;
use crate::pool_table;
use crate::shard::evict::TRIES;
use crate::shard::{Shard, with_shard, with_shard_for};
use crate::types::FRAME;

/// Have shards other than `home` give up their reserve, and ephemeral pages, until `bytes` are free. For a pool that is
/// at its quota it is that pool's own pages that go. What shards keep for the pool is the last they give up.
pub fn reclaim(arena: &Arena, home: u32, bytes: u64, pool: u32, over_quota: bool) -> Result<()> {
    if !has_spare(arena) {
        return Ok(());
    }
    let used = || match over_quota {
        true => pool_frames(arena, pool) * FRAME as u64,
        false => arena.used(),
    };
    let target = used().saturating_sub(bytes + 16 * FRAME as u64);
    for step in 1..arena.shards() {
        if used() <= target {
            break;
        }
        // A shard that is held gives nothing; others may.
        unless_busy(with_shard(
            arena,
            (home + step) % arena.shards(),
            |shard| match over_quota {
                false => shrink(shard, target, Cause::Memory),
                true => shard
                    .heap(pool)
                    .is_some_and(|heap| shard.evict(&heap, Cause::Quota, true)),
            },
        ))?;
    }
    if !over_quota && is_backed(arena) && promised_to(arena, pool) > 0 {
        borrow(arena, home, pool, target)?;
    }
    Ok(())
}

/// Have other shards give up frames that are kept for the pool, which is about to commit as many.
fn borrow(arena: &Arena, home: u32, pool: u32, target: u64) -> Result<()> {
    for step in 1..arena.shards() {
        let more = arena.used().saturating_sub(target) / FRAME as u64;
        if more == 0 {
            break;
        }
        let lend = |shard: &Shard<'_>| shard.frames.lend(more as u32);
        let lender = (home + step) % arena.shards();
        unless_busy(with_shard_for(arena, lender, pool, lend))?;
    }
    Ok(())
}

/// After a reclaim: have what was given up for the pool, and not used, kept again.
pub fn settle(shard: &Shard<'_>) {
    if is_backed(shard.arena) {
        let budget = Budget::new(shard.arena, shard.id).unlimited();
        // The machine may not have it now; what becomes free is kept.
        let _ = Frames::new(shard.arena, shard.id, budget).stock(2);
    }
}

/// Whether any shard has frames that could be given up, without taking a lock.
fn has_spare(arena: &Arena) -> bool {
    let reserved = |shard| arena.shard(shard).reserve_frames.get() > 0;
    (0..arena.shards()).any(reserved) || pool_table::ephemeral_frames(arena) > 0
}

/// Evict from one shard until the arena uses `target` bytes, or a bounded number of rounds is done; false when done.
pub fn shrink(shard: &Shard<'_>, target: u64, cause: Cause) -> bool {
    shard.frames.trim_reserve();
    for _ in 0..TRIES {
        if shard.arena.used() <= target {
            return false;
        }
        let evicted = shard
            .victim()
            .is_some_and(|heap| shard.evict(&heap, cause, true));
        shard.frames.trim_reserve();
        if !evicted {
            return false;
        }
    }
    true
}
