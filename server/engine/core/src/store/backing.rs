//! Backing: the memory behind reserves, committed in advance.
//!
//! A reserve alone only promises part of the arena's limit; by the time the pool wants it, the machine may have no
//! memory left. A backed reserve holds the memory. Invariant: kept free frames plus the used parts of reserves are at
//! least the reserves. Frames are kept as they become free; what is missing is committed in long runs by all shards in
//! turn.
//! Locking: takes one shard's lock at a time, for a bounded piece of work.

use crate::alloc::frames::{Frames, RESERVE_RUN};
use crate::arena::{Arena, Budget, held_backing, is_backed, required_backing, with_index};
use crate::error::{Error, Result};
use crate::shard::with_shard;
use crate::store::available_memory;
use crate::types::FRAME;

/// Most runs committed under one lock: 8 MiB.
const RUNS_AT_ONCE: u64 = 64;
/// Looks at the counts of shards in use until what is missing is believed to be missing.
const LOOKS: u32 = 1000;

fn missing(arena: &Arena) -> u64 {
    with_index(required_backing(arena)).saturating_sub(held_backing(arena))
}

/// Commit what is promised; or say what the machine lacks.
pub fn stock(arena: &Arena) -> Result<()> {
    let wanted = missing(arena);
    if wanted == 0 {
        return Ok(());
    }
    if let Some(free) = available_memory::bytes().filter(|&free| free < wanted) {
        return Err(lacking(wanted, &format!("the machine has {free} free")));
    }
    let mut more = true;
    while more {
        more = false;
        // All shards have the same share, as they will be used.
        let runs = missing(arena) / (u64::from(RESERVE_RUN) * FRAME as u64);
        let share = (runs / u64::from(arena.shards())).clamp(1, RUNS_AT_ONCE) as u32;
        for id in 0..arena.shards() {
            let stocked = with_shard(arena, id, |shard| {
                let budget = Budget::new(arena, shard.id).unlimited();
                Frames::new(arena, shard.id, budget).stock(share)
            })?;
            let failed = |_| lacking(missing(arena), "the system refuses more");
            more |= stocked.map_err(failed)?;
        }
    }
    Ok(())
}

fn lacking(wanted: u64, why: &str) -> Error {
    Error::Exhausted(format!(
        "the memory behind the reserves cannot be committed: {wanted} bytes more are needed, and {why}"
    ))
}

/// Give back what is kept and promised no more.
pub fn trim(arena: &Arena) -> Result<()> {
    let trim = |id| with_shard(arena, id, |shard| shard.frames.trim_reserve()).map(drop);
    (0..arena.shards()).try_for_each(trim)
}

/// Have every frame that is committed mapped by this process.
pub fn map_all(arena: &Arena) -> Result<()> {
    for id in 0..arena.shards() {
        let (mut segment, mut more) = (0, is_backed(arena));
        while more {
            let mapped = with_shard(arena, id, |shard| {
                more = segment < shard.frames.segment_count();
                if more {
                    shard.frames.map_segment(segment)
                } else {
                    Ok(())
                }
            })?;
            mapped.map_err(|_| lacking(0, "what is committed cannot be mapped"))?;
            segment += 1;
        }
    }
    Ok(())
}

/// What must hold, where it does not. Others may be at work: a frame is then on its way for a moment.
pub fn check(arena: &Arena) -> Option<String> {
    let short = || {
        std::thread::yield_now();
        held_backing(arena) < required_backing(arena)
    };
    (0..LOOKS).all(|_| short()).then(|| {
        format!(
            "{} bytes of free frames are committed, and {} are promised",
            held_backing(arena),
            required_backing(arena)
        )
    })
}
