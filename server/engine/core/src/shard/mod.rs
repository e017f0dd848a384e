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

pub mod check;
mod enter;
pub mod evict;
mod put;
mod recovery;

pub use enter::{with_shard, with_shard_for};

use crate::alloc::frames::{Frames, Run, RunKind};
use crate::alloc::heap::{Allocator, Heap, Owner};
use crate::alloc::slot::{Header, Slot, Zhandle};
use crate::alloc::zbud::Zbud;
use crate::alloc::zsmalloc::Zsmalloc;
use crate::arena::{Arena, Budget, ShardHeader, Table, TableId};
use crate::codec::Form;
use crate::index::{NodeCells, NodeId, Nodes, ObjectCells, Objects, cluster_hash, object_hash};
use crate::outcome::Counter;
use crate::types::{CLUSTER, Oid};

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
    pub mode: PutMode,
}

/// What a page that is refused leaves behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PutMode {
    /// No older page: it would be stale.
    Put,
    /// The older page as it was: to a block device a failed write has changed nothing.
    ReplaceOrKeep,
    /// Nothing; and the store counts as no fuller for it. Of a page that is kept beside another pool's.
    Copy,
}

impl ObjectKey {
    pub fn new(arena: &Arena, pool: u32, oid: &Oid) -> ObjectKey {
        let oid = oid.words();
        ObjectKey {
            pool,
            oid,
            hash: object_hash(arena.superblock().seed.get(), pool, oid),
        }
    }

    /// The shard of a cluster of the object.
    #[inline(always)]
    pub fn shard(&self, arena: &Arena, cluster: u32) -> u32 {
        let hash = cluster_hash(self.hash, cluster);
        ((u128::from(hash) * u128::from(arena.shards())) >> 64) as u32
    }
}

impl<'a> Shard<'a> {
    pub fn new(arena: &'a Arena, id: u32, budget: Budget<'a>) -> Shard<'a> {
        let head = arena.shard(id);
        let table = |table: usize| Table::of(arena, id, table, budget);
        let objects = ObjectCells {
            buckets: &head.object_buckets,
            free: &head.object_free,
            live: &head.objects,
        };
        let nodes = NodeCells {
            buckets: &head.node_buckets,
            count: &head.nodes,
            lens: &head.node_len,
            splits: &head.splits,
        };
        // One by one: for every operation they are made, and a loop's body is called.
        let node = |size: usize| Table::of(arena, id, TableId::Nodes0 as usize + size, budget);
        let arrays = [
            node(0),
            node(1),
            node(2),
            node(3),
            node(4),
            node(5),
            node(6),
            node(7),
        ];
        Shard {
            arena,
            id,
            head,
            frames: Frames::new(arena, id, budget),
            objects: Objects::new(
                table(TableId::ObjectHeads as usize),
                table(TableId::Objects as usize),
                objects,
            ),
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

    // --- removing ---

    /// Take a page off its heap's gauges.
    pub fn leave(&self, heap: &Heap<'a>, slot: &Slot<'_>) {
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
    pub fn release(&self, heap: &Heap<'a>, place: Zhandle) {
        if place.is_raw() {
            return heap.free_raw(place);
        }
        match self.frames.tag(self.frames.run_of(place.frame())).0 {
            RunKind::Zbud => Zbud::new(*heap).free(place),
            _ => Zsmalloc::new(*heap).free(place),
        }
    }

    fn unindex(&self, header: &Header) {
        let node = self
            .nodes
            .find(header.object, header.index / CLUSTER)
            .expect("a valid slot is indexed");
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
        let Some((_, place)) = self.find(key, index) else {
            return false;
        };
        let heap = self.heap(key.pool).expect("a pool with pages has a heap");
        self.remove_at(&heap, place);
        true
    }

    /// Remove a page if it is still the one stamped `seq`; whether it was.
    pub fn remove_if(&self, key: &ObjectKey, index: u32, seq: u32) -> bool {
        let same = self
            .find(key, index)
            .is_some_and(|(_, place)| self.frames.slot(place).header().seq == seq);
        same && self.remove(key, index)
    }

    /// Remove an object's pages of one node.
    pub fn remove_node(&self, heap: &Heap<'a>, node: NodeId) -> u64 {
        let (object, cluster) = self.nodes.key(node);
        let mut removed = 0;
        for page in 0..CLUSTER {
            // Nodes move as they shrink, so each page is looked up anew.
            let Some(node) = self.nodes.find(object, cluster) else {
                break;
            };
            if let Some(word) = self.nodes.word(node, page) {
                self.remove_at(heap, Zhandle(word));
                removed += 1;
            }
        }
        removed
    }

    /// Every place in a run that holds a page.
    pub fn pages_in(&self, heap: &Heap<'a>, run: Run) -> Vec<Zhandle> {
        let mut places = Vec::new();
        self.each_page_in(heap, run, |place| places.push(place));
        places
    }

    /// The same without a list of them: `body` must leave the run as it is.
    pub fn each_page_in(&self, heap: &Heap<'a>, run: Run, body: impl FnMut(Zhandle)) {
        let valid = |(place, slot): (Zhandle, Slot<'_>)| slot.is_valid().then_some(place);
        match self.frames.tag(run).0 {
            RunKind::Zspage => {
                let slots = Zsmalloc::new(*heap).slots(run);
                slots.filter_map(valid).for_each(body);
            }
            RunKind::Zbud => {
                let slots = Zbud::new(*heap).slots(run);
                slots.filter_map(valid).for_each(body);
            }
            RunKind::Raw => {
                let page = (Zhandle::raw(run.first), self.frames.raw_slot(run));
                valid(page).into_iter().for_each(body);
            }
            RunKind::Free | RunKind::Reserved => {}
        }
    }

    // --- counting ---

    /// Add to a pool's counter; pools without a heap here get one, or are not counted where there is no memory.
    pub fn count(&self, pool: u32, counter: Counter, n: u64) {
        if n > 0
            && let Ok(heap) = Heap::make(self.arena, self.id, pool, self.frames)
        {
            heap.count(counter).add(n);
        }
    }
}

impl Owner for Shard<'_> {
    fn moved(&self, slot: &Slot<'_>, to: Zhandle) {
        let header = slot.header();
        let node = self
            .nodes
            .find(header.object, header.index / CLUSTER)
            .expect("a valid slot is indexed");
        self.nodes.replace(node, header.index % CLUSTER, to.0);
    }

    fn evicted(&self, slot: &Slot<'_>) {
        let header = slot.header();
        let heap = self
            .heap(self.objects.name(header.object).0)
            .expect("a pool with pages has a heap");
        self.leave(&heap, slot);
        slot.invalidate();
        self.unindex(&header);
    }
}
