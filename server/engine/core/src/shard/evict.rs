//! Eviction: makes room at the expense of ephemeral pages.
//!
//! A hand passes over the frames of the pool that exceeds its weight most, run by run (second chance, as in CLOCK). A
//! run none of whose pages was used since the last pass is freed, whole frames at once; use spares it for one pass. New
//! pages start as unused, so a scan that is read once leaves again without displacing pages in use. A step looks at a
//! bounded number of runs, which bounds the work of a put.

use crate::alloc::frames::{Run, RunKind};
use crate::alloc::heap::{Allocator, Heap};
use crate::alloc::slot::HEADER;
use crate::alloc::zbud::Zbud;
use crate::alloc::zsmalloc::Zsmalloc;
use crate::arena::{Full, SEGMENT_FRAMES};
use crate::outcome::{Cause, Counter};
use crate::pool_table;
use crate::shard::Shard;
use crate::types::FRAME;

/// Most rounds of making room for one put.
pub const TRIES: u32 = 8;
/// Most runs of the pool looked at in one round.
const RUNS: u32 = 16;
/// Most steps of compaction in one round.
const STEPS: u32 = 4;
/// Most frame-table entries passed over in one round.
const ENTRIES: u32 = 8192;

impl<'a> Shard<'a> {
    /// Make some room for a put of `pool`; false when nothing more can be done here. `force` evicts used pages too.
    pub fn make_room(&self, pool: u32, full: Full, force: bool) -> bool {
        match full {
            Full::Quota => {
                pool_table::is_ephemeral(self.arena, pool)
                    && self
                        .heap(pool)
                        .is_some_and(|heap| self.evict(&heap, Cause::Quota, force))
            }
            Full::Memory | Full::NoSpace => {
                // What lies idle between pages, then ephemeral pages.
                self.tighten()
                    || self
                        .victim()
                        .is_some_and(|heap| self.evict(&heap, Cause::Memory, force))
            }
        }
    }

    /// A few steps of compaction where a heap is loosely filled; whether that freed frames.
    fn tighten(&self) -> bool {
        let loose = |heap: &Heap<'_>| {
            let frames = heap.count(Counter::Frames).get();
            let slots = heap.count(Counter::Pages).get() * (HEADER as u64 + 16);
            let filled = (heap.count(Counter::Payload).get() + slots) / FRAME as u64;
            frames > filled + frames / 16 + 16
        };
        let packs = |&pool: &u32| {
            pool_table::is_live(self.arena, pool) && !pool_table::uses_zbud(self.arena, pool)
        };
        let heaps = (0..self.arena.pool_slots()).filter(packs);
        let Some(heap) = heaps.filter_map(|pool| self.heap(pool)).find(loose) else {
            return false;
        };
        let before = heap.count(Counter::Frames).get();
        let more = |_: &u32| Zsmalloc::new(heap).compact(self);
        (0..STEPS).take_while(more).count();
        heap.count(Counter::Frames).get() < before
    }

    /// The ephemeral heap with the most frames for its weight.
    pub fn victim(&self) -> Option<Heap<'a>> {
        let ephemeral = |pool: &u32| {
            pool_table::is_live(self.arena, *pool) && pool_table::is_ephemeral(self.arena, *pool)
        };
        let heaps = (0..self.arena.pool_slots())
            .filter(ephemeral)
            .filter_map(|pool| self.heap(pool));
        let load = |heap: &Heap<'_>| {
            let weight = u64::from(self.arena.pool(heap.pool).weight.get().max(1));
            (heap.count(Counter::Frames).get() << 16) / weight
        };
        heaps
            .filter(|heap| heap.count(Counter::Frames).get() > 0)
            .max_by_key(load)
    }

    /// One round of eviction from a heap; whether any frame or object was freed.
    pub fn evict(&self, heap: &Heap<'a>, cause: Cause, force: bool) -> bool {
        let pages = heap.count(Counter::Pages).get();
        let frames = heap.count(Counter::Frames).get();
        let mut looked = 0;
        let mut hand = Hand {
            shard: self,
            heap,
            left: ENTRIES,
        };
        while looked < RUNS && heap.count(Counter::Frames).get() == frames {
            let Some(run) = hand.advance() else { break };
            if force {
                self.forget_use(heap, run);
            }
            self.evict_run(heap, run);
            looked += 1;
        }
        let evicted = pages - heap.count(Counter::Pages).get();
        let counter = match cause {
            Cause::Memory => Counter::EvictedMemory,
            Cause::Quota => Counter::EvictedQuota,
            Cause::Relinquish => Counter::EvictedRelinquish,
        };
        heap.count(counter).add(evicted);
        let freed = frames.saturating_sub(heap.count(Counter::Frames).get());
        heap.count(Counter::EvictedFrames).add(freed);
        // Runs that were spared have spent their reference, and a hand that met none has come closer to one.
        looked > 0 || hand.left == 0
    }

    fn forget_use(&self, heap: &Heap<'a>, run: Run) {
        self.each_page_in(heap, run, |place| {
            self.frames.slot(place).take_reference();
        });
    }

    fn evict_run(&self, heap: &Heap<'a>, run: Run) -> bool {
        match self.frames.tag(run).0 {
            RunKind::Zspage => Zsmalloc::new(*heap).evict(run, self),
            RunKind::Zbud => Zbud::new(*heap).evict(run, self),
            _ => self.evict_raw(heap, run),
        }
    }

    fn evict_raw(&self, heap: &Heap<'a>, run: Run) -> bool {
        let unused = heap
            .raw_page(run)
            .is_some_and(|slot| !slot.take_reference());
        if unused {
            self.remove_at(heap, crate::alloc::slot::Zhandle::raw(run.first));
        }
        unused
    }
}

/// A heap's hand, going round the frames of the shard.
struct Hand<'s, 'a> {
    shard: &'s Shard<'a>,
    heap: &'s Heap<'a>,
    left: u32,
}

impl Hand<'_, '_> {
    /// The next run of the heap's pool, if it comes soon enough.
    fn advance(&mut self) -> Option<Run> {
        let frames = &self.shard.frames;
        let mut at = self.heap.head.hand.get();
        while self.left > 0 && frames.segment_count() > 0 {
            self.left -= 1;
            if at / SEGMENT_FRAMES >= frames.segment_count() {
                at = 0;
            }
            let (segment, length) = (at / SEGMENT_FRAMES, frames.run_length(at / SEGMENT_FRAMES));
            let next_segment = (segment + 1) * SEGMENT_FRAMES;
            if length == 0 || at % SEGMENT_FRAMES / length >= frames.fresh(segment) {
                at = next_segment;
                continue;
            }
            let run = frames.run_of(at);
            at = run.first + length;
            let (kind, _, pool) = frames.tag(run);
            let holds_pages = !matches!(kind, RunKind::Free | RunKind::Reserved);
            if holds_pages && pool == self.heap.pool {
                self.heap.head.hand.set(at);
                return Some(run);
            }
        }
        self.heap.head.hand.set(at);
        None
    }
}
