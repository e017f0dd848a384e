//! Relief: room made in shards other than the one that needs it, one lock at a time.

use crate::arena::{Arena, pool_frames};
use crate::error::Result;
use crate::evict::TRIES;
use crate::pools;
use crate::shard::{Shard, with_shard};
use crate::types::{Cause, FRAME};

/// Have shards other than `home` give up their reserve, and ephemeral pages, until `bytes` are free. For a pool that is
/// at its quota it is that pool's own pages that go.
pub fn relieve(arena: &Arena, home: u32, bytes: u64, over_quota: Option<u32>) -> Result<()> {
    if !has_spare(arena) {
        return Ok(());
    }
    let used = || match over_quota {
        Some(pool) => pool_frames(arena, pool) * FRAME as u64,
        None => arena.used(),
    };
    let target = used().saturating_sub(bytes + 16 * FRAME as u64);
    for step in 1..arena.shards() {
        if used() <= target {
            break;
        }
        with_shard(
            arena,
            (home + step) % arena.shards(),
            |shard| match over_quota {
                None => shrink(shard, target, Cause::Memory),
                Some(pool) => shard
                    .heap(pool)
                    .is_some_and(|heap| shard.evict(&heap, Cause::Quota, true)),
            },
        )?;
    }
    Ok(())
}

/// Whether any shard has frames that could be given up, without taking a lock.
fn has_spare(arena: &Arena) -> bool {
    let reserved = |shard| arena.shard(shard).reserve_frames.get() > 0;
    (0..arena.shards()).any(reserved) || pools::ephemeral_frames(arena) > 0
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
