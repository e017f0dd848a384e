//! Entering a shard: takes its lock, rebuilds what a crash left behind, and treats a panic as a crash.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::{Shard, recovery};
use crate::arena::{Acquired, Arena, Budget, DIRTY, Level, SUSPECT, ShardHeader};
use crate::error::{Error, Lock, Result};

/// Run `body` on a shard under its lock, rebuilt first where its last user died or failed in it.
///
/// A panic in `body` is taken for a crash: the shard is left dirty for its next user, and the caller gets an error.
pub fn with_shard<T>(arena: &Arena, id: u32, body: impl FnOnce(&Shard<'_>) -> T) -> Result<T> {
    within(arena, id, Budget::new(arena, id), body)
}

/// The same on behalf of a pool, which may use what it was promised.
pub fn with_shard_for<T>(
    arena: &Arena,
    id: u32,
    pool: u32,
    body: impl FnOnce(&Shard<'_>) -> T,
) -> Result<T> {
    within(arena, id, Budget::new(arena, id).for_pool(pool), body)
}

fn within<T>(
    arena: &Arena,
    id: u32,
    budget: Budget<'_>,
    body: impl FnOnce(&Shard<'_>) -> T,
) -> Result<T> {
    let held = Held::acquire(arena, id)?;
    let shard = Shard::new(arena, id, budget);
    let done = catch_unwind(AssertUnwindSafe(|| {
        if held.must_rebuild {
            recovery::rebuild(arena, id, held.deep)?;
        }
        held.head.dirty.publish(DIRTY);
        Ok(body(&shard))
    }))
    .unwrap_or_else(|panic| damaged(id, panic))
    .inspect(|_| held.finish());
    arena.whole().and(done)
}

struct Held<'a> {
    head: &'a ShardHeader,
    must_rebuild: bool,
    deep: bool,
}

impl<'a> Held<'a> {
    fn acquire(arena: &'a Arena, id: u32) -> Result<Held<'a>> {
        let Acquired { owner_died, waited } = arena.take(Lock::Shard(id))?;
        let head = arena.shard(id);
        let dirty = head.dirty.get();
        let held = Held {
            head,
            must_rebuild: dirty != 0,
            deep: dirty & SUSPECT != 0,
        };
        if owner_died {
            head.owners_died.add(1);
        }
        if waited {
            head.lock_waits.add(1);
        }
        Ok(held)
    }

    /// The shard is whole again.
    fn finish(&self) {
        self.head.dirty.publish(0);
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.head.lock.release(Level::Shard);
    }
}

fn damaged<T>(shard: u32, panic: Box<dyn std::any::Any + Send>) -> Result<T> {
    #[cfg(feature = "crash-points")]
    if panic.is::<crate::arena::Crash>() {
        resume_unwind(panic);
    }
    let why = panic.downcast_ref::<String>().cloned();
    let why = why.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
    match why {
        Some(why) => Err(Error::Damaged { shard, why }),
        None => resume_unwind(panic),
    }
}
