//! A heap: what one pool holds in one shard. Both allocators draw their runs from it, and it keeps the pool's quota.
//!
//! The footprint of a pool is the frames committed for it, in all shards; a quota is a limit on that, exact at every
//! commit. Heaps are made when a pool first stores something in a shard and stay for the next pool of that slot.

use crate::alloc::frames::{Frames, Run, RunKind};
use crate::alloc::slot::{Slot, Zhandle};
use crate::arena::{
    Arena, Budget, CLASS_WORDS, Full, HEAP_FRAMES, HeapHead, TABLES, W32, heap_at, pool_frames,
};
use crate::codec::Form;
use crate::outcome::{COUNTERS, Counter, GAUGES};
use crate::types::{FRAME, MAX_PAGE, MAX_POOLS};

const PAGE: u64 = FRAME as u64;

/// What an allocator asks of the store whose zpages it keeps.
pub trait Owner {
    /// The zpage in this valid slot has been copied, and the copy published: use `to`.
    fn moved(&self, slot: &Slot<'_>, to: Zhandle);
    /// The zpage in this valid slot is being evicted: forget it. The allocator invalidates and frees the slot.
    fn evicted(&self, slot: &Slot<'_>);
}

/// What an allocator offers. All of it runs under the shard lock.
pub trait Allocator {
    /// A place for `size` bytes, header included. Its slot is not valid yet.
    fn alloc(&self, size: usize) -> Result<Zhandle, Full>;
    /// Take back a place whose slot is invalid.
    fn free(&self, zhandle: Zhandle);
    /// The slot at a place.
    fn map(&self, zhandle: Zhandle) -> Slot<'_>;
    /// Move zpages together, a bounded number, to free frames; false when there is no more to gain.
    fn compact(&self, owner: &dyn Owner) -> bool;
    /// Evict what the run holds and was not used since the last call; true if the run was freed.
    fn evict(&self, run: Run, owner: &dyn Owner) -> bool;
}

/// The heap of one pool in one shard.
#[derive(Clone, Copy)]
pub struct Heap<'a> {
    pub frames: Frames<'a>,
    pub head: &'a HeapHead,
    arena: &'a Arena,
    at: u64,
    pub pool: u32,
    pub page_size: u32,
}

impl<'a> Heap<'a> {
    /// The heap of `pool` in a shard, if it has been made.
    pub fn find(arena: &'a Arena, shard: u32, pool: u32, frames: Frames<'a>) -> Option<Heap<'a>> {
        let word = arena.shard(shard).heaps[pool as usize / 32].get();
        let at = heap_at(arena, shard, pool);
        (word & 1 << (pool % 32) != 0).then(|| Heap {
            frames,
            head: arena.map().view(at),
            arena,
            at,
            pool,
            page_size: arena.pool(pool).page_size.get().min(MAX_PAGE as u32), // whatever a neighbour wrote
        })
    }

    /// The same, made now if need be.
    pub fn make(
        arena: &'a Arena,
        shard: u32,
        pool: u32,
        frames: Frames<'a>,
    ) -> Result<Heap<'a>, Full> {
        if let Some(heap) = Heap::find(arena, shard, pool, frames) {
            return Ok(heap);
        }
        let at = heap_at(arena, shard, pool);
        frames.budget.commit(at, HEAP_FRAMES * PAGE)?;
        arena.map().zero(at, (HEAP_FRAMES * PAGE) as usize);
        let word = &arena.shard(shard).heaps[pool as usize / 32];
        word.publish(word.get() | 1 << (pool % 32));
        Ok(Heap::find(arena, shard, pool, frames).expect("just made"))
    }

    #[inline(always)]
    pub fn count(&self, counter: Counter) -> &'a crate::arena::W64 {
        self.head.counter(counter)
    }

    /// Add a page to the gauges.
    pub fn count_page(&self, form: Form, len: u32) {
        self.count(Counter::Pages).add(1);
        self.count(Counter::Payload).add(u64::from(len));
        match form {
            Form::Same => self.count(Counter::SameFilled).add(1),
            Form::Raw => self.count(Counter::Raw).add(1),
            Form::Lz4 | Form::Zstd => {}
        }
    }

    /// A class's words: four list heads, then zspages and objects.
    #[inline(always)]
    pub fn class(&self, class: u32) -> &'a [W32] {
        let words = CLASS_WORDS as usize;
        self.arena
            .map()
            .words(self.at + PAGE + u64::from(class) * CLASS_WORDS * 4, words)
    }

    /// Commit a run's frames up to `frames`, within the pool's quota.
    pub fn commit(&self, run: Run, frames: u32) -> Result<(), Full> {
        let more = frames.saturating_sub(self.frames.committed(run));
        if more == 0 {
            return Ok(());
        }
        if self.arena.pool(self.pool).reserve.get() != 0 {
            return self.commit_promised(run, frames, more);
        }
        self.charge(more)?;
        self.frames
            .commit(run, frames)
            .inspect_err(|_| self.credit(more))
    }

    /// The same for a pool with a reserve: counted once committed, so that what leaves the promise is used already.
    fn commit_promised(&self, run: Run, frames: u32, more: u32) -> Result<(), Full> {
        self.frames.commit(run, frames)?;
        self.charge(more)
            .inspect_err(|_| self.frames.decommit(run, frames - more))?;
        self.frames.balance(more);
        Ok(())
    }

    /// Give back a run's frames beyond the first `frames`.
    pub fn decommit(&self, run: Run, frames: u32) {
        self.credit(self.frames.committed(run).saturating_sub(frames));
        self.frames.decommit(run, frames);
    }

    /// A free run, its committed frames charged to the pool.
    pub fn take_run(&self, frames: u32) -> Result<Run, Full> {
        let run = self.frames.take_run(frames)?;
        if let Err(full) = self.charge(self.frames.committed(run)) {
            self.frames.free_run(run);
            return Err(full);
        }
        Ok(run)
    }

    pub fn free_run(&self, run: Run) {
        self.credit(self.frames.committed(run));
        self.frames.free_run(run);
    }

    fn charge(&self, frames: u32) -> Result<(), Full> {
        let count = self.count(Counter::Frames);
        count.fetch_add(u64::from(frames));
        let quota = self.arena.pool(self.pool).quota.get();
        if quota != 0 && pool_frames(self.arena, self.pool) * PAGE > quota {
            count.fetch_sub(u64::from(frames));
            return Err(Full::Quota);
        }
        Ok(())
    }

    fn credit(&self, frames: u32) {
        self.count(Counter::Frames).fetch_sub(u64::from(frames));
    }

    /// The slots a run may hold, valid or not, for whoever walks them all.
    pub fn raw_page(&self, run: Run) -> Option<Slot<'a>> {
        (self.frames.tag(run).0 == RunKind::Raw).then(|| self.frames.raw_slot(run))
    }

    /// Store a page as it is: a run of its own, the header in the frame table.
    pub fn alloc_raw(&self) -> Result<Zhandle, Full> {
        let run = self.take_run(self.page_size / FRAME as u32)?;
        self.commit(run, run.frames)
            .inspect_err(|_| self.free_run(run))?;
        self.frames.entry(run)[7].set(0);
        self.frames.set_tag(run, RunKind::Raw, 0, self.pool);
        Ok(Zhandle::raw(run.first))
    }

    pub fn free_raw(&self, zhandle: Zhandle) {
        self.free_run(self.frames.run_of(zhandle.frame()));
    }

    /// Forget gauges, lists and the hand ahead of a rebuild. The counters of events stay, and so does the footprint until
    /// it is known again: other shards hold the pool to its quota by it.
    pub fn begin_rebuild(&self) {
        let gauges = self.head.counters().take(GAUGES).enumerate();
        let others = gauges.filter(|(gauge, _)| *gauge != Counter::Frames as usize);
        others.for_each(|(_, cell)| cell.set(0));
        self.forget_lists();
    }

    /// Rebuilt: the frames the pool has here.
    pub fn end_rebuild(&self, frames: u64) {
        self.count(Counter::Frames).set(frames);
    }

    /// Start anew for another pool.
    pub fn clear(&self) {
        self.head
            .counters()
            .chain(&self.head.sizes)
            .for_each(|cell| cell.set(0));
        self.forget_lists();
    }

    fn forget_lists(&self) {
        self.head.unbuddied.iter().for_each(|list| list.set(0));
        self.head.hand.set(0);
        self.arena
            .map()
            .zero(self.at + PAGE, ((HEAP_FRAMES - 1) * PAGE) as usize);
    }
}

const _: () = assert!(COUNTERS > GAUGES && TABLES == 12);

/// Bytes committed for heaps in a shard.
pub fn heap_bytes(arena: &Arena, shard: u32) -> u64 {
    let bits = arena
        .shard(shard)
        .heaps
        .iter()
        .map(|w| u64::from(w.get().count_ones()));
    bits.sum::<u64>() * HEAP_FRAMES * PAGE
}

/// Rebuilding: give back what a crash left committed for heaps that were never finished.
pub fn punch_unmade(arena: &Arena, shard: u32) {
    let made =
        |pool: u32| arena.shard(shard).heaps[pool as usize / 32].get() & 1 << (pool % 32) != 0;
    let mut hole = 0;
    for pool in 0..=MAX_POOLS as u32 {
        if pool == MAX_POOLS as u32 || made(pool) {
            let (from, to) = (heap_at(arena, shard, hole), heap_at(arena, shard, pool));
            arena.map().punch(from, to - from);
            hole = pool + 1;
        }
    }
}

/// A budget that passes the limit, for rebuilding.
pub fn rebuild_budget(arena: &Arena, shard: u32) -> Budget<'_> {
    Budget::new(arena, shard).unlimited()
}
