//! Promises: memory kept for one pool and refused to all others until the pool uses it.
//!
//! A pool's *reserve* is the footprint that it is guaranteed. The unused part is *promised*: together with room for the
//! index of its pages it counts as used for everyone but the pool itself. The promise shrinks as the pool's frames
//! grow, so there is no separate counter that a crash could leave wrong.
//!
//! Where promises are *backed*, free frames are kept committed for them in any shard. Those frames plus the frames of
//! pools with a reserve (up to that reserve) are never less than the reserves. Kept frames are first taken off the
//! count and then given up, so that two processes giving up frames at once see each other's change.
//!
//! Order, so that no frame in transit looks free: a pool with a reserve commits a frame before counting it, and
//! uncounts it before giving it back. A reader sums what is used, then the promises, then what is used again, and takes
//! the larger sum.

use super::file::Arena;
use super::layout::{HEAP_FRAMES, HeapHead, POOL_LIVE};
use crate::outcome::Counter;
use crate::types::FRAME;

const PAGE: u64 = FRAME as u64;
/// Of the promised bytes, what is kept beside them for the index: one part in so many.
const INDEX_PART: u64 = 16;

/// Where a pool's heap lies in a shard.
pub fn heap_at(arena: &Arena, shard: u32, pool: u32) -> u64 {
    arena.shard_at(shard) + arena.shard_map().heaps + u64::from(pool) * HEAP_FRAMES * PAGE
}

/// One shard's heap counters of a pool, without its lock.
pub fn heap_head(arena: &Arena, shard: u32, pool: u32) -> Option<&HeapHead> {
    let word = arena.shard(shard).heaps[pool as usize / 32].get();
    (word & 1 << (pool % 32) != 0).then(|| arena.map().view(heap_at(arena, shard, pool)))
}

/// Frames committed for a pool in all shards.
pub fn pool_frames(arena: &Arena, pool: u32) -> u64 {
    let heads = (0..arena.shards()).filter_map(|shard| heap_head(arena, shard, pool));
    heads
        .map(|head| head.counter(Counter::Frames).get_ordered())
        .sum()
}

/// What keeping `reserve` bytes for a pool that has none of them takes from the others.
pub fn with_index(reserve: u64) -> u64 {
    reserve.saturating_add(reserve / INDEX_PART)
}

/// What of a pool's reserve is not used.
fn unused(arena: &Arena, pool: u32) -> u64 {
    let record = arena.pool(pool);
    let reserve = record.reserve.get_ordered();
    if reserve == 0 || record.uid.get() == 0 || record.state.get() != POOL_LIVE {
        return 0;
    }
    reserve.saturating_sub(pool_frames(arena, pool) * PAGE)
}

/// What of a pool's reserve is not used, with its index.
pub fn promised_to(arena: &Arena, pool: u32) -> u64 {
    with_index(unused(arena, pool))
}

/// Whether what is promised is committed ahead.
pub fn is_backed(arena: &Arena) -> bool {
    let sb = arena.superblock();
    sb.backed.get() != 0 && sb.reserves.get_ordered() != 0
}

/// Bytes of free frames that must be committed: what of all reserves is not used. 0 where promises are not backed.
pub fn required_backing(arena: &Arena) -> u64 {
    required_backing_after(arena, None, 0)
}

/// The same once `pool` uses `more` bytes more.
pub fn required_backing_after(arena: &Arena, pool: Option<u32>, more: u64) -> u64 {
    if !is_backed(arena) {
        return 0;
    }
    let of = |slot| {
        let its = if pool == Some(slot) { more } else { 0 };
        unused(arena, slot).saturating_sub(its)
    };
    (0..arena.pool_slots()).map(of).sum()
}

/// Bytes of free frames that are committed.
pub fn held_backing(arena: &Arena) -> u64 {
    let frames = |shard| u64::from(arena.shard(shard).reserve_frames.get());
    (0..arena.shards()).map(frames).sum::<u64>() * PAGE
}

/// What is promised to all pools but one.
pub fn promised(arena: &Arena, except: Option<u32>) -> u64 {
    if arena.superblock().reserves.get_ordered() == 0 {
        return 0;
    }
    let others = (0..arena.pool_slots()).filter(|&pool| Some(pool) != except);
    others.map(|pool| promised_to(arena, pool)).sum()
}

/// What is promised to all pools but one beyond what counts as used already, being kept for them.
pub fn promised_beyond(arena: &Arena, except: Option<u32>) -> u64 {
    let promised = promised(arena, except);
    if promised == 0 || !is_backed(arena) {
        return promised;
    }
    let own = except.map_or(0, |pool| promised_to(arena, pool));
    promised.saturating_sub(held_backing(arena).saturating_sub(own))
}

/// Whether more is used, or promised to others than `pool`, than there may be.
pub fn is_over(arena: &Arena, pool: Option<u32>) -> bool {
    is_over_by(arena, pool, 0)
}

/// The same if there might be `more`.
pub fn is_over_by(arena: &Arena, pool: Option<u32>, more: u64) -> bool {
    let sb = arena.superblock();
    let (memory, used) = (sb.memory.get() + more, arena.used());
    if used > memory {
        return true;
    }
    let most = sb.reserves.get_ordered();
    if used.saturating_add(with_index(most)) <= memory {
        return false;
    }
    let promised = promised_beyond(arena, pool);
    used.max(arena.used()).saturating_add(promised) > memory
}
