//! Object records: the name of each object that has pages in this shard, and how many.
//!
//! ```text
//! record:  | oid, 24 bytes | pool, valid bit | next in bucket + 1 | pages | highest cluster |     40 bytes
//! ```
//! An object is known to a shard while it has pages there. Slots name it by its record's number, so records never move;
//! the pool word is written last when one is made and first when it goes, for it is from them that slots get their names.

use super::buckets::Buckets;
use crate::arena::{Full, OBJECT, Table, W32};

const VALID: u32 = 1 << 31;
const WORDS: usize = (OBJECT / 4) as usize;
const POOL: usize = 6;
const NEXT: usize = 7;
const PAGES: usize = 8;
const HIGHEST: usize = 9;

/// Where the shard keeps the table's totals.
#[derive(Clone, Copy)]
pub struct ObjectCells<'a> {
    pub buckets: &'a W32,
    pub free: &'a W32,
    pub live: &'a W32,
}

/// The objects of one shard.
#[derive(Clone, Copy)]
pub struct Objects<'a> {
    records: Table<'a>,
    buckets: Buckets<'a>,
    cells: ObjectCells<'a>,
}

impl<'a> Objects<'a> {
    pub fn new(heads: Table<'a>, records: Table<'a>, cells: ObjectCells<'a>) -> Objects<'a> {
        Objects {
            records,
            buckets: Buckets::new(heads, cells.buckets),
            cells,
        }
    }

    #[inline(always)]
    fn record(&self, object: u32) -> &'a [W32] {
        self.records.words(u64::from(object) * OBJECT, WORDS)
    }

    fn count(&self) -> u32 {
        (self.records.len() / OBJECT) as u32
    }

    fn matches(record: &[W32], pool: u32, oid: &[u64; 3]) -> bool {
        let word =
            |i: usize| u64::from(record[2 * i].get()) | u64::from(record[2 * i + 1].get()) << 32;
        record[POOL].get() == VALID | pool && (0..3).all(|i| word(i) == oid[i])
    }

    /// The object's number, where it has pages here.
    #[inline]
    pub fn find(&self, hash: u64, pool: u32, oid: &[u64; 3]) -> Option<u32> {
        if self.buckets.len() == 0 {
            return None;
        }
        let mut at = self.buckets.head(self.buckets.of(hash)).get();
        let mut steps = 0;
        while at != 0 {
            let record = self.record(at - 1);
            if Self::matches(record, pool, oid) {
                return Some(at - 1);
            }
            at = record[NEXT].get();
            steps += 1;
            assert!(steps <= self.count(), "an object list has a loop");
        }
        None
    }

    /// A record for an object that has none. It has no pages yet: give it some or `drop_if_empty`.
    pub fn create(&self, hash: u64, pool: u32, oid: &[u64; 3]) -> Result<u32, Full> {
        self.buckets.ensure()?;
        let object = match self.cells.free.get() {
            0 => {
                let object = self.count();
                self.records.grow(u64::from(object + 1) * OBJECT)?;
                object
            }
            free => {
                self.cells.free.set(self.record(free - 1)[NEXT].get());
                free - 1
            }
        };
        let record = self.record(object);
        record[POOL].set(0);
        for (i, word) in oid.iter().enumerate() {
            record[2 * i].set(*word as u32);
            record[2 * i + 1].set((word >> 32) as u32);
        }
        record[PAGES].set(0);
        record[HIGHEST].set(0);
        record[POOL].publish(VALID | pool);
        self.insert(hash, object);
        Ok(object)
    }

    fn insert(&self, hash: u64, object: u32) {
        let head = self.buckets.head(self.buckets.of(hash));
        self.record(object)[NEXT].set(head.get());
        head.set(object + 1);
        self.cells.live.add(1);
    }

    /// Split a bucket where objects have become many; `hash_of` gives a record's hash again.
    pub fn settle(&self, hash_of: impl Fn(u32, [u64; 3]) -> u64) {
        if let Some((old, new)) = self.buckets.grow(self.cells.live.get()) {
            let mut at = self.buckets.head(old).get();
            self.buckets.head(old).set(0);
            while at != 0 {
                let record = self.record(at - 1);
                let next = record[NEXT].get();
                let (pool, oid) = self.name(at - 1);
                let bucket = self.buckets.of(hash_of(pool, oid));
                debug_assert!(bucket == old || bucket == new);
                let head = self.buckets.head(bucket);
                record[NEXT].set(head.get());
                head.set(at);
                at = next;
            }
        }
        if let Some((into, list)) = self.buckets.shrink(self.cells.live.get()) {
            let mut at = list;
            while at != 0 {
                let record = self.record(at - 1);
                let (next, head) = (record[NEXT].get(), self.buckets.head(into));
                record[NEXT].set(head.get());
                head.set(at);
                at = next;
            }
        }
    }

    /// Pool and oid of a record.
    pub fn name(&self, object: u32) -> (u32, [u64; 3]) {
        let record = self.record(object);
        let word =
            |i: usize| u64::from(record[2 * i].get()) | u64::from(record[2 * i + 1].get()) << 32;
        (record[POOL].get() & !VALID, std::array::from_fn(word))
    }

    /// Whether a number names an object of this pool.
    pub fn is_object_of(&self, object: u32, pool: u32) -> bool {
        object < self.count() && self.record(object)[POOL].get() == VALID | pool
    }

    /// One page more, in `cluster`.
    #[inline(always)]
    pub fn add_page(&self, object: u32, cluster: u32) {
        let record = self.record(object);
        record[PAGES].add(1);
        if record[HIGHEST].get() < cluster {
            record[HIGHEST].set(cluster);
        }
    }

    pub fn pages(&self, object: u32) -> u32 {
        self.record(object)[PAGES].get()
    }

    /// No page of the object has been in a higher cluster.
    pub fn highest_cluster(&self, object: u32) -> u32 {
        self.record(object)[HIGHEST].get()
    }

    /// One page fewer; the record goes with the last.
    pub fn remove_page(&self, object: u32, hash: impl Fn() -> u64) {
        self.record(object)[PAGES].sub(1);
        self.drop_if_empty(object, hash);
    }

    /// Free the record of an object without pages.
    pub fn drop_if_empty(&self, object: u32, hash: impl Fn() -> u64) {
        if self.pages(object) != 0 {
            return;
        }
        let head = self.buckets.head(self.buckets.of(hash()));
        let (record, mut link) = (self.record(object), head);
        let mut steps = 0;
        while link.get() != object + 1 {
            assert!(
                link.get() != 0 && steps <= self.count(),
                "an object is not in its list"
            );
            link = &self.record(link.get() - 1)[NEXT];
            steps += 1;
        }
        link.set(record[NEXT].get());
        record[POOL].publish(0);
        record[NEXT].set(self.cells.free.get());
        self.cells.free.set(object + 1);
        self.cells.live.sub(1);
    }

    /// Drop the free records at the table's end and give back what the tables have beyond their use.
    pub fn trim(&self) {
        let mut count = self.count();
        while count > 0 && self.record(count - 1)[POOL].get() & VALID == 0 {
            count -= 1;
        }
        self.records.shrink(u64::from(count) * OBJECT);
        self.relist_free();
        self.records.trim();
        self.buckets.trim();
    }

    fn relist_free(&self) {
        self.cells.free.set(0);
        for object in (0..self.count()).rev() {
            let record = self.record(object);
            if record[POOL].get() & VALID == 0 {
                record[NEXT].set(self.cells.free.get());
                self.cells.free.set(object + 1);
            }
        }
    }

    // --- rebuilding and checking ---

    /// Rebuilding: keep the records `keep` accepts, with no pages yet, and hash them anew.
    pub fn begin_rebuild(
        &self,
        keep: impl Fn(u32) -> bool,
        hash_of: impl Fn(u32, [u64; 3]) -> u64,
    ) -> Result<(), Full> {
        let known = self.records.committed() / OBJECT;
        let count = (self.records.len() / OBJECT).min(known);
        self.records.shrink(count * OBJECT);
        self.records.punch_beyond();
        self.buckets.reset();
        self.cells.live.set(0);
        for object in 0..count as u32 {
            let record = self.record(object);
            record[PAGES].set(0);
            record[HIGHEST].set(0);
            let pool = record[POOL].get();
            if pool & VALID == 0 || !keep(pool & !VALID) {
                record[POOL].set(0);
                continue;
            }
            let (pool, oid) = self.name(object);
            self.buckets.ensure()?;
            self.insert(hash_of(pool, oid), object);
            self.settle(&hash_of);
        }
        Ok(())
    }

    /// Rebuilding: drop the records that got no pages.
    pub fn end_rebuild(&self, hash_of: impl Fn(u32, [u64; 3]) -> u64) {
        for object in 0..self.count() {
            if self.record(object)[POOL].get() & VALID != 0 {
                let (pool, oid) = self.name(object);
                self.drop_if_empty(object, || hash_of(pool, oid));
            }
        }
        self.relist_free();
    }

    /// Violations; the pages of each object are reported to `pages`.
    pub fn check(
        &self,
        faults: &mut Vec<String>,
        hash_of: impl Fn(u32, [u64; 3]) -> u64,
        mut pages: impl FnMut(u32, u32),
    ) {
        let mut live = 0;
        for object in 0..self.count() {
            if self.record(object)[POOL].get() & VALID == 0 {
                continue;
            }
            live += 1;
            let (pool, oid) = self.name(object);
            if self.find(hash_of(pool, oid), pool, &oid) != Some(object) {
                faults.push(format!("object {object} is not found by its name"));
            }
            if self.pages(object) == 0 {
                faults.push(format!("object {object} has no pages"));
            }
            pages(object, self.pages(object));
        }
        if live != self.cells.live.get() {
            faults.push(format!(
                "{live} objects, and {} counted",
                self.cells.live.get()
            ));
        }
        let (mut at, mut free) = (self.cells.free.get(), 0);
        while at != 0 && free <= self.count() {
            free += 1;
            at = self.record(at - 1)[NEXT].get();
        }
        if free + live != self.count() {
            faults.push(format!(
                "{free} free and {live} live of {} object records",
                self.count()
            ));
        }
    }
}
