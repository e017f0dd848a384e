//! Removal of whole objects and of a pool, in pieces so that no lock is held for long.

use super::Pool;
use crate::arena::SEGMENT_FRAMES;
use crate::error::{Result, unless_busy};
use crate::outcome::Counter;
use crate::pool_table::{self, PoolId};
use crate::shard::{ObjectKey, Shard, with_shard};
use crate::store::backing;
use crate::types::Oid;

/// Index nodes of an object removed under one lock.
const NODES_AT_ONCE: u32 = 16;
/// Clusters or hash buckets looked at under one lock.
const LOOKS_AT_ONCE: u32 = 1024;
/// Times all runs are looked through for a pool's last pages.
const PASSES: u32 = 8;
/// Runs of a pool purged under one lock.
const RUNS_AT_ONCE: u32 = 64;

impl Pool {
    /// Remove an object's pages; the number found. Complete on return, each lock held for a bounded time.
    pub fn flush_object(&self, oid: &Oid) -> Result<u64> {
        pool_table::record(&self.arena, self.id).ok_or_else(|| self.unknown())?;
        let key = self.key(oid);
        let mut found = 0;
        for shard in 0..self.arena.shards() {
            found += ObjectFlush {
                pool: self,
                key,
                shard,
                at: None,
                found: 0,
                restarts: 0,
            }
            .run()?;
        }
        Ok(found)
    }

    /// Remove the pool and its pages; the number of pages dropped. Its name is free at once.
    pub fn destroy(&self) -> Result<u64> {
        let begun = self
            .arena
            .with_admin(|| pool_table::begin_destroy(&self.arena, self.id))?;
        if begun {
            self.purge()
        } else {
            Err(self.unknown())
        }
    }

    /// Drop the pages of a pool being destroyed, and free its slot; what is in shards that are held goes with the next
    /// `compact`, and so does the slot.
    pub(crate) fn purge(&self) -> Result<u64> {
        let (mut dropped, mut whole) = (0, true);
        for shard in 0..self.arena.shards() {
            let (mut cursor, mut passes, mut more) = (0, 0, true);
            while more {
                let purged = unless_busy(with_shard(&self.arena, shard, |shard| {
                    purge_some(shard, self.id, &mut cursor, &mut passes, &mut dropped)
                }))?;
                whole &= purged.is_some();
                more = purged.unwrap_or(false);
            }
        }
        if !whole {
            return Ok(dropped);
        }
        self.arena
            .with_admin(|| pool_table::end_destroy(&self.arena, self.id))?;
        if self.arena.superblock().backed.get() != 0 {
            backing::trim(&self.arena)?;
        }
        Ok(dropped)
    }
}

/// Removing one object from one shard, a bounded piece at a time.
struct ObjectFlush<'p> {
    pool: &'p Pool,
    key: ObjectKey,
    shard: u32,
    at: Option<Walk>,
    found: u64,
    restarts: u32,
}

/// How far the walk over an object's nodes has come.
#[derive(Clone, Copy)]
enum Walk {
    /// Every cluster the object can have, the next one given: for objects that are dense or small.
    Clusters { next: u32 },
    /// Every bucket of the node hash downward, for objects thinly spread. Growth of the hash sends it back to the top.
    Buckets { below: u32, splits: u32 },
}

impl ObjectFlush<'_> {
    fn run(mut self) -> Result<u64> {
        let arena = &self.pool.arena;
        while with_shard(arena, self.shard, |shard| self.step(shard))? {}
        Ok(self.found)
    }

    /// One piece; false when the object has nothing left here.
    fn step(&mut self, shard: &Shard<'_>) -> bool {
        let Some(object) = shard
            .objects
            .find(self.key.hash, self.key.pool, &self.key.oid)
        else {
            self.finish(shard);
            return false;
        };
        let walk = match self.at {
            Some(walk) => walk,
            None => self.start(shard, object),
        };
        let more = match walk {
            Walk::Clusters { next } => self.clusters(shard, object, next),
            Walk::Buckets { below, splits } => self.buckets(shard, object, below, splits),
        };
        if !more {
            self.finish(shard);
        }
        more
    }

    fn start(&self, shard: &Shard<'_>, object: u32) -> Walk {
        let clusters = u64::from(shard.objects.highest_cluster(object)) + 1;
        if clusters <= 4 * u64::from(shard.nodes.count()) + 64 {
            Walk::Clusters { next: 0 }
        } else {
            Walk::Buckets {
                below: shard.nodes.buckets(),
                splits: shard.nodes.splits(),
            }
        }
    }

    fn clusters(&mut self, shard: &Shard<'_>, object: u32, from: u32) -> bool {
        let heap = shard
            .heap(self.key.pool)
            .expect("a pool with pages has a heap");
        let highest = shard.objects.highest_cluster(object);
        let mut nodes = 0;
        for cluster in from..=highest {
            if nodes == NODES_AT_ONCE || cluster - from == LOOKS_AT_ONCE {
                self.at = Some(Walk::Clusters { next: cluster });
                return true;
            }
            if self.key.shard(shard.arena, cluster) == shard.id
                && let Some(node) = shard.nodes.find(object, cluster)
            {
                self.found += shard.remove_node(&heap, node);
                nodes += 1;
                if !shard.objects.is_object_of(object, self.key.pool) {
                    return false; // that was its last page here
                }
            }
        }
        false
    }

    fn buckets(&mut self, shard: &Shard<'_>, object: u32, below: u32, splits: u32) -> bool {
        let heap = shard
            .heap(self.key.pool)
            .expect("a pool with pages has a heap");
        let grown = shard.nodes.splits() != splits;
        self.restarts += u32::from(grown);
        let below = if grown {
            shard.nodes.buckets()
        } else {
            below.min(shard.nodes.buckets())
        };
        let patient = self.restarts < 8; // or else finish in one go, whatever it takes
        let (mut nodes, mut bucket) = (0, below);
        while bucket > 0 {
            if patient && (nodes >= NODES_AT_ONCE || below - bucket >= LOOKS_AT_ONCE) {
                self.at = Some(Walk::Buckets {
                    below: bucket,
                    splits: shard.nodes.splits(),
                });
                return true;
            }
            bucket = (bucket - 1).min(shard.nodes.buckets() - 1);
            while let Some(node) = shard.nodes.in_bucket(bucket, object) {
                self.found += shard.remove_node(&heap, node);
                nodes += 1;
                if !shard.objects.is_object_of(object, self.key.pool) {
                    return false;
                }
            }
        }
        false
    }

    fn finish(&self, shard: &Shard<'_>) {
        shard.count(self.key.pool, Counter::FlushedPages, self.found);
        shard.count(
            self.key.pool,
            Counter::FlushedObjects,
            u64::from(self.found > 0),
        );
    }
}

/// Drop the pages of some of a pool's runs; false when it has none left.
fn purge_some(
    shard: &Shard<'_>,
    id: PoolId,
    cursor: &mut u32,
    passes: &mut u32,
    dropped: &mut u64,
) -> bool {
    let Some(heap) = shard.heap(id.slot) else {
        return false;
    };
    if !pool_table::is_destroying(shard.arena, id) {
        return false; // another process finished the purge, and the slot may be another pool's
    }
    let mut runs = 0;
    while heap.count(Counter::Pages).get() > 0 {
        if runs == RUNS_AT_ONCE {
            return true;
        }
        let segment = *cursor / SEGMENT_FRAMES;
        if segment >= shard.frames.segment_count() {
            *cursor = 0; // a page was moved behind the cursor
            *passes += 1;
            assert!(*passes < PASSES, "pages are counted that cannot be found");
            return true;
        }
        let length = shard.frames.run_length(segment);
        if length == 0 || *cursor % SEGMENT_FRAMES / length >= shard.frames.fresh(segment) {
            *cursor = (segment + 1) * SEGMENT_FRAMES;
            continue;
        }
        let run = shard.frames.run_of(*cursor);
        *cursor = run.first + run.frames;
        runs += 1;
        if shard.frames.tag(run).2 == id.slot {
            for place in shard.pages_in(&heap, run) {
                shard.remove_at(&heap, place);
                *dropped += 1;
                *passes = 0;
            }
        }
    }
    heap.clear();
    false
}
