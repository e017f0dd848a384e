//! Batches: many pages of one object, taken cluster by cluster.
//!
//! Pages are compressed before a lock is taken and decompressed after it is released; under it bytes are only copied. A
//! cluster of 64 pages is one shard's, so each cluster of a batch takes one lock once.

mod copy;
mod fetch;
mod get;
mod last_page;
mod pages;
mod put;
mod reclaim;
mod scan;
mod scratch;

pub use fetch::{Fetched, FetchedPage};
pub use last_page::LastPage;
pub use pages::Neighbours;
pub use reclaim::shrink;
pub use scan::{ScanCursor, ScannedCluster};

use crate::alloc::slot::HEADER;
use crate::alloc::zbud::Zbud;
use crate::alloc::zsmalloc::CLASSES;
use crate::arena::Arena;
use crate::error::Result;
use crate::outcome::Counter;
use crate::pool_table::{PoolId, PoolView, damaged, unknown};
use crate::shard::{ObjectKey, Shard, with_shard_for};
use crate::types::{CLUSTER, Codec};
use scratch::{SCRATCH, Scratch};

/// Most bytes of pages that are worked on under one lock.
const STRETCH: usize = 256 << 10;

/// What the operations of one pool need to know that never changes.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub arena: &'a Arena,
    pub id: PoolId,
    pub name: &'a str,
    pub page_size: usize,
    pub codec: Codec,
    /// Largest compressed page worth keeping compressed, in bytes.
    pub limit: usize,
}

/// How the pages of a put arrive.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Input {
    Pages,
    Lz4Blocks,
    /// LZ4 blocks, of which one as long as a page is the page itself.
    Packed,
}

impl Input {
    fn has_blocks(self) -> bool {
        matches!(self, Input::Lz4Blocks | Input::Packed)
    }

    /// Whether bytes that arrive are a block to be decoded.
    fn is_block(self, len: usize, page_size: usize) -> bool {
        match self {
            Input::Pages => false,
            Input::Lz4Blocks => true,
            Input::Packed => len != page_size,
        }
    }
}

/// The largest payload that costs less than a raw page.
pub fn payload_limit(zbud: bool, page_size: usize) -> usize {
    if zbud {
        let chunk = page_size / crate::alloc::zbud::CHUNKS as usize;
        debug_assert!(Zbud::fits(page_size as u32, page_size - chunk));
        page_size - chunk - HEADER
    } else {
        CLASSES.largest_payload(page_size, HEADER)
    }
}

/// Most pages of a stretch.
fn most_of(page_size: usize) -> usize {
    (STRETCH / page_size).max(1)
}

/// Positions of `count` items in the order of their indices, cut where the cluster changes or the bytes become many.
/// Each stretch is handed to `body` with the scratch.
fn stretches(
    scratch: &mut Scratch,
    count: usize,
    page_size: usize,
    index: impl Fn(usize) -> u32,
    mut body: impl FnMut(&mut Scratch, &[usize]) -> Result<()>,
) -> Result<()> {
    let mut order = std::mem::take(&mut scratch.order);
    order.clear();
    order.extend(0..count);
    if !order.is_sorted_by_key(|&i| index(i)) {
        order.sort_by_key(|&i| index(i)); // stable: of two with one index the later stays later
    }
    let most = most_of(page_size);
    let mut clusters = order.chunk_by(|&a, &b| index(a) / CLUSTER == index(b) / CLUSTER);
    let done = clusters.try_for_each(|cluster| {
        let mut stretches = cluster.chunks(most);
        stretches.try_for_each(|stretch| body(scratch, stretch))
    });
    scratch.order = order;
    done
}

impl Target<'_> {
    fn view(&self) -> Result<PoolView> {
        let view = PoolView::read(self.arena, self.id);
        let view = view.ok_or_else(|| unknown(self.arena, self.name))?;
        if view.page_size as usize != self.page_size {
            return Err(damaged(self.arena, self.id.slot)); // a neighbour wrote there
        }
        Ok(view)
    }

    /// Run `body` on a shard with what it needs of the pool.
    fn with<T>(&self, shard: u32, body: impl FnOnce(&Shard<'_>, &PoolView) -> T) -> Result<T> {
        with_shard_for(self.arena, shard, self.id.slot, |shard| {
            Ok(body(shard, &self.view()?))
        })?
    }

    /// Which pages from `first` on are held.
    pub fn has(&self, key: &ObjectKey, first: u32, held: &mut [bool]) -> Result<()> {
        self.view()?;
        let (first, end) = (u64::from(first), u64::from(first) + held.len() as u64);
        let mut at = first;
        while at < end {
            let cluster = (at / u64::from(CLUSTER)) as u32;
            let stop = ((u64::from(cluster) + 1) * u64::from(CLUSTER)).min(end);
            let map = self.with(key.shard(self.arena, cluster), |shard, _| {
                let node = shard.node(key, cluster);
                node.map_or(0, |node| shard.nodes.map(node))
            })?;
            for index in at..stop {
                held[(index - first) as usize] = map >> (index % u64::from(CLUSTER)) & 1 != 0;
            }
            at = stop;
        }
        Ok(())
    }

    /// Remove pages; the number found.
    pub fn flush(
        &self,
        key: &ObjectKey,
        count: usize,
        index: impl Fn(usize) -> u32 + Copy,
    ) -> Result<u64> {
        self.remove(key, count, index, false)
            .map(|(found, _)| found)
    }

    /// Remove pages, in a frozen pool too unless told to spare those; the number found, and whether any were spared.
    pub fn remove(
        &self,
        key: &ObjectKey,
        count: usize,
        index: impl Fn(usize) -> u32 + Copy,
        spare_frozen: bool,
    ) -> Result<(u64, bool)> {
        self.view()?;
        let (mut found, mut spared) = (0, false);
        SCRATCH.with_borrow_mut(|scratch| {
            stretches(scratch, count, self.page_size, index, |_, stretch| {
                let home = key.shard(self.arena, index(stretch[0]) / CLUSTER);
                found += self.with(home, |shard, view| {
                    if view.frozen && spare_frozen {
                        spared = true;
                        return 0;
                    }
                    let removed = stretch.iter().filter(|&&i| shard.remove(key, index(i)));
                    let removed = removed.count() as u64;
                    shard.count(view.slot, Counter::Flushes, stretch.len() as u64);
                    shard.count(view.slot, Counter::FlushedPages, removed);
                    removed
                })?;
                Ok(())
            })
        })?;
        Ok((found, spared))
    }
}
