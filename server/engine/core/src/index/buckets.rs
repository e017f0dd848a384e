//! Linear hashing: a table of list heads that grows and shrinks one bucket at a time.
//!
//! Litwin, "Linear hashing: a new tool for file and table addressing", VLDB 1980. With n buckets and 2^k <= n < 2^(k+1),
//! a hash's low k+1 bits name its bucket, or its low k bits where that bucket does not exist yet.

use crate::arena::{Full, Table, W32};

/// Buckets of an empty table: one frame of heads.
const SMALLEST: u32 = 1024;

/// List heads; 0 is empty, and what else a head means is its user's affair.
#[derive(Clone, Copy)]
pub struct Buckets<'a> {
    table: Table<'a>,
    count: &'a W32,
}

impl<'a> Buckets<'a> {
    pub fn new(table: Table<'a>, count: &'a W32) -> Buckets<'a> {
        Buckets { table, count }
    }

    /// Make the smallest table where there is none.
    pub fn ensure(&self) -> Result<(), Full> {
        if self.count.get() == 0 {
            self.table.grow(u64::from(SMALLEST) * 4)?;
            self.table
                .words(0, SMALLEST as usize)
                .iter()
                .for_each(|head| head.set(0));
            self.count.set(SMALLEST);
        }
        Ok(())
    }

    pub fn len(&self) -> u32 {
        self.count.get()
    }

    /// The bucket of a hash. There is at least one.
    #[inline(always)]
    pub fn of(&self, hash: u64) -> u32 {
        let count = self.count.get();
        let low = (1u64 << count.ilog2()) as u32 - 1;
        let bucket = hash as u32 & (low << 1 | 1);
        if bucket < count {
            bucket
        } else {
            hash as u32 & low
        }
    }

    #[inline(always)]
    pub fn head(&self, bucket: u32) -> &'a W32 {
        &self.table.words(u64::from(bucket) * 4, 1)[0]
    }

    /// Add a bucket for `entries` if they have become many. Returns (the bucket to split, the new one).
    pub fn grow(&self, entries: u32) -> Option<(u32, u32)> {
        let count = self.count.get();
        if entries <= count || self.table.grow(u64::from(count + 1) * 4).is_err() {
            return None; // without memory the lists only get longer
        }
        self.head(count).set(0);
        self.count.set(count + 1);
        Some((count - (1 << count.ilog2()), count))
    }

    /// Drop the last bucket if `entries` have become few. Returns (the bucket that takes its list, that list's head).
    pub fn shrink(&self, entries: u32) -> Option<(u32, u32)> {
        let count = self.count.get();
        if count <= SMALLEST || entries > count / 4 {
            return None;
        }
        let last = count - 1;
        let list = self.head(last).get();
        self.count.set(last);
        self.table.shrink(u64::from(last) * 4);
        Some((last - (1 << last.ilog2()), list))
    }

    /// Give back what the table has beyond its use.
    pub fn trim(&self) {
        self.table.trim();
    }

    /// Forget everything.
    pub fn reset(&self) {
        self.count.set(0);
        self.table.reset();
    }
}
