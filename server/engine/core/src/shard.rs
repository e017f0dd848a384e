//! A shard: everything one lock guards, and the operations on pages, which bind index, allocators and slots.
//!
//! Shards know nothing of each other. An object that has pages in several is a record in each.
//!
//! What is written in which order, so that a crash between any two stores loses nothing acknowledged:
//! - put, new key: place, index entry, payload, then the slot is published.
//! - put, older page there: the new slot is published with a higher number; the index points to it; the older is invalidated.
//! - flush, evict, exclusive get: the slot is invalidated; index entry and place follow.
//! - move: the copy is published with the same number; the index points to it; the original is invalidated.
//!
//! Lock order: admin, then one shard. Whoever finds `dirty` set under the lock rebuilds the shard first.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::arena::{Acquired, Arena, Budget, Counter, DIRTY, Full, Level, SUSPECT, ShardHeader, TableId};
use crate::codec::Form;
use crate::error::{Error, Result};
use crate::frames::{Frames, Run, RunKind};
use crate::heap::{Allocator, Heap, Owner};
use crate::index::{NodeCells, NodeId, Nodes, ObjectCells, Objects, cluster_hash, object_hash};
use crate::pools::PoolView;
use crate::recovery;
use crate::slot::{HEADER, Header, Slot, Zhandle};
use crate::types::{CLUSTER, Oid, Outcome, Reason};
use crate::zbud::Zbud;
use crate::zsmalloc::Zsmalloc;

/// A shard whose lock is held.
pub struct Shard<'a> {
    pub arena: &'a Arena,
    pub id: u32,
    pub head: &'a ShardHeader,
    pub frames: Frames<'a>,
    pub objects: Objects<'a>,
    pub nodes: Nodes<'a>,
}

/// A pool's object, and the hash of its name.
#[derive(Clone, Copy)]
pub struct ObjectKey {
    pub pool: u32,
    pub oid: [u64; 3],
    pub hash: u64,
}

/// One encoded page to store.
#[derive(Clone, Copy)]
pub struct Item<'b> {
    pub index: u32,
    pub form: Form,
    pub checksum: u32,
    pub bytes: &'b [u8],
}

impl ObjectKey {
    pub fn new(arena: &Arena, pool: u32, oid: &Oid) -> ObjectKey {
        let oid = oid.words();
        ObjectKey { pool, oid, hash: object_hash(arena.superblock().seed.get(), pool, oid) }
    }

    /// The shard of a cluster of the object.
    #[inline(always)]
    pub fn shard(&self, arena: &Arena, cluster: u32) -> u32 {
        let hash = cluster_hash(self.hash, cluster);
        ((u128::from(hash) * u128::from(arena.shards())) >> 64) as u32
    }
}

/// Run `body` on a shard under its lock, rebuilt first where its last user died or failed in it.
///
/// A panic in `body` is taken for a crash: the shard is left dirty for its next user, and the caller gets an error.
pub fn with_shard<T>(arena: &Arena, id: u32, body: impl FnOnce(&Shard<'_>) -> T) -> Result<T> {
    let held = Held::acquire(arena, id)?;
    let shard = Shard::new(arena, id, Budget::new(arena, id));
    catch_unwind(AssertUnwindSafe(|| {
        if held.must_rebuild {
            recovery::rebuild(arena, id, held.deep)?;
        }
        held.head.dirty.set(DIRTY);
        Ok(body(&shard))
    }))
    .unwrap_or_else(|panic| damaged(id, panic))
    .inspect(|_| held.finish())
}

struct Held<'a> {
    head: &'a ShardHeader,
    must_rebuild: bool,
    deep: bool,
}

impl<'a> Held<'a> {
    fn acquire(arena: &'a Arena, id: u32) -> Result<Held<'a>> {
        let head = arena.shard(id);
        let Acquired { owner_died, waited } = head.lock.acquire(Level::Shard).map_err(|e| Error::Damaged {
            shard: id,
            why: format!("its lock is unusable ({e})"),
        })?;
        let dirty = head.dirty.get();
        let held = Held { head, must_rebuild: dirty != 0, deep: dirty & SUSPECT != 0 };
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

impl<'a> Shard<'a> {
    pub fn new(arena: &'a Arena, id: u32, budget: Budget<'a>) -> Shard<'a> {
        let head = arena.shard(id);
        let table = |table: usize| arena.table(id, table, budget);
        let objects = ObjectCells { buckets: &head.object_buckets, free: &head.object_free, live: &head.objects };
        let nodes = NodeCells {
            buckets: &head.node_buckets,
            count: &head.nodes,
            lens: &head.node_len,
            splits: &head.splits,
        };
        let arrays = std::array::from_fn(|size| table(TableId::Nodes0 as usize + size));
        Shard {
            arena,
            id,
            head,
            frames: Frames::new(arena, id, budget),
            objects: Objects::new(table(TableId::ObjectHeads as usize), table(TableId::Objects as usize), objects),
            nodes: Nodes::new(table(TableId::NodeHeads as usize), arrays, nodes),
        }
    }

    /// A pool's heap here, if it has stored anything.
    #[inline]
    pub fn heap(&self, pool: u32) -> Option<Heap<'a>> {
        Heap::find(self.arena, self.id, pool, self.frames)
    }

    /// The hash of an object's name again.
    pub fn hash_of(&self) -> impl Fn(u32, [u64; 3]) -> u64 + use<'a> {
        let seed = self.arena.superblock().seed.get();
        move |pool, oid| object_hash(seed, pool, oid)
    }

    // --- finding ---

    /// The node of a cluster of an object.
    #[inline]
    pub fn node(&self, key: &ObjectKey, cluster: u32) -> Option<NodeId> {
        let object = self.objects.find(key.hash, key.pool, &key.oid)?;
        self.nodes.find(object, cluster)
    }

    /// The place of a page.
    pub fn find(&self, key: &ObjectKey, index: u32) -> Option<(NodeId, Zhandle)> {
        let node = self.node(key, index / CLUSTER)?;
        Some((node, Zhandle(self.nodes.word(node, index % CLUSTER)?)))
    }

    // --- put ---

    /// Store one page, or refuse it. `Err` asks for memory to be freed elsewhere, with nothing changed; not when `last`.
    pub fn put(&self, pool: &PoolView, key: &ObjectKey, item: &Item<'_>, last: bool) -> std::result::Result<Outcome, Full> {
        let old = self.find(key, item.index);
        if let Some(reason) = self.admission(pool, item, old.is_none()) {
            return Ok(self.refuse(pool, key, item.index, reason));
        }
        match self.store(pool, key, item, old) {
            Ok(()) => Ok(Outcome::Stored { replaced: old.is_some() }),
            Err(Full::Memory | Full::NoSpace) if !last => Err(Full::Memory),
            Err(full) => Ok(self.give_way(pool, key, item, full)),
        }
    }

    /// There is no room beside the older page: let it go, and try in its place once more.
    fn give_way(&self, pool: &PoolView, key: &ObjectKey, item: &Item<'_>, full: Full) -> Outcome {
        let replaced = self.remove(key, item.index);
        if replaced && self.store(pool, key, item, None).is_ok() {
            self.count(pool.slot, Counter::PutsReplaced, 1);
            return Outcome::Stored { replaced };
        }
        if full != Full::Quota && pool.persistent {
            self.arena.superblock().full.set(1);
        }
        let reason = match full {
            Full::Memory => Reason::Memory,
            Full::Quota => Reason::Quota,
            Full::NoSpace => Reason::NoSpace,
        };
        self.refused(pool, reason, replaced)
    }

    fn admission(&self, pool: &PoolView, item: &Item<'_>, new: bool) -> Option<Reason> {
        if pool.frozen {
            return Some(Reason::Frozen);
        }
        if pool.max_zpage != 0 && item.bytes.len() > pool.max_zpage as usize {
            return Some(Reason::PoorCompression);
        }
        (new && pool.persistent && self.is_full()).then_some(Reason::Memory)
    }

    /// Full, and not yet below the accept threshold again.
    fn is_full(&self) -> bool {
        let sb = self.arena.superblock();
        if sb.full.get() == 0 {
            return false;
        }
        let accept = sb.memory.get() / 100 * u64::from(sb.accept_threshold.get());
        let full = self.arena.used() >= accept && sb.accept_threshold.get() < 100;
        if !full {
            sb.full.set(0);
        }
        full
    }

    fn refuse(&self, pool: &PoolView, key: &ObjectKey, index: u32, reason: Reason) -> Outcome {
        let old_flushed = self.remove(key, index);
        self.refused(pool, reason, old_flushed)
    }

    fn refused(&self, pool: &PoolView, reason: Reason, old_flushed: bool) -> Outcome {
        let counter = match reason {
            Reason::Quota => Counter::RefusedQuota,
            Reason::Frozen => Counter::RefusedFrozen,
            Reason::PoorCompression => Counter::RefusedPoorCompression,
            Reason::Memory => Counter::RefusedMemory,
            Reason::NoSpace => Counter::RefusedNoSpace,
        };
        if matches!(reason, Reason::Memory | Reason::NoSpace) {
            self.arena.superblock().limit_hits.fetch_add(1);
        }
        self.count(pool.slot, counter, 1);
        self.count(pool.slot, Counter::OldFlushed, u64::from(old_flushed));
        Outcome::Refused { reason, old_flushed }
    }

    fn store(&self, pool: &PoolView, key: &ObjectKey, item: &Item<'_>, old: Option<(NodeId, Zhandle)>) -> std::result::Result<(), Full> {
        let heap = match self.heap(pool.slot) {
            Some(heap) => heap,
            None => self.make_heap(pool)?,
        };
        let place = self.place(pool, &heap, item)?;
        // Making room for it may have evicted the older page.
        let old = if old.is_some() { self.find(key, item.index) } else { None };
        let object = match old {
            Some((node, _)) => self.nodes.key(node).0,
            None => self.enter(pool, key, item.index, place).inspect_err(|_| self.release(&heap, place))?,
        };
        self.write(&heap, object, item, place);
        if let Some((node, older)) = old {
            self.nodes.replace(node, item.index % CLUSTER, place.0);
            let slot = self.frames.slot(older);
            self.leave(&heap, &slot);
            slot.invalidate();
            self.release(&heap, older);
            heap.count(Counter::PutsReplaced).add(1);
        }
        heap.count(Counter::PutsStored).add(1);
        let bucket = (item.bytes.len() * 64 - 1) / pool.page_size as usize;
        heap.head.sizes[bucket.min(63)].add(1);
        Ok(())
    }

    fn make_heap(&self, pool: &PoolView) -> std::result::Result<Heap<'a>, Full> {
        let make = || Heap::make(self.arena, self.id, pool.slot, self.frames);
        make().or_else(|full| {
            self.make_room(pool.slot, full);
            make()
        })
    }

    /// A place for an item, other pages evicted for it where that is allowed.
    fn place(&self, pool: &PoolView, heap: &Heap<'a>, item: &Item<'_>) -> std::result::Result<Zhandle, Full> {
        let size = item.bytes.len() + HEADER;
        let alloc = || match item.form {
            Form::Raw => heap.alloc_raw(),
            _ if pool.zbud => Zbud::new(*heap).alloc(size),
            _ => Zsmalloc::new(*heap).alloc(size),
        };
        let mut full = match alloc() {
            Ok(place) => return Ok(place),
            Err(full) => full,
        };
        for _ in 0..crate::evict::TRIES {
            if !self.make_room(pool.slot, full) {
                break;
            }
            match alloc() {
                Ok(place) => return Ok(place),
                Err(again) => full = again,
            }
        }
        Err(full)
    }

    /// Index an item under a new key, making the object if need be; its number.
    fn enter(&self, pool: &PoolView, key: &ObjectKey, index: u32, place: Zhandle) -> std::result::Result<u32, Full> {
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
        heap.count(Counter::Pages).add(1);
        heap.count(Counter::Payload).add(u64::from(len));
        match item.form {
            Form::Same => heap.count(Counter::SameFilled).add(1),
            Form::Raw => heap.count(Counter::Raw).add(1),
            Form::Lz4 | Form::Zstd => {}
        }
    }

    // --- removing ---

    /// Take a page off its heap's gauges.
    fn leave(&self, heap: &Heap<'a>, slot: &Slot<'_>) {
        let header = slot.header();
        heap.count(Counter::Pages).sub(1);
        heap.count(Counter::Payload).sub(u64::from(header.len));
        match Form::from_bits(header.form) {
            Some(Form::Same) => heap.count(Counter::SameFilled).sub(1),
            Some(Form::Raw) => heap.count(Counter::Raw).sub(1),
            _ => {}
        }
    }

    /// Free the place of an invalid slot.
    fn release(&self, heap: &Heap<'a>, place: Zhandle) {
        if place.is_raw() {
            return heap.free_raw(place);
        }
        match self.frames.tag(self.frames.run_of(place.frame())).0 {
            RunKind::Zbud => Zbud::new(*heap).free(place),
            _ => Zsmalloc::new(*heap).free(place),
        }
    }

    fn unindex(&self, header: &Header) {
        let node = self.nodes.find(header.object, header.index / CLUSTER).expect("a valid slot is indexed");
        self.nodes.remove(node, header.index % CLUSTER);
        let hash = || {
            let (pool, oid) = self.objects.name(header.object);
            self.hash_of()(pool, oid)
        };
        self.objects.remove_page(header.object, hash);
    }

    /// Remove a page whose place is known.
    pub fn remove_at(&self, heap: &Heap<'a>, place: Zhandle) {
        let slot = self.frames.slot(place);
        let header = slot.header();
        self.leave(heap, &slot);
        slot.invalidate();
        self.unindex(&header);
        self.release(heap, place);
    }

    /// Remove a page; whether it was there.
    pub fn remove(&self, key: &ObjectKey, index: u32) -> bool {
        let Some((_, place)) = self.find(key, index) else { return false };
        let heap = self.heap(key.pool).expect("a pool with pages has a heap");
        self.remove_at(&heap, place);
        true
    }

    /// Remove an object's pages of one node.
    pub fn remove_node(&self, heap: &Heap<'a>, node: NodeId) -> u64 {
        let (object, cluster) = self.nodes.key(node);
        let mut removed = 0;
        for page in 0..CLUSTER {
            // Nodes move as they shrink, so each page is looked up anew.
            let Some(node) = self.nodes.find(object, cluster) else { break };
            if let Some(word) = self.nodes.word(node, page) {
                self.remove_at(heap, Zhandle(word));
                removed += 1;
            }
        }
        removed
    }

    /// Every place in a run that holds a page.
    pub fn pages_in(&self, heap: &Heap<'a>, run: Run) -> Vec<Zhandle> {
        let valid = |(place, slot): (Zhandle, Slot<'_>)| slot.is_valid().then_some(place);
        match self.frames.tag(run).0 {
            RunKind::Zspage => Zsmalloc::new(*heap).slots(run).filter_map(valid).collect(),
            RunKind::Zbud => Zbud::new(*heap).slots(run).filter_map(valid).collect(),
            RunKind::Raw => valid((Zhandle::raw(run.first), self.frames.raw_slot(run))).into_iter().collect(),
            RunKind::Free | RunKind::Reserved => Vec::new(),
        }
    }

    // --- counting ---

    /// Add to a pool's counter; pools without a heap here get one, or are not counted where there is no memory.
    pub fn count(&self, pool: u32, counter: Counter, n: u64) {
        if n > 0 && let Ok(heap) = Heap::make(self.arena, self.id, pool, self.frames) {
            heap.count(counter).add(n);
        }
    }
}

impl Owner for Shard<'_> {
    fn moved(&self, slot: &Slot<'_>, to: Zhandle) {
        let header = slot.header();
        let node = self.nodes.find(header.object, header.index / CLUSTER).expect("a valid slot is indexed");
        self.nodes.replace(node, header.index % CLUSTER, to.0);
    }

    fn evicted(&self, slot: &Slot<'_>) {
        let header = slot.header();
        let heap = self.heap(self.objects.name(header.object).0).expect("a pool with pages has a heap");
        self.leave(&heap, slot);
        slot.invalidate();
        self.unindex(&header);
    }
}
