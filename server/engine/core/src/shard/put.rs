//! Put, under the shard lock: admission, making room, placing the page, and what a refusal leaves behind.
//!
//! A refused put leaves no older page: the older page is flushed and its place tried once more before the put is
//! refused for lack of room. Replace-or-keep leaves the older page unchanged instead, and may exceed the limit slightly
//! while both exist. Room is made in bounded rounds; what this shard cannot free is asked of the others after the lock
//! is released.

use crate::alloc::heap::{Allocator, Heap};
use crate::alloc::slot::{HEADER, Header, Zhandle};
use crate::alloc::zbud::Zbud;
use crate::alloc::zsmalloc::Zsmalloc;
use crate::arena::{Budget, Full, is_over_by, promised_beyond, promised_to};
use crate::codec::Form;
use crate::index::NodeId;
use crate::outcome::{Counter, Outcome, Reason};
use crate::pool_table::{self, PoolView};
use crate::shard::evict::TRIES;
use crate::shard::{Item, ObjectKey, PutMode, Shard};
use crate::types::{CLUSTER, FRAME, MAX_PAGE};

/// Bytes by which the limit may be passed while a page and the one that replaces it both stand: what the largest takes, twice, as
/// its index or frame table may need some. Less than the buffers of a thread.
const BEYOND: u64 = 2 * MAX_PAGE as u64;

/// Of a copy that finds no room. It is not counted: nobody asked for it to be stored.
const NOT_COPIED: Outcome = Outcome::Refused {
    reason: Reason::Memory,
    old_flushed: false,
};

type Stored = Result<(), Full>;

impl<'a> Shard<'a> {
    /// Store one page, or refuse it. `Err` asks for room to be made elsewhere, with nothing changed; not when `last`.
    pub fn put(
        &self,
        pool: &PoolView,
        key: &ObjectKey,
        item: &Item<'_>,
        last: bool,
    ) -> Result<Outcome, Full> {
        let older = self.find(key, item.index);
        if let Some((_, place)) = older {
            // Its header and its run are wanted once the new page stands beside it.
            self.frames.prefetch(place, 1);
            self.frames.prefetch_entry(place);
        }
        let replaced = older.is_some();
        if item.mode == PutMode::Copy && self.is_crowded(pool.slot) {
            return Ok(NOT_COPIED);
        }
        if let Some(reason) = self.admission(pool, item, !replaced) {
            let old_flushed = item.mode == PutMode::Put && self.remove(key, item.index);
            return Ok(self.refused(pool, reason, old_flushed));
        }
        match self.store_with_room(pool, key, item, last && pool.persistent) {
            Ok(()) => Ok(Outcome::Stored { replaced }),
            Err(full) if !last && (full != Full::Quota || !pool.persistent) => Err(full),
            Err(_) if item.mode == PutMode::Copy => Ok(NOT_COPIED),
            Err(full) if item.mode == PutMode::ReplaceOrKeep => {
                Ok(self.pass_or_keep(pool, key, item, full, replaced))
            }
            Err(full) => Ok(self.give_way(pool, key, item, full)),
        }
    }

    fn admission(&self, pool: &PoolView, item: &Item<'_>, new: bool) -> Option<Reason> {
        if pool.frozen {
            return Some(Reason::Frozen);
        }
        if pool.max_zpage != 0 && item.bytes.len() > pool.max_zpage as usize {
            return Some(Reason::PoorCompression);
        }
        let asks = new && pool.persistent && item.mode != PutMode::Copy;
        (asks && self.is_full(pool.slot)).then_some(Reason::Memory)
    }

    /// Full for a pool, and not yet below the accept threshold again. Ephemeral pages do not count: they give way. What is
    /// promised to others counts, and what is promised to the pool it may use.
    fn is_full(&self, pool: u32) -> bool {
        let sb = self.arena.superblock();
        if sb.full.get() == 0 || promised_to(self.arena, pool) > 0 {
            return false;
        }
        let full = self.is_crowded(pool) && sb.accept_threshold.get() < 100;
        if !full {
            sb.full.set(0);
        }
        full
    }

    /// Whether what does not give way, and is not the pool's for sure, is above the accept threshold.
    fn is_crowded(&self, pool: u32) -> bool {
        let sb = self.arena.superblock();
        let accept = sb.memory.get() / 100 * u64::from(sb.accept_threshold.get());
        let held = self
            .arena
            .used()
            .saturating_sub(pool_table::ephemeral_frames(self.arena) * FRAME as u64)
            .saturating_add(promised_beyond(self.arena, Some(pool)));
        held >= accept
    }

    /// There is no room beside the older page: let it go, and try in its place once more.
    fn give_way(&self, pool: &PoolView, key: &ObjectKey, item: &Item<'_>, full: Full) -> Outcome {
        let replaced = self.remove(key, item.index);
        if replaced
            && self
                .store_with_room(pool, key, item, pool.persistent)
                .is_ok()
        {
            self.count(pool.slot, Counter::PutsReplaced, 1);
            return Outcome::Stored { replaced };
        }
        self.no_room(pool, full, replaced)
    }

    /// There is no room for both. That a store that is full can be written over, they pass the limit together, as long as it is
    /// passed by no more than `BEYOND`.
    fn pass_or_keep(
        &self,
        pool: &PoolView,
        key: &ObjectKey,
        item: &Item<'_>,
        full: Full,
        replaced: bool,
    ) -> Outcome {
        let left = BEYOND.saturating_sub((item.bytes.len() + 2 * FRAME) as u64);
        if replaced && full == Full::Memory && !is_over_by(self.arena, Some(pool.slot), left) {
            let budget = Budget::new(self.arena, self.id).for_pool(pool.slot);
            let beyond = Shard::new(self.arena, self.id, budget.unlimited());
            if beyond.store(pool, key, item).is_ok() {
                self.frames.trim_reserve();
                return Outcome::Stored { replaced };
            }
        }
        self.no_room(pool, full, false)
    }

    fn no_room(&self, pool: &PoolView, full: Full, old_flushed: bool) -> Outcome {
        if full != Full::Quota && pool.persistent {
            self.arena.superblock().full.set(1);
        }
        let reason = match full {
            Full::Memory => Reason::Memory,
            Full::Quota => Reason::Quota,
            Full::NoSpace => Reason::NoSpace,
        };
        self.refused(pool, reason, old_flushed)
    }

    fn refused(&self, pool: &PoolView, reason: Reason, old_flushed: bool) -> Outcome {
        if matches!(reason, Reason::Memory | Reason::NoSpace) {
            self.arena.superblock().limit_hits.fetch_add(1);
        }
        self.count(pool.slot, reason.counter(), 1);
        self.count(pool.slot, Counter::OldFlushed, u64::from(old_flushed));
        Outcome::Refused {
            reason,
            old_flushed,
        }
    }

    /// Store, making room in a bounded number of rounds for whatever of it finds none.
    fn store_with_room(
        &self,
        pool: &PoolView,
        key: &ObjectKey,
        item: &Item<'_>,
        force: bool,
    ) -> Stored {
        let mut stored = self.store(pool, key, item);
        let mut trimmed = false;
        for _ in 0..TRIES {
            let Err(full) = stored else { break };
            // Not twice in a row: what a failed try gave back to the reserve is no room gained.
            trimmed = !trimmed && full != Full::Quota && self.frames.trim_reserve() > 0;
            if !trimmed && !self.make_room(pool.slot, full, force) {
                break;
            }
            stored = self.store(pool, key, item);
        }
        stored
    }

    /// Store beside the older page, which goes when the new one stands; nothing changes where there is no room.
    fn store(&self, pool: &PoolView, key: &ObjectKey, item: &Item<'_>) -> Stored {
        let heap = Heap::make(self.arena, self.id, pool.slot, self.frames)?;
        let place = place(pool, &heap, item)?;
        match self.find(key, item.index) {
            None => {
                let object = self
                    .enter(pool, key, item.index, place)
                    .inspect_err(|_| self.release(&heap, place))?;
                self.write(&heap, object, item, place);
            }
            Some((node, older)) => {
                self.write(&heap, self.nodes.key(node).0, item, place);
                self.supersede(&heap, node, item.index, place, older);
            }
        }
        heap.count(Counter::PutsStored).add(1);
        let bucket = (item.bytes.len() * 64 - 1) / pool.page_size as usize;
        heap.head.sizes[bucket.min(63)].add(1);
        Ok(())
    }

    /// Index an item under a new key, making the object if need be; its number.
    fn enter(
        &self,
        pool: &PoolView,
        key: &ObjectKey,
        index: u32,
        place: Zhandle,
    ) -> Result<u32, Full> {
        let object = match self.objects.find(key.hash, pool.slot, &key.oid) {
            Some(object) => object,
            None => self.objects.create(key.hash, pool.slot, &key.oid)?,
        };
        let cluster = index / CLUSTER;
        if let Err(full) = self.nodes.insert(object, cluster, index % CLUSTER, place.0) {
            self.objects.drop_if_empty(object, || key.hash);
            return Err(full);
        }
        self.objects.add_page(object, cluster);
        self.objects.settle(self.hash_of());
        Ok(object)
    }

    fn write(&self, heap: &Heap<'a>, object: u32, item: &Item<'_>, place: Zhandle) {
        let slot = self.frames.slot(place);
        self.arena.map().copy_in(slot.payload, item.bytes);
        self.head.seq.add(1);
        let len = item.bytes.len() as u32;
        slot.publish(&Header {
            object,
            index: item.index,
            checksum: item.checksum,
            seq: self.head.seq.get(),
            form: item.form as u8,
            len,
        });
        heap.count_page(item.form, len);
    }

    /// The page at `older` has a newer one at `place`.
    fn supersede(&self, heap: &Heap<'a>, node: NodeId, index: u32, place: Zhandle, older: Zhandle) {
        self.nodes.replace(node, index % CLUSTER, place.0);
        let slot = self.frames.slot(older);
        self.leave(heap, &slot);
        slot.invalidate();
        self.release(heap, older);
        heap.count(Counter::PutsReplaced).add(1);
    }
}

/// A place for an item in its pool's heap.
fn place(pool: &PoolView, heap: &Heap<'_>, item: &Item<'_>) -> Result<Zhandle, Full> {
    let size = item.bytes.len() + HEADER;
    match item.form {
        Form::Raw => heap.alloc_raw(),
        _ if pool.zbud => Zbud::new(*heap).alloc(size),
        _ => Zsmalloc::new(*heap).alloc(size),
    }
}
