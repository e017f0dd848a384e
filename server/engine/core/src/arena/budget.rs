//! The memory limit: nothing is committed that is not first counted.
//!
//! Each shard counts its own bytes. To commit is to add to one's own count, then to sum all of them: two that race for
//! the last frame may both be refused, but never both admitted. Counts follow from what is committed, so a shard's
//! rebuild corrects its own and there is no global counter to go wrong. What is promised to a pool counts as used for all
//! others (see `promise`).

use super::file::Arena;
use super::mapping::map::NoSpace;
use super::promise::is_over;

/// Why memory could not be committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Full {
    /// The arena's own limit.
    Memory,
    /// The pool's quota.
    Quota,
    /// The file system.
    NoSpace,
}

impl From<NoSpace> for Full {
    fn from(_: NoSpace) -> Full {
        Full::NoSpace
    }
}

/// A shard's right to commit.
#[derive(Clone, Copy)]
pub struct Budget<'a> {
    arena: &'a Arena,
    shard: u32,
    /// The pool for which it is, which may use what it was promised.
    pool: Option<u32>,
    /// A rebuild may pass the limit: it commits again what was committed before.
    unlimited: bool,
}

impl<'a> Budget<'a> {
    pub fn new(arena: &'a Arena, shard: u32) -> Budget<'a> {
        Budget {
            arena,
            shard,
            pool: None,
            unlimited: false,
        }
    }

    pub fn for_pool(self, pool: u32) -> Budget<'a> {
        Budget {
            pool: Some(pool),
            ..self
        }
    }

    pub fn unlimited(self) -> Budget<'a> {
        Budget {
            unlimited: true,
            ..self
        }
    }

    /// The pool for which it is.
    pub fn pool(&self) -> Option<u32> {
        self.pool
    }

    /// Commit `len` bytes of the file at `offset`, or change nothing.
    pub fn commit(&self, offset: u64, len: u64) -> Result<(), Full> {
        let count = &self.arena.shard(self.shard).committed;
        count.fetch_add(len);
        if !self.unlimited && is_over(self.arena, self.pool) {
            count.fetch_sub(len);
            return Err(Full::Memory);
        }
        self.arena.map().populate(offset, len).map_err(|no_space| {
            count.fetch_sub(len);
            no_space.into()
        })
    }

    /// Whether frames that are committed already may become the pool's: not where they are promised to another.
    pub fn allow_committed(&self) -> Result<(), Full> {
        let none = self.arena.superblock().reserves.get() == 0;
        if none || self.unlimited || !is_over(self.arena, self.pool) {
            Ok(())
        } else {
            Err(Full::Memory)
        }
    }

    /// Give `len` bytes at `offset` back to the system.
    pub fn release(&self, offset: u64, len: u64) {
        if len > 0 {
            self.arena.map().punch(offset, len);
            self.arena.shard(self.shard).committed.fetch_sub(len);
        }
    }
}
