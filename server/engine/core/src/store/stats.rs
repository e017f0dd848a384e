//! Statistics: sums of the arena's own counters, each read whole and without a lock.

use std::time::Duration;

use crate::alloc::frames::Frames;
use crate::alloc::heap::{Heap, heap_bytes};
use crate::alloc::slot::HEADER;
use crate::alloc::zsmalloc::{CLASSES, Zsmalloc};
use crate::arena::{Arena, HeapHead, heap_head, promised, promised_to, waiting_at_most};
use crate::error::{Result, unless_busy};
use crate::outcome::{COUNTER_NAMES, COUNTERS, Counter};
use crate::pool_table;
use crate::shard::with_shard;
use crate::types::FRAME;

/// The longest wait for one shard's lock.
const GLANCE: Duration = Duration::from_millis(10);

/// What one pool holds and has done.
#[derive(Clone, Debug)]
pub struct PoolStats {
    counters: [u64; COUNTERS],
    /// Of its reserve, what is not used, with its index.
    promised: u64,
    /// Pages ever stored, by compressed size: bucket i is (i, i+1] 64ths of a page.
    pub size_histogram: Vec<u64>,
    /// Size classes with any zspage, smallest first.
    pub classes: Vec<ClassStats>,
}

/// One size class of a pool's zsmalloc.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClassStats {
    /// Bytes to an object, slot header included.
    pub size: u64,
    pub frames: u64,
    pub objects_per_zspage: u64,
    pub zspages: u64,
    pub objects: u64,
    pub capacity: u64,
    /// Frames that compaction could free at most.
    pub freeable_frames: u64,
}

/// What the whole store holds and has done.
#[derive(Clone, Debug)]
pub struct StoreStats {
    fields: Vec<(&'static str, u64)>,
}

impl PoolStats {
    pub(crate) fn read(arena: &Arena, pool: u32) -> PoolStats {
        let mut stats = PoolStats {
            counters: [0; COUNTERS],
            promised: promised_to(arena, pool),
            size_histogram: vec![0; 64],
            classes: Vec::new(),
        };
        let mut classes = vec![(0, 0); CLASSES.classes.len()];
        for shard in 0..arena.shards() {
            let Some(head) = heap_head(arena, shard, pool) else {
                continue;
            };
            add_counters(&mut stats.counters, head);
            stats
                .size_histogram
                .iter_mut()
                .zip(&head.sizes)
                .for_each(|(sum, cell)| *sum += cell.get());
            let frames = Frames::new(arena, shard, crate::arena::Budget::new(arena, shard));
            let heap = Heap::find(arena, shard, pool, frames).expect("it has a head");
            let zsmalloc = Zsmalloc::new(heap);
            for (class, sum) in classes.iter_mut().enumerate() {
                let (zspages, objects) = zsmalloc.class_use(class as u32);
                *sum = (sum.0 + u64::from(zspages), sum.1 + u64::from(objects));
            }
        }
        stats.classes = CLASSES
            .classes
            .iter()
            .zip(classes)
            .filter(|(_, (zspages, _))| *zspages > 0)
            .map(|(class, (zspages, objects))| {
                let per = u64::from(class.objects);
                let capacity = zspages * per;
                let freeable = capacity.saturating_sub(objects) / per * u64::from(class.frames);
                ClassStats {
                    size: class.size.into(),
                    frames: class.frames.into(),
                    objects_per_zspage: per,
                    zspages,
                    objects,
                    capacity,
                    freeable_frames: freeable,
                }
            })
            .collect();
        stats
    }

    fn get(&self, counter: Counter) -> u64 {
        self.counters[counter as usize]
    }

    fn evicted(&self) -> u64 {
        [
            Counter::EvictedMemory,
            Counter::EvictedQuota,
            Counter::EvictedRelinquish,
        ]
        .iter()
        .map(|&c| self.get(c))
        .sum()
    }

    /// Name and number of each counter.
    pub fn fields(&self) -> Vec<(&'static str, u64)> {
        let mut fields: Vec<_> = COUNTER_NAMES.into_iter().zip(self.counters).collect();
        fields.push(("footprint_bytes", self.get(Counter::Frames) * FRAME as u64));
        fields.push(("evicted_pages", self.evicted()));
        fields.push(("promised_bytes", self.promised));
        fields
    }
}

fn add_counters(sums: &mut [u64; COUNTERS], head: &HeapHead) {
    sums.iter_mut()
        .zip(head.counters())
        .for_each(|(sum, cell)| *sum += cell.get());
}

impl StoreStats {
    pub(crate) fn read(arena: &Arena) -> Result<StoreStats> {
        let mut counters = [0; COUNTERS];
        let pools: Vec<u32> = pool_table::list(arena, false)
            .iter()
            .map(|(id, _)| id.slot)
            .collect();
        for &pool in &pools {
            for shard in 0..arena.shards() {
                if let Some(head) = heap_head(arena, shard, pool) {
                    add_counters(&mut counters, head);
                }
            }
        }
        let mut sums = ShardSums::default();
        for shard in 0..arena.shards() {
            sums.add(arena, shard)?;
        }
        let get = |counter: Counter| counters[counter as usize];
        let headers =
            (get(Counter::Pages) - get(Counter::Raw).min(get(Counter::Pages))) * HEADER as u64;
        let sb = arena.superblock();
        let mut fields = vec![
            ("memory_bytes", sb.memory.get()),
            ("used_bytes", arena.used()),
            ("metadata_bytes", sb.committed.get() + sums.tables + headers),
            ("table_bytes", sb.committed.get() + sums.tables),
            ("slot_header_bytes", headers),
            ("reserve_bytes", sums.reserve),
            ("promised_bytes", promised(arena, None)),
            ("objects", sums.objects),
            ("pools", pools.len() as u64),
            ("shards", arena.shards().into()),
            ("full", sb.full.get().into()),
            ("limit_hits", sb.limit_hits.get()),
            ("corrupt_pages", get(Counter::GetsCorrupt)),
            ("recoveries", sums.recoveries),
            ("slots_replayed", sums.replayed),
            ("slots_dropped", sums.dropped),
            ("lock_waits", sums.waits),
            ("lock_recoveries", sums.owners_died),
            ("generation", sb.generation.get()),
        ];
        fields.extend(COUNTER_NAMES.into_iter().zip(counters));
        fields.push(("footprint_bytes", get(Counter::Frames) * FRAME as u64));
        let evicted = [
            Counter::EvictedMemory,
            Counter::EvictedQuota,
            Counter::EvictedRelinquish,
        ];
        fields.push(("evicted_pages", evicted.iter().map(|&c| get(c)).sum()));
        Ok(StoreStats { fields })
    }

    /// Name and number of each.
    pub fn fields(&self) -> Vec<(&'static str, u64)> {
        self.fields.clone()
    }

    /// One of them, by name.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.fields
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, value)| *value)
    }
}

#[derive(Default)]
struct ShardSums {
    tables: u64,
    reserve: u64,
    objects: u64,
    recoveries: u64,
    replayed: u64,
    dropped: u64,
    waits: u64,
    owners_died: u64,
}

impl ShardSums {
    fn add(&mut self, arena: &Arena, id: u32) -> Result<()> {
        let head = arena.shard(id);
        // A shard that is held is left out: who looks at the store must not wait for it.
        let before = waiting_at_most(Some(GLANCE));
        let tables = with_shard(arena, id, |shard| shard.frames.table_bytes());
        waiting_at_most(before);
        let tables = unless_busy(tables)?.unwrap_or(0);
        let segments = crate::arena::TableId::Segments as usize;
        let derived: u64 = head.tables[..segments]
            .iter()
            .map(|t| t.committed.get())
            .sum();
        self.tables += FRAME as u64 + heap_bytes(arena, id) + tables + derived;
        self.reserve += u64::from(head.reserve_frames.get()) * FRAME as u64;
        self.objects += u64::from(head.objects.get());
        self.recoveries += head.recoveries.get();
        self.replayed += head.slots_replayed.get();
        self.dropped += head.slots_dropped.get();
        self.waits += head.lock_waits.get();
        self.owners_died += head.owners_died.get();
        Ok(())
    }
}
