//! A pool as its users see it: put, get, flush and the rest, on pages of any number of objects.

use std::sync::Arc;

use crate::arena::{Arena, Counter, SEGMENT_FRAMES};
use crate::backing;
use crate::batch::{
    Fetched, Input, LastPage, Neighbours, ScanCursor, ScannedCluster, Target, payload_limit,
};
use crate::error::{Error, Result};
use crate::pools::{self, PoolId};
use crate::shard::{ObjectKey, Shard, with_shard};
use crate::stats::PoolStats;
use crate::types::{AllocatorKind, Codec, Fetch, MAX_PAGE, Oid, Outcome, PoolSettings};

/// Index nodes of an object removed under one lock.
const NODES_AT_ONCE: u32 = 16;
/// Clusters or hash buckets looked at under one lock.
const LOOKS_AT_ONCE: u32 = 1024;
/// Times all runs are looked through for a pool's last pages.
const PASSES: u32 = 8;
/// Most pages of one `has`.
const MOST_ASKED: u32 = 1 << 24;
/// What stands for an outcome until there is one.
const UNDECIDED: Outcome = Outcome::Stored { replaced: false };
/// Runs of a pool purged under one lock.
const RUNS_AT_ONCE: u32 = 64;

/// A named set of pages. Cheap to clone; keeps the store attached.
#[derive(Clone)]
pub struct Pool {
    pub(crate) arena: Arc<Arena>,
    id: PoolId,
    name: Arc<str>,
    page_size: usize,
    codec: Codec,
    limit: usize,
}

impl Pool {
    pub(crate) fn new(arena: Arc<Arena>, id: PoolId, name: &str) -> Pool {
        let settings = pools::settings(&arena, id.slot);
        let page_size = settings.page_size as usize;
        let limit = payload_limit(settings.allocator == AllocatorKind::Zbud, page_size);
        Pool {
            arena,
            id,
            name: name.into(),
            page_size,
            codec: settings.codec,
            limit,
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Never 0, and never another pool's of this arena.
    pub fn id(&self) -> u64 {
        self.id.uid
    }

    /// Settings, quota and weight as they are now.
    pub fn settings(&self) -> PoolSettings {
        pools::settings(&self.arena, self.id.slot)
    }

    /// Bytes of a page.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    fn target(&self) -> Target<'_> {
        Target {
            arena: &self.arena,
            id: self.id,
            name: &self.name,
            page_size: self.page_size,
            codec: self.codec,
            limit: self.limit,
        }
    }

    fn key(&self, oid: &Oid) -> ObjectKey {
        ObjectKey::new(&self.arena, self.id.slot, oid)
    }

    fn unknown(&self) -> Error {
        Error::UnknownPool(self.name.to_string())
    }

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
            .put(&self.key(oid), &pages, input, &mut outcomes)?;
        Ok(outcomes)
    }

    /// Store neighbouring pages from `first` on.
    pub fn put_range(&self, oid: &Oid, first: u32, data: &[u8]) -> Result<Vec<Outcome>> {
        let mut outcomes = Vec::new();
        self.put_pages(oid, first, data, &mut outcomes)?;
        Ok(outcomes)
    }

    /// The same into `outcomes`: once buffers are as large as they need be, nothing is allocated.
    pub fn put_pages(
        &self,
        oid: &Oid,
        first: u32,
        data: &[u8],
        outcomes: &mut Vec<Outcome>,
    ) -> Result<()> {
        self.indices(first, data.len())?;
        let pages = self.neighbours(first, data);
        outcomes.clear();
        outcomes.resize(data.len() / self.page_size, UNDECIDED);
        self.target()
            .put(&self.key(oid), &pages, Input::Pages, outcomes)
    }

    /// Store a page of which only a part is new. Refused, it leaves the older one as it was: unlike a put, whose caller has the
    /// whole page, this has nobody who knows the rest.
    pub fn amend(&self, oid: &Oid, index: u32, page: &[u8]) -> Result<Outcome> {
        self.page_length(index, page.len())?;
        let (pages, mut outcome) = (self.neighbours(index, page), [UNDECIDED]);
        self.target()
            .put(&self.key(oid), &pages, Input::Amended, &mut outcome)?;
        Ok(outcome[0])
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
                "the buffer is {bytes} bytes long, which is no multiple of pool {name:?}'s page size {size}"
            )));
        }
        let count = (bytes / size) as u64;
        match (u64::from(first) + count).checked_sub(1) {
            _ if count == 0 => Ok(std::ops::RangeInclusive::new(1, 0)),
            Some(last) if last <= u64::from(u32::MAX) => Ok(first..=last as u32),
            _ => Err(Error::Invalid(format!(
                "{count} pages from index {first} run beyond the last index, {}",
                u32::MAX
            ))),
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

    /// The same, but what is not there leaves its room as it was; into `fetched`: once buffers are as large as they need be,
    /// nothing is allocated.
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

    /// Fetch a page into `last`, unless it has it already and nothing was put in its place since. On a miss `last` has room for a
    /// page, of any bytes.
    pub fn get_last(&self, oid: &Oid, index: u32, last: &mut LastPage) -> Result<Fetch> {
        self.target()
            .get_last(&self.arena, &self.key(oid), index, last)
    }

    /// Fetch a batch for a user far away: see [`Fetched`]. Only a private ephemeral pool gives its pages up by it.
    pub fn fetch(&self, oid: &Oid, indices: &[u32], lz4: bool) -> Result<Fetched> {
        self.target().fetch(&self.key(oid), indices, lz4)
    }

    /// Remove fetched pages by index and stamp, unless they were replaced since; the number found.
    pub fn flush_if(&self, oid: &Oid, pages: &[(u32, u32)]) -> Result<u64> {
        self.target().flush_if(&self.key(oid), pages)
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
                "{count} pages are asked for; at most {MOST_ASKED} at once"
            )));
        }
        if u64::from(first) + u64::from(count) > 1 << 32 {
            return Err(Error::Invalid(format!(
                "{count} pages from index {first} run beyond the last index, {}",
                u32::MAX
            )));
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

    /// Remove an object's pages; the number found. Complete on return, each lock held for a bounded time.
    pub fn flush_object(&self, oid: &Oid) -> Result<u64> {
        pools::record(&self.arena, self.id).ok_or_else(|| self.unknown())?;
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
            .with_admin(|| pools::begin_destroy(&self.arena, self.id))?;
        if begun {
            self.purge()
        } else {
            Err(self.unknown())
        }
    }

    /// Drop the pages of a pool being destroyed, and free its slot.
    pub(crate) fn purge(&self) -> Result<u64> {
        let mut dropped = 0;
        for shard in 0..self.arena.shards() {
            let (mut cursor, mut passes) = (0, 0);
            while with_shard(&self.arena, shard, |shard| {
                purge_some(shard, self.id, &mut cursor, &mut passes, &mut dropped)
            })? {}
        }
        self.arena
            .with_admin(|| pools::end_destroy(&self.arena, self.id))?;
        if self.arena.superblock().backed.get() != 0 {
            backing::trim(&self.arena)?;
        }
        Ok(dropped)
    }

    /// From now on puts act as flushes and are refused; gets and flushes work.
    pub fn freeze(&self) -> Result<()> {
        self.set(|record| record.frozen.set(1))?;
        // A put that began before is done once every shard's lock has been passed on.
        (0..self.arena.shards()).try_for_each(|shard| with_shard(&self.arena, shard, |_| ()))
    }

    pub fn thaw(&self) -> Result<()> {
        self.set(|record| record.frozen.set(0))
    }

    pub fn frozen(&self) -> Result<bool> {
        self.record().map(|record| record.frozen.get() != 0)
    }

    /// Limit the pool's footprint to `bytes`, 0 for no limit. What is over it already stays.
    pub fn set_quota(&self, bytes: u64) -> Result<()> {
        let reserve = self.reserve()?;
        if bytes != 0 && bytes < reserve {
            return Err(Error::Invalid(format!(
                "a quota of {bytes} bytes is less than the pool's reserve of {reserve} bytes"
            )));
        }
        self.set(|record| record.quota.set(bytes))
    }

    pub fn set_weight(&self, weight: u32) -> Result<()> {
        if weight == 0 {
            return Err(Error::Invalid("weight is 0; it must be at least 1".into()));
        }
        self.set(|record| record.weight.set(weight))
    }

    pub(crate) fn slot(&self) -> u32 {
        self.id.slot
    }

    pub(crate) fn record(&self) -> Result<&crate::arena::PoolRecord> {
        pools::record(&self.arena, self.id).ok_or_else(|| self.unknown())
    }

    fn set(&self, change: impl FnOnce(&crate::arena::PoolRecord)) -> Result<()> {
        self.arena.with_admin(|| self.record().map(change))?
    }

    pub fn stats(&self) -> Result<PoolStats> {
        self.record()?;
        Ok(PoolStats::read(&self.arena, self.id.slot))
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
    if !pools::is_destroying(shard.arena, id) {
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
            assert!(*passes < PASSES, "pages are counted that are nowhere");
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kind, PoolSettings, Store, StoreOptions};

    const OID: Oid = Oid([1; 24]);

    /// A store of one shard with three pages of a pool.
    fn three_pages(kind: Kind) -> (Store, Pool) {
        let options = StoreOptions {
            memory: 4 << 20,
            shards: Some(1),
            ..StoreOptions::default()
        };
        let store = Store::open(&options).unwrap();
        let pool = store.pool("p", &PoolSettings::new(kind)).unwrap();
        let pages: Vec<u8> = (1..4u8).flat_map(|byte| [byte; 4096]).collect();
        pool.put_range(&OID, 0, &pages).unwrap();
        (store, pool)
    }

    /// Change what the pool's shard says.
    fn damage(pool: &Pool, body: impl FnOnce(&Shard<'_>)) {
        with_shard(&pool.arena, 0, body).unwrap();
    }

    /// A checksum tells a good page from a bad one, but not one page from another. The fuzzer found that an index word damaged to
    /// name another page's slot gave that page.
    #[test]
    fn an_index_that_names_another_pages_slot_gives_no_page_and_is_rebuilt() {
        let (store, pool) = three_pages(Kind::Persistent);
        damage(&pool, |shard| {
            let (node, _) = shard.find(&pool.key(&OID), 0).unwrap();
            let (_, other) = shard.find(&pool.key(&OID), 1).unwrap();
            shard.nodes.replace(node, 0, other.0);
        });
        let mut page = [0; 4096];
        let mut get = || {
            let fetched = pool.get(&OID, &[0], &mut [&mut page], false);
            fetched.map(|fetched| (fetched[0], page[0]))
        };
        assert!(matches!(get(), Err(Error::Damaged { .. })));
        assert_eq!(get().unwrap(), (Fetch::Hit, 1));
        assert_eq!(store.check().unwrap(), Vec::<String>::new());
    }

    /// The fuzzer found that `relinquish` went round for ever after frames that were counted and nowhere.
    #[test]
    fn relinquish_comes_to_an_end_where_frames_are_counted_that_are_nowhere() {
        let (store, pool) = three_pages(Kind::Ephemeral);
        damage(&pool, |shard| {
            shard
                .heap(pool.id.slot)
                .unwrap()
                .count(Counter::Frames)
                .add(1000);
        });
        store.relinquish(1 << 30).unwrap();
        assert_eq!(pool.has(&OID, 0, 3).unwrap(), [false; 3]);
    }

    #[test]
    fn destroy_comes_to_an_end_where_pages_are_counted_that_are_nowhere() {
        let (store, pool) = three_pages(Kind::Persistent);
        damage(&pool, |shard| {
            shard
                .heap(pool.id.slot)
                .unwrap()
                .count(Counter::Pages)
                .add(1);
        });
        assert!(matches!(pool.destroy(), Err(Error::Damaged { .. })));
        assert_eq!(store.check().unwrap(), Vec::<String>::new());
    }

    /// One process destroys a pool while another, attaching, helps to. The faster gives the slot to a new pool: what the slower
    /// still does must not touch that one's pages.
    #[test]
    fn a_purge_that_comes_late_spares_the_slots_next_pool() {
        let options = StoreOptions {
            memory: 4 << 20,
            shards: Some(2),
            ..StoreOptions::default()
        };
        let store = Store::open(&options).unwrap();
        let settings = PoolSettings::new(Kind::Persistent);
        let (old, oid) = (store.pool("old", &settings).unwrap(), OID);
        old.put_range(&oid, 0, &[7; 8 * 4096]).unwrap();
        old.destroy().unwrap();
        let new = store.pool("new", &settings).unwrap();
        assert_eq!(new.id.slot, old.id.slot);
        new.put_range(&oid, 0, &[8; 100 * 4096]).unwrap();
        assert_eq!(old.purge().unwrap(), 0);
        assert_eq!(new.has(&oid, 0, 100).unwrap(), [true; 100]);
        assert_eq!(store.pools().unwrap().len(), 1);
        assert_eq!(store.check().unwrap(), Vec::<String>::new());
    }
}
