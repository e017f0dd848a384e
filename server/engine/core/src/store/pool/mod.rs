//! A pool as its users see it: put, get, flush and the rest, on pages of any number of objects.

mod pages;
mod removal;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::arena::Arena;
use crate::batch::{Target, payload_limit};
use crate::error::{Error, Result};
use crate::pool_table::{self, PoolId};
use crate::shard::{ObjectKey, with_shard};
use crate::store::stats::PoolStats;
use crate::types::{AllocatorKind, Codec, Oid, PoolSettings};

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
    pub(crate) fn new(arena: Arc<Arena>, id: PoolId, name: &str) -> Result<Pool> {
        let settings = pool_table::settings(&arena, id.slot);
        arena.whole()?;
        if settings.validate().is_err() {
            return Err(pool_table::damaged(&arena, id.slot)); // a neighbour wrote there
        }
        let page_size = settings.page_size as usize;
        let limit = payload_limit(settings.allocator == AllocatorKind::Zbud, page_size);
        Ok(Pool {
            arena,
            id,
            name: name.into(),
            page_size,
            codec: settings.codec,
            limit,
        })
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
        pool_table::settings(&self.arena, self.id.slot)
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
        pool_table::unknown(&self.arena, &self.name)
    }

    /// Freeze the pool: puts act as flushes and are refused; gets and flushes work.
    pub fn freeze(&self) -> Result<()> {
        let was = self.frozen()?;
        self.set(|record| record.frozen.set(1))?;
        // A put that began before is done once every shard's lock has been passed on.
        let mut shards = 0..self.arena.shards();
        let passed = shards.try_for_each(|shard| with_shard(&self.arena, shard, |_| ()));
        if passed.is_err() && !was {
            self.thaw()?;
        }
        passed
    }

    pub fn thaw(&self) -> Result<()> {
        self.set(|record| record.frozen.set(0))
    }

    pub fn frozen(&self) -> Result<bool> {
        self.record().map(|record| record.frozen.get() != 0)
    }

    /// Limit the pool's footprint to `bytes`; 0 removes the limit. Pages beyond it stay.
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
        pool_table::record(&self.arena, self.id).ok_or_else(|| self.unknown())
    }

    fn set(&self, change: impl FnOnce(&crate::arena::PoolRecord)) -> Result<()> {
        self.arena.with_admin(|| self.record().map(change))?
    }

    pub fn stats(&self) -> Result<PoolStats> {
        self.record()?;
        Ok(PoolStats::read(&self.arena, self.id.slot))
    }
}
