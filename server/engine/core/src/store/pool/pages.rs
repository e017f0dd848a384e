//! Pages of an object, by their indices: put, get, has, flush, scan.

use super::Pool;
use crate::batch::{Fetched, Input, LastPage, Neighbours, ScanCursor, ScannedCluster};
use crate::error::{Error, Result};
use crate::outcome::{Fetch, Outcome};
use crate::shard::PutMode;
use crate::types::{MAX_PAGE, Oid};

/// Most pages of one `has`.
const MOST_ASKED: u32 = 1 << 24;
/// Placeholder until an outcome is known.
const UNDECIDED: Outcome = Outcome::Stored { replaced: false };

fn beyond(first: u32, count: u64) -> Error {
    Error::Invalid(format!(
        "{count} pages from index {first} run beyond the last index, {}",
        u32::MAX
    ))
}

impl Pool {
    fn page_length(&self, index: u32, len: usize) -> Result<()> {
        if len == self.page_size {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "page {index} is {len} bytes long; pages of pool {:?} are {}",
            self.name, self.page_size
        )))
    }

    /// Store a batch. Each page is stored or refused on its own; the outcomes are in the order of `pages`.
    pub fn put(&self, oid: &Oid, pages: &[(u32, &[u8])]) -> Result<Vec<Outcome>> {
        pages
            .iter()
            .try_for_each(|(index, page)| self.page_length(*index, page.len()))?;
        self.put_each(oid, pages, Input::Pages)
    }

    /// Store pages that come as LZ4 blocks: checked, and kept as they are.
    pub fn put_lz4(&self, oid: &Oid, blocks: &[(u32, &[u8])]) -> Result<Vec<Outcome>> {
        if let Some((index, block)) = blocks.iter().find(|(_, block)| block.len() > 2 * MAX_PAGE) {
            return Err(Error::Invalid(format!(
                "the LZ4 block for index {index} is {} bytes long",
                block.len()
            )));
        }
        self.put_each(oid, blocks, Input::Lz4Blocks)
    }

    /// Store pages that come packed: LZ4 blocks, of which one as long as a page is the page itself.
    pub fn put_packed(&self, oid: &Oid, blocks: &[(u32, &[u8])]) -> Result<Vec<Outcome>> {
        let long = |(_, block): &&(u32, &[u8])| block.len() > self.page_size;
        if let Some((index, block)) = blocks.iter().find(long) {
            return self.page_length(*index, block.len()).map(|()| Vec::new());
        }
        self.put_each(oid, blocks, Input::Packed)
    }

    fn put_each(&self, oid: &Oid, pages: &[(u32, &[u8])], input: Input) -> Result<Vec<Outcome>> {
        let mut outcomes = vec![UNDECIDED; pages.len()];
        self.target()
            .put(&self.key(oid), &pages, input, PutMode::Put, &mut outcomes)?;
        Ok(outcomes)
    }

    /// Store neighbouring pages from `first` on.
    pub fn put_range(&self, oid: &Oid, first: u32, data: &[u8]) -> Result<Vec<Outcome>> {
        let mut outcomes = Vec::new();
        self.put_neighbours(oid, first, data, PutMode::Put, &mut outcomes)?;
        Ok(outcomes)
    }

    /// Replace or keep: store each page into `outcomes`, or leave the older page unchanged, whatever the reason. What a block
    /// device does and a cache must not: to a cache the older page is stale. Allocates nothing once buffers have grown.
    pub fn replace_pages(
        &self,
        oid: &Oid,
        first: u32,
        data: &[u8],
        outcomes: &mut Vec<Outcome>,
    ) -> Result<()> {
        self.put_neighbours(oid, first, data, PutMode::ReplaceOrKeep, outcomes)
    }

    fn put_neighbours(
        &self,
        oid: &Oid,
        first: u32,
        data: &[u8],
        mode: PutMode,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<()> {
        self.indices(first, data.len())?;
        let pages = self.neighbours(first, data);
        outcomes.clear();
        outcomes.resize(data.len() / self.page_size, UNDECIDED);
        self.target()
            .put(&self.key(oid), &pages, Input::Pages, mode, outcomes)
    }

    fn neighbours<B>(&self, first: u32, bytes: B) -> Neighbours<B> {
        Neighbours {
            first,
            page_size: self.page_size,
            bytes,
        }
    }

    /// The indices of `bytes` bytes of pages from `first` on.
    fn indices(&self, first: u32, bytes: usize) -> Result<std::ops::RangeInclusive<u32>> {
        let (size, name) = (self.page_size, &self.name);
        if !bytes.is_multiple_of(size) {
            return Err(Error::Invalid(format!(
                "the buffer is {bytes} bytes long, which is not a multiple of pool {name:?}'s page size, {size}"
            )));
        }
        let count = (bytes / size) as u64;
        match (u64::from(first) + count).checked_sub(1) {
            _ if count == 0 => Ok(std::ops::RangeInclusive::new(1, 0)),
            Some(last) if last <= u64::from(u32::MAX) => Ok(first..=last as u32),
            _ => Err(beyond(first, count)),
        }
    }

    /// Fetch a batch: page `indices[i]` into `into[i]`, a page long. `exclusive` removes what it returns from any pool.
    pub fn get(
        &self,
        oid: &Oid,
        indices: &[u32],
        into: &mut [&mut [u8]],
        exclusive: bool,
    ) -> Result<Vec<Fetch>> {
        if into.len() != indices.len() {
            return Err(Error::Invalid(format!(
                "{} buffers for {} pages",
                into.len(),
                indices.len()
            )));
        }
        indices
            .iter()
            .zip(into.iter())
            .try_for_each(|(&index, page)| self.page_length(index, page.len()))?;
        let (mut into, mut fetched) = (into, Vec::new());
        let index = |i: usize| indices[i];
        self.target().get(
            &self.key(oid),
            indices.len(),
            index,
            &mut into,
            exclusive,
            &mut fetched,
        )?;
        Ok(fetched)
    }

    /// Fetch neighbouring pages from `first` on; those that are not there read as zeros.
    pub fn get_range(
        &self,
        oid: &Oid,
        first: u32,
        into: &mut [u8],
        exclusive: bool,
    ) -> Result<Vec<Fetch>> {
        let mut fetched = Vec::new();
        self.get_pages(oid, first, into, exclusive, &mut fetched)?;
        let pages = into.chunks_mut(self.page_size).zip(&fetched);
        pages
            .filter(|(_, f)| **f == Fetch::Miss)
            .for_each(|(page, _)| page.fill(0));
        Ok(fetched)
    }

    /// The same into `fetched`; misses leave their part of `into` unchanged. Allocates nothing once buffers have grown.
    pub fn get_pages(
        &self,
        oid: &Oid,
        first: u32,
        into: &mut [u8],
        exclusive: bool,
        fetched: &mut Vec<Fetch>,
    ) -> Result<()> {
        self.indices(first, into.len())?;
        let count = into.len() / self.page_size;
        let index = |i: usize| first + i as u32;
        let mut room = self.neighbours(first, into);
        self.target()
            .get(&self.key(oid), count, index, &mut room, exclusive, fetched)
    }

    /// Fetch a page into `last` unless it is already there and still current. After a miss `last` has room for a page, with
    /// arbitrary content.
    pub fn get_last(&self, oid: &Oid, index: u32, last: &mut LastPage) -> Result<Fetch> {
        self.target()
            .get_last(&self.arena, &self.key(oid), index, last)
    }

    /// Fetch a batch for a remote user: see [`Fetched`]. Only a private ephemeral pool loses the pages by it.
    pub fn fetch(&self, oid: &Oid, indices: &[u32], lz4: bool) -> Result<Fetched> {
        self.target().fetch(&self.key(oid), indices, lz4)
    }

    /// Remove fetched pages by index and stamp, unless they were replaced since; the number found.
    pub fn flush_if(&self, oid: &Oid, pages: &[(u32, u32)]) -> Result<u64> {
        self.target().flush_if(&self.key(oid), pages)
    }

    /// Copy the pages of a cluster that `map` selects to the same keys of another pool of this store, without decoding them.
    /// Returns which existed; None if there was no room for one. Above the accept threshold there is none: copies never fill
    /// the store.
    pub fn copy_cluster(
        &self,
        oid: &Oid,
        cluster: u32,
        map: u64,
        into: &Pool,
    ) -> Result<Option<u64>> {
        if self.page_size != into.page_size || !std::sync::Arc::ptr_eq(&self.arena, &into.arena) {
            let (of, to) = (&self.name, &into.name);
            return Err(Error::Invalid(format!(
                "pages of pool {of:?} cannot be copied to pool {to:?}: its page size or its store is another"
            )));
        }
        let (key, there) = (self.key(oid), into.key(oid));
        self.target()
            .copy(&key, cluster, map, &into.target(), &there)
    }

    /// Accept new keys again although use is above the accept threshold, because room was made.
    pub fn readmit(&self) {
        self.arena.superblock().full.set(0);
    }

    /// About `limit` of the pool's keys after the cursor, and the next cursor: None at the end. A page that is there from
    /// the first call of a scan to the last is given, once; one that comes or goes meanwhile may be.
    pub fn scan(
        &self,
        cursor: ScanCursor,
        limit: usize,
    ) -> Result<(Vec<ScannedCluster>, Option<ScanCursor>)> {
        self.target().scan(cursor, limit)
    }

    /// Which of `count` pages from `first` on are held; at most 2^24 pages a call.
    pub fn has(&self, oid: &Oid, first: u32, count: u32) -> Result<Vec<bool>> {
        let mut held = Vec::new();
        self.has_pages(oid, first, count, &mut held)?;
        Ok(held)
    }

    /// The same into `held`.
    pub fn has_pages(&self, oid: &Oid, first: u32, count: u32, held: &mut Vec<bool>) -> Result<()> {
        if count > MOST_ASKED {
            return Err(Error::Invalid(format!(
                "{count} pages were requested; the maximum is {MOST_ASKED} at once"
            )));
        }
        if u64::from(first) + u64::from(count) > 1 << 32 {
            return Err(beyond(first, count.into()));
        }
        held.clear();
        held.resize(count as usize, false);
        self.target().has(&self.key(oid), first, held)
    }

    /// Remove pages; the number found.
    pub fn flush(&self, oid: &Oid, indices: &[u32]) -> Result<u64> {
        let index = |i: usize| indices[i];
        self.target().flush(&self.key(oid), indices.len(), index)
    }

    /// Remove neighbouring pages from `first` on; the number found.
    pub fn flush_pages(&self, oid: &Oid, first: u32, count: u32) -> Result<u64> {
        let bytes = count as usize * self.page_size;
        self.indices(first, bytes)?;
        let index = |i: usize| first + i as u32;
        self.target().flush(&self.key(oid), count as usize, index)
    }

    /// Remove neighbouring pages as a block device does, sparing those of a frozen pool; whether all are gone.
    pub fn discard_pages(&self, oid: &Oid, first: u32, count: u32) -> Result<bool> {
        let bytes = count as usize * self.page_size;
        self.indices(first, bytes)?;
        let index = |i: usize| first + i as u32;
        let (_, spared) = self
            .target()
            .remove(&self.key(oid), count as usize, index, true)?;
        Ok(!spared)
    }
}
