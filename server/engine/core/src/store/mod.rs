//! The store as its users see it: an arena, its pools, and its maintenance.

mod available_memory;
mod backing;
pub mod pool;
mod reserve;
pub mod stats;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::alloc::heap::Allocator;
use crate::alloc::zsmalloc::Zsmalloc;
use crate::arena::{Arena, Attach, Geometry};
use crate::batch::shrink;
use crate::error::{Error, Lock, Result, unless_busy};
use crate::outcome::{Cause, Counter};
use crate::pool_table;
use crate::shard::check;
use crate::shard::with_shard;
use crate::types::{LOCK_WAIT, PoolSettings, StoreOptions};
use pool::Pool;
use stats::StoreStats;

/// Fruitless attempts to evict from a shard before giving up: by then the hand has passed all of the largest shard.
const IDLE: u32 = 256;
/// Zspages compacted under one lock.
const ZSPAGES_AT_ONCE: u32 = 8;

/// An attached arena. Cheap to clone; detached when the last clone, and the last of its pools, is gone.
#[derive(Clone)]
pub struct Store {
    arena: Arc<Arena>,
}

/// How a store was set up.
#[derive(Clone, Debug)]
pub struct StoreInfo {
    /// Bytes.
    pub memory: u64,
    pub shards: u32,
    pub arena: Option<PathBuf>,
    /// Per cent of `memory`.
    pub accept_threshold: u32,
}

/// What compaction achieved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Compaction {
    pub moved_pages: u64,
    pub freed_bytes: u64,
}

impl Store {
    /// A private arena; or the one at `options.arena`, created, or attached where it exists with these settings.
    pub fn open(options: &StoreOptions) -> Result<Store> {
        if !(1..=100).contains(&options.accept_threshold) {
            return Err(Error::Invalid(format!(
                "accept_threshold is {} %; it must be 1 to 100",
                options.accept_threshold
            )));
        }
        if options.memory < 1 << 20 {
            return Err(Error::Invalid(format!(
                "memory is {} bytes; at least 1 MiB is needed",
                options.memory
            )));
        }
        let (arena, how) = match &options.arena {
            None => (Arena::private(options)?, Attach::Created),
            Some(path) => Arena::open(path, options)?,
        };
        let store = Store::begin(arena, how, options.mlock, options.huge_pages)?;
        store.compare(options)?;
        Ok(store)
    }

    /// The arena at `path`, which exists.
    pub fn attach(path: &Path, mlock: bool) -> Result<Store> {
        Store::attach_waiting(path, mlock, LOCK_WAIT)
    }

    /// The same, with a limit on waiting for locks of other processes.
    pub fn attach_waiting(path: &Path, mlock: bool, lock_wait: Duration) -> Result<Store> {
        let (arena, how) = Arena::attach(path, lock_wait)?;
        Store::begin(arena, how, mlock, false)
    }

    /// Finish what a dead process left unfinished, then serve.
    fn begin(arena: Arena, how: Attach, mlock: bool, huge_pages: bool) -> Result<Store> {
        let os = |what, path: PathBuf| move |source| Error::Io { path, what, source };
        if mlock {
            arena
                .map()
                .lock_on_fault()
                .map_err(os("cannot mlock", arena.name().into()))?;
        }
        if huge_pages {
            arena
                .map()
                .advise_all(libc::MADV_HUGEPAGE)
                .map_err(os("cannot use huge pages for", arena.name().into()))?;
        }
        let store = Store {
            arena: Arc::new(arena),
        };
        if how != Attach::Created {
            store.recover()?;
        }
        Ok(store)
    }

    fn recover(&self) -> Result<()> {
        for slot in
            (0..self.arena.pool_slots()).filter(|&slot| pool_table::is_live(&self.arena, slot))
        {
            if let Some(fault) = pool_table::fault(&self.arena, slot) {
                return Err(fault);
            }
        }
        self.arena.with_admin(|| {
            let reserves = pool_table::reserves(&self.arena, None);
            self.arena.superblock().reserves.publish(reserves);
        })?;
        // A shard that is held is in use, and is made whole by its next taker if it must be.
        let made_whole = |shard| unless_busy(with_shard(&self.arena, shard, |_| ())).map(drop);
        (0..self.arena.shards()).try_for_each(made_whole)?;
        unless_busy(self.finish_destroys()).map(drop)
    }

    /// Purge pools whose destruction has begun. Helping a process that is still doing so is harmless.
    fn finish_destroys(&self) -> Result<()> {
        for (id, name) in pool_table::list(&self.arena, true) {
            Pool::new(self.arena.clone(), id, &name)?.purge()?;
        }
        Ok(())
    }

    /// Refuse an arena whose settings differ from those requested.
    fn compare(&self, options: &StoreOptions) -> Result<()> {
        let have = self.options();
        let mut differ = Vec::new();
        if have.memory != options.memory {
            differ.push(format!(
                "memory is {} bytes, not {} (resize changes it)",
                have.memory, options.memory
            ));
        }
        if options.shards.is_some_and(|shards| shards != have.shards) {
            differ.push(format!(
                "shards is {}, not {}",
                have.shards,
                options.shards.unwrap_or(0)
            ));
        }
        if have.accept_threshold != options.accept_threshold {
            differ.push(format!(
                "accept_threshold is {} %, not {} %",
                have.accept_threshold, options.accept_threshold
            ));
        }
        if differ.is_empty() {
            return Ok(());
        }
        Err(Error::Mismatch(format!(
            "arena {} has other settings: {}",
            self.arena.name(),
            differ.join("; ")
        )))
    }

    pub fn options(&self) -> StoreInfo {
        let sb = self.arena.superblock();
        StoreInfo {
            memory: sb.memory.get(),
            shards: self.arena.shards(),
            arena: self.arena.path().map(Path::to_owned),
            accept_threshold: sb.accept_threshold.get(),
        }
    }

    /// The pool of a name, created where there is none; refused where it exists with other settings.
    pub fn pool(&self, name: &str, settings: &PoolSettings) -> Result<Pool> {
        settings.validate()?;
        let id = self
            .arena
            .with_admin(|| match pool_table::find(&self.arena, name) {
                None => pool_table::create(&self.arena, name, settings),
                Some(id) => {
                    match pool_table::difference(
                        &pool_table::settings(&self.arena, id.slot),
                        settings,
                    ) {
                        None => Ok(id),
                        Some(difference) => Err(Error::Mismatch(format!(
                            "pool {name:?} exists with other settings: {difference}"
                        ))),
                    }
                }
            })??;
        Pool::new(self.arena.clone(), id, name)
    }

    /// The pool of a name, where there is one.
    pub fn find_pool(&self, name: &str) -> Result<Option<Pool>> {
        let id = self
            .arena
            .with_admin(|| pool_table::find(&self.arena, name))?;
        id.map(|id| Pool::new(self.arena.clone(), id, name))
            .transpose()
    }

    pub fn pools(&self) -> Result<Vec<Pool>> {
        let list = self
            .arena
            .with_admin(|| pool_table::list(&self.arena, false))?;
        list.into_iter()
            .map(|(id, name)| Pool::new(self.arena.clone(), id, &name))
            .collect()
    }

    /// An error if this process has lost the arena because part of it could not be read.
    pub fn whole(&self) -> Result<()> {
        self.arena.look()
    }

    /// Locks for which this process waited in vain and that are still held, each with the process that claims to hold it.
    pub fn stuck(&self) -> Vec<(Lock, Option<u32>)> {
        self.arena.stuck()
    }

    /// Wait until a lock is free, up to the usual limit.
    pub fn wait_for(&self, lock: Lock) -> Result<()> {
        match lock {
            Lock::Shard(shard) if shard < self.arena.shards() => {
                with_shard(&self.arena, shard, |_| ())
            }
            Lock::Shard(_) | Lock::Attaching => Ok(()),
            Lock::Admin => self.arena.with_admin(|| ()),
        }
    }

    pub fn stats(&self) -> Result<StoreStats> {
        StoreStats::read(&self.arena)
    }

    /// Bytes the system says the arena takes, to compare with `used_bytes`.
    pub fn allocated_bytes(&self) -> Result<u64> {
        let path = self.arena.name().into();
        self.arena.allocated().map_err(|source| Error::Io {
            path,
            what: "cannot stat",
            source,
        })
    }

    /// Compact: move pages together and return the memory that this frees.
    pub fn compact(&self) -> Result<Compaction> {
        let before = self.arena.used();
        self.finish_destroys()?;
        let mut moved_pages = 0;
        for id in 0..self.arena.shards() {
            for (pool, _) in pool_table::list(&self.arena, false) {
                moved_pages += unless_busy(self.compact_heap(id, pool.slot))?.unwrap_or(0);
            }
            unless_busy(with_shard(&self.arena, id, |shard| {
                shard.frames.trim_reserve();
                shard.nodes.trim();
                shard.objects.trim();
            }))?;
        }
        Ok(Compaction {
            moved_pages,
            freed_bytes: before.saturating_sub(self.arena.used()),
        })
    }

    fn compact_heap(&self, shard: u32, pool: u32) -> Result<u64> {
        let mut moved = 0;
        let mut more = true;
        while more {
            more = with_shard(&self.arena, shard, |shard| {
                let Some(heap) = shard.heap(pool) else {
                    return false;
                };
                let before = heap.count(Counter::MovedPages).get();
                let zsmalloc = Zsmalloc::new(heap);
                let more = (0..ZSPAGES_AT_ONCE).all(|_| zsmalloc.compact(shard));
                moved += heap.count(Counter::MovedPages).get() - before;
                more
            })?;
        }
        Ok(moved)
    }

    /// Return memory to the system, evicting ephemeral pages if necessary; the bytes returned.
    pub fn relinquish(&self, bytes: u64) -> Result<u64> {
        let before = self.arena.used();
        let target = before.saturating_sub(bytes);
        // Every shard gives its share first, so that none is emptied for the others.
        let shards = u64::from(self.arena.shards());
        for id in 0..self.arena.shards() {
            let share = self.arena.used().saturating_sub(bytes / shards).max(target);
            self.shrink_to(id, share)?;
        }
        for id in 0..self.arena.shards() {
            self.shrink_to(id, target)?;
        }
        Ok(before.saturating_sub(self.arena.used()))
    }

    /// Evict from a shard in bounded steps until the arena uses `target` bytes or nothing more can be evicted.
    fn shrink_to(&self, id: u32, target: u64) -> Result<()> {
        let (mut idle, mut more) = (0, true);
        while more && idle < IDLE {
            let used = self.arena.used();
            let shrunk = with_shard(&self.arena, id, |shard| {
                shrink(shard, target, Cause::Relinquish)
            });
            more = unless_busy(shrunk)?.unwrap_or(false);
            idle = if self.arena.used() < used {
                0
            } else {
                idle + 1
            };
        }
        Ok(())
    }

    /// Raise the limit on memory, up to four times what the arena was created with.
    pub fn resize(&self, memory: u64) -> Result<()> {
        let Geometry { ceiling, .. } = self.arena.geometry();
        self.arena.with_admin(|| {
            let limit = &self.arena.superblock().memory;
            if memory < limit.get() {
                return Err(Error::Invalid(format!(
                    "memory can only grow: it is {} bytes, and {memory} was requested",
                    limit.get()
                )));
            }
            if memory > ceiling {
                return Err(Error::Invalid(format!(
                    "this arena can grow to {ceiling} bytes, and {memory} was requested"
                )));
            }
            limit.set(memory);
            Ok(())
        })?
    }

    /// Commit the memory behind all present and future reserves in advance: frames that pools with a reserve do not use are
    /// kept for them. An error if the machine has too little; what could be committed is kept. It is locked where the arena
    /// is. `false` ends it.
    pub fn commit_reserves(&self, on: bool) -> Result<()> {
        let backed = &self.arena.superblock().backed;
        let was = backed.get() != 0;
        backed.publish(on.into());
        if !on {
            return if was {
                backing::trim(&self.arena)
            } else {
                Ok(())
            };
        }
        backing::stock(&self.arena)?;
        backing::map_all(&self.arena)
    }

    /// Violated invariants; empty when the arena is sound.
    pub fn check(&self) -> Result<Vec<String>> {
        let mut faults = Vec::new();
        for id in 0..self.arena.shards() {
            faults.append(&mut with_shard(&self.arena, id, check::check)?);
        }
        faults.extend(backing::check(&self.arena));
        Ok(faults)
    }
}
