//! Index nodes: the words of one cluster of 64 pages of an object.
//!
//! ```text
//! node:  | object | cluster | next in bucket + 1 | which of the 64, 2 words | a word for each, in order ... |
//! ```
//! Nodes come in eight sizes, each an array without holes: a freed node's place is taken by the array's last. So a dense
//! object costs little over 4 bytes a page, a lone page 24, and nothing is lost to free lists.

use super::buckets::Buckets;
use super::mix;
use crate::arena::{Full, NODE_HEAD, NODE_PAGES, Table, W32};

const NEXT: usize = 2;
const MAP: usize = 3;
const HEAD: usize = NODE_HEAD as usize;
const SIZES: usize = NODE_PAGES.len();
const SIZE_SHIFT: u32 = 28;

/// A node: its size, and its place in that size's array. Good until the next change of the index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeId(u32);

impl NodeId {
    fn new(size: usize, at: u32) -> NodeId {
        NodeId((size as u32) << SIZE_SHIFT | at)
    }

    fn size(self) -> usize {
        (self.0 >> SIZE_SHIFT) as usize
    }

    fn at(self) -> u32 {
        self.0 & ((1 << SIZE_SHIFT) - 1)
    }

    fn link(self) -> u32 {
        self.0 + 1
    }

    fn from_link(link: u32) -> Option<NodeId> {
        link.checked_sub(1).map(NodeId)
    }
}

/// Where the shard keeps the tables' totals.
#[derive(Clone, Copy)]
pub struct NodeCells<'a> {
    pub buckets: &'a W32,
    pub count: &'a W32,
    pub lens: &'a [W32; SIZES],
    pub splits: &'a W32,
}

/// The nodes of one shard.
#[derive(Clone, Copy)]
pub struct Nodes<'a> {
    buckets: Buckets<'a>,
    arrays: [Table<'a>; SIZES],
    cells: NodeCells<'a>,
}

#[inline(always)]
fn hash(object: u32, cluster: u32) -> u64 {
    mix(
        u64::from(object) << 32 | u64::from(cluster),
        0x9e37_79b9_7f4a_7c15,
    )
}

fn node_bytes(size: usize) -> u64 {
    u64::from(NODE_HEAD + NODE_PAGES[size]) * 4
}

impl<'a> Nodes<'a> {
    pub fn new(heads: Table<'a>, arrays: [Table<'a>; SIZES], cells: NodeCells<'a>) -> Nodes<'a> {
        Nodes {
            buckets: Buckets::new(heads, cells.buckets),
            arrays,
            cells,
        }
    }

    #[inline(always)]
    fn node(&self, id: NodeId) -> &'a [W32] {
        let size = id.size();
        let words = (NODE_HEAD + NODE_PAGES[size]) as usize;
        self.arrays[size].words(u64::from(id.at()) * node_bytes(size), words)
    }

    /// Ask for all of a node at once: its words are wanted as soon as its key is read.
    #[inline(always)]
    fn prefetch(&self, id: NodeId) {
        let (bytes, size) = (node_bytes(id.size()), id.size());
        let start = u64::from(id.at()) * bytes;
        for at in (start..start + bytes).step_by(64) {
            self.arrays[size].prefetch(at);
        }
    }

    fn map_of(node: &[W32]) -> u64 {
        u64::from(node[MAP].get()) | u64::from(node[MAP + 1].get()) << 32
    }

    fn set_map(node: &[W32], map: u64) {
        node[MAP].set(map as u32);
        node[MAP + 1].set((map >> 32) as u32);
    }

    #[inline(always)]
    fn rank(map: u64, page: u32) -> usize {
        (map & ((1u64 << page) - 1)).count_ones() as usize
    }

    /// The node of a cluster.
    #[inline]
    pub fn find(&self, object: u32, cluster: u32) -> Option<NodeId> {
        if self.buckets.len() == 0 {
            return None;
        }
        let mut at = self
            .buckets
            .head(self.buckets.of(hash(object, cluster)))
            .get();
        let mut steps = 0;
        while let Some(id) = NodeId::from_link(at) {
            self.prefetch(id);
            let node = self.node(id);
            if node[0].get() == object && node[1].get() == cluster {
                return Some(id);
            }
            at = node[NEXT].get();
            steps += 1;
            assert!(steps <= self.cells.count.get(), "a node list has a loop");
        }
        None
    }

    /// The word of page 0 to 63 of a node's cluster.
    #[inline(always)]
    pub fn word(&self, id: NodeId, page: u32) -> Option<u32> {
        let node = self.node(id);
        let map = Self::map_of(node);
        (map >> page & 1 != 0).then(|| node[HEAD + Self::rank(map, page)].get())
    }

    /// Which pages a node has.
    pub fn map(&self, id: NodeId) -> u64 {
        Self::map_of(self.node(id))
    }

    /// Object and cluster of a node.
    pub fn key(&self, id: NodeId) -> (u32, u32) {
        let node = self.node(id);
        (node[0].get(), node[1].get())
    }

    /// Point a page that is there at another word.
    pub fn replace(&self, id: NodeId, page: u32, word: u32) {
        let node = self.node(id);
        let map = Self::map_of(node);
        assert!(map >> page & 1 != 0, "replaced a page that is not there");
        node[HEAD + Self::rank(map, page)].set(word);
    }

    /// Add a page that is not there. Nothing changes where there is no memory.
    pub fn insert(&self, object: u32, cluster: u32, page: u32, word: u32) -> Result<(), Full> {
        let id = match self.find(object, cluster) {
            Some(id) => self.grow_for_one(id)?,
            None => self.create(object, cluster)?,
        };
        let node = self.node(id);
        let map = Self::map_of(node);
        debug_assert!(map >> page & 1 == 0);
        let (rank, count) = (Self::rank(map, page), map.count_ones() as usize);
        for i in (rank..count).rev() {
            node[HEAD + i + 1].set(node[HEAD + i].get());
        }
        node[HEAD + rank].set(word);
        Self::set_map(node, map | 1 << page);
        Ok(())
    }

    /// Remove a page that is there; the node goes with its last.
    pub fn remove(&self, id: NodeId, page: u32) {
        let node = self.node(id);
        let map = Self::map_of(node);
        assert!(map >> page & 1 != 0, "removed a page that is not there");
        let (rank, count) = (Self::rank(map, page), map.count_ones() as usize);
        for i in rank..count - 1 {
            node[HEAD + i].set(node[HEAD + i + 1].get());
        }
        Self::set_map(node, map & !(1 << page));
        if count == 1 {
            self.delete(id);
        } else if id.size() > 0 && count as u32 - 1 <= NODE_PAGES[id.size()] / 4 {
            self.fit(id);
        }
    }

    fn push(&self, size: usize) -> Result<NodeId, Full> {
        let at = self.cells.lens[size].get();
        if at >> SIZE_SHIFT != 0 {
            return Err(Full::Memory);
        }
        self.arrays[size].grow(u64::from(at + 1) * node_bytes(size))?;
        self.cells.lens[size].set(at + 1);
        Ok(NodeId::new(size, at))
    }

    fn create(&self, object: u32, cluster: u32) -> Result<NodeId, Full> {
        self.buckets.ensure()?;
        let id = self.push(0)?;
        let node = self.node(id);
        node[0].set(object);
        node[1].set(cluster);
        Self::set_map(node, 0);
        let head = self.buckets.head(self.buckets.of(hash(object, cluster)));
        node[NEXT].set(head.get());
        head.set(id.link());
        self.cells.count.add(1);
        self.split();
        Ok(id)
    }

    /// The cell that links to a node.
    fn link_to(&self, id: NodeId, object: u32, cluster: u32) -> &'a W32 {
        let mut link = self.buckets.head(self.buckets.of(hash(object, cluster)));
        let mut steps = 0;
        while link.get() != id.link() {
            let next = NodeId::from_link(link.get()).expect("a node is in its list");
            link = &self.node(next)[NEXT];
            steps += 1;
            assert!(steps <= self.cells.count.get(), "a node list has a loop");
        }
        link
    }

    fn delete(&self, id: NodeId) {
        let (object, cluster) = self.key(id);
        self.link_to(id, object, cluster)
            .set(self.node(id)[NEXT].get());
        self.vacate(id);
        self.cells.count.sub(1);
        self.merge();
    }

    /// Give up a place in an array: the last node moves in.
    fn vacate(&self, id: NodeId) {
        let size = id.size();
        let last = NodeId::new(size, self.cells.lens[size].get() - 1);
        if last != id {
            let (object, cluster) = self.key(last);
            let link = self.link_to(last, object, cluster);
            let bytes = node_bytes(size);
            self.arrays[size].copy_within(
                u64::from(last.at()) * bytes,
                u64::from(id.at()) * bytes,
                bytes,
            );
            link.set(id.link());
        }
        self.cells.lens[size].set(last.at());
        self.arrays[size].shrink(u64::from(last.at()) * node_bytes(size));
    }

    fn grow_for_one(&self, id: NodeId) -> Result<NodeId, Full> {
        let count = self.map(id).count_ones();
        if count < NODE_PAGES[id.size()] {
            Ok(id)
        } else {
            self.resize(id, id.size() + 1)
        }
    }

    /// Move a node to the smallest size that holds it, if it can be had.
    fn fit(&self, id: NodeId) {
        let count = self.map(id).count_ones();
        let size = NODE_PAGES
            .iter()
            .position(|&pages| pages >= count)
            .expect("64 is enough");
        if size < id.size() {
            let _ = self.resize(id, size);
        }
    }

    fn resize(&self, id: NodeId, size: usize) -> Result<NodeId, Full> {
        let new = self.push(size)?;
        let (from, to) = (self.node(id), self.node(new));
        let words = HEAD + self.map(id).count_ones() as usize;
        for (to, from) in to.iter().zip(&from[..words]) {
            to.set(from.get());
        }
        let (object, cluster) = self.key(id);
        self.link_to(id, object, cluster).set(new.link());
        self.vacate(id);
        Ok(new)
    }

    fn relink(&self, mut at: u32) {
        while let Some(id) = NodeId::from_link(at) {
            let node = self.node(id);
            at = node[NEXT].get();
            let head = self
                .buckets
                .head(self.buckets.of(hash(node[0].get(), node[1].get())));
            node[NEXT].set(head.get());
            head.set(id.link());
        }
    }

    fn split(&self) {
        if let Some((old, _)) = self.buckets.grow(self.cells.count.get()) {
            self.cells.splits.add(1);
            let head = self.buckets.head(old);
            let list = head.get();
            head.set(0);
            self.relink(list);
        }
    }

    fn merge(&self) {
        if let Some((_, list)) = self.buckets.shrink(self.cells.count.get()) {
            self.relink(list);
        }
    }

    /// A node of `object` in a bucket, for a scan of all buckets. A scan downward sees every node that stays, unless
    /// `splits` moved: then it starts again.
    pub fn in_bucket(&self, bucket: u32, object: u32) -> Option<NodeId> {
        let mut at = self.buckets.head(bucket).get();
        while let Some(id) = NodeId::from_link(at) {
            let node = self.node(id);
            if node[0].get() == object {
                return Some(id);
            }
            at = node[NEXT].get();
        }
        None
    }

    /// Object and cluster of every node.
    pub fn each(&self, mut node: impl FnMut(u32, u32)) {
        for size in 0..SIZES {
            for at in 0..self.cells.lens[size].get() {
                let (object, cluster) = self.key(NodeId::new(size, at));
                node(object, cluster);
            }
        }
    }

    pub fn buckets(&self) -> u32 {
        self.buckets.len()
    }

    /// Moves when the hash grows.
    pub fn splits(&self) -> u32 {
        self.cells.splits.get()
    }

    pub fn count(&self) -> u32 {
        self.cells.count.get()
    }

    /// Give back what the tables have beyond their use.
    pub fn trim(&self) {
        for size in (1..SIZES).rev() {
            for at in (0..self.cells.lens[size].get()).rev() {
                self.fit(NodeId::new(size, at));
            }
        }
        self.arrays.iter().for_each(Table::trim);
        self.buckets.trim();
    }

    /// Forget everything, ahead of a rebuild.
    pub fn reset(&self) {
        self.buckets.reset();
        self.cells.count.set(0);
        for (array, len) in self.arrays.iter().zip(self.cells.lens) {
            array.reset();
            len.set(0);
        }
        self.cells.splits.add(1);
    }

    /// Every (object, cluster, page, word), and violations.
    pub fn check(&self, faults: &mut Vec<String>, mut page: impl FnMut(u32, u32, u32, u32)) {
        let mut nodes = 0;
        for (size, &most) in NODE_PAGES.iter().enumerate() {
            for at in 0..self.cells.lens[size].get() {
                nodes += 1;
                let id = NodeId::new(size, at);
                let (object, cluster) = self.key(id);
                let map = self.map(id);
                if self.find(object, cluster) != Some(id) {
                    faults.push(format!(
                        "node {id:?} of object {object} cluster {cluster} is not found by its key"
                    ));
                }
                if map == 0 || map.count_ones() > most {
                    faults.push(format!(
                        "node {id:?} has {} pages in a size for {}",
                        map.count_ones(),
                        most
                    ));
                    continue;
                }
                for bit in (0..64).filter(|bit| map >> bit & 1 != 0) {
                    page(
                        object,
                        cluster,
                        bit,
                        self.word(id, bit).expect("its bit is set"),
                    );
                }
            }
        }
        if nodes != self.cells.count.get() {
            faults.push(format!(
                "{nodes} index nodes, and {} counted",
                self.cells.count.get()
            ));
        }
    }
}
