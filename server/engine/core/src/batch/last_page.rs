//! The page that was read last, kept decompressed for whoever reads it part by part.
//!
//! It is given out again only where the page's slot, looked at under the shard's lock, has the very header that it had then.
//! Every put stamps its slot with the next number of its shard, and a move takes header and bytes along; so an equal header
//! is the same put, whoever changed what meanwhile, in this process or another. Numbers wrap after 2^32 puts, so what is older than
//! `FRESH` is not believed: no shard takes that many in the time. A pool's id is never given to another; an arena is known by its
//! mapping, whose place is not used again as long as it is remembered here.
//! Pools whose gets take the page out are always asked.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::Target;
use super::get::{copy_out, decode};
use super::scratch::{SCRATCH, Scratch};
use crate::alloc::slot::Header;
use crate::arena::Arena;
use crate::error::{Result, unless_busy};
use crate::outcome::{Counter, Fetch};
use crate::pool_table::PoolView;
use crate::shard::{ObjectKey, Shard};
use crate::types::CLUSTER;

/// How long a page is believed to be known by its number.
const FRESH: Duration = Duration::from_secs(10);

/// A page, and whose it is if that is known.
#[derive(Default)]
pub struct LastPage {
    bytes: Vec<u8>,
    of: Option<Origin>,
}

struct Origin {
    arena: Weak<Arena>,
    pool: u64,
    /// As the index has it.
    oid: [u64; 3],
    index: u32,
    header: Header,
    read: Instant,
}

impl LastPage {
    /// The page of the last hit, or what was made of it since.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The same to be changed: what it was is forgotten.
    pub fn change(&mut self) -> &mut [u8] {
        self.of = None;
        &mut self.bytes
    }

    /// The header of the page, if it is this one and was read lately.
    fn header(&self, arena: &Arc<Arena>, pool: u64, oid: &[u64; 3], index: u32) -> Option<Header> {
        let of = self.of.as_ref()?;
        let same = (of.pool, &of.oid, of.index) == (pool, oid, index)
            && std::ptr::eq(of.arena.as_ptr(), Arc::as_ptr(arena))
            && of.read.elapsed() < FRESH;
        same.then_some(of.header)
    }
}

impl Target<'_> {
    /// Fetch a page into `last`, unless it is there already; on a miss its bytes are anything.
    pub fn get_last(
        &self,
        arena: &Arc<Arena>,
        key: &ObjectKey,
        index: u32,
        last: &mut LastPage,
    ) -> Result<Fetch> {
        self.view()?;
        let home = key.shard(self.arena, index / CLUSTER);
        let known = last.header(arena, self.id.uid, &key.oid, index);
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch {
                compressor,
                blocks,
                copies,
                ..
            } = scratch;
            let read = Instant::now();
            let keeps = self.with(home, |shard, view| {
                if known.is_some_and(|known| is_still(shard, view, key, index, &known)) {
                    return None;
                }
                copy_out(shard, view, key, blocks, copies, |_| index, &[0]);
                Some(!view.exclusive)
            })?;
            let Some(keeps) = keeps else {
                return Ok(Fetch::Hit);
            };
            last.of = None;
            last.bytes.resize(self.page_size, 0);
            let Some(copy) = copies.first() else {
                return Ok(Fetch::Miss);
            };
            let verdict = decode(compressor, blocks, copy, &mut last.bytes);
            if verdict == Fetch::Corrupt {
                unless_busy(self.corrupt(key, home, copy))?;
            } else if keeps {
                last.of = Some(Origin {
                    arena: Arc::downgrade(arena),
                    pool: self.id.uid,
                    oid: key.oid,
                    index,
                    header: copy.header,
                    read,
                });
            }
            Ok(verdict)
        })
    }
}

/// Whether a page is there as it was; it counts as read then.
fn is_still(
    shard: &Shard<'_>,
    view: &PoolView,
    key: &ObjectKey,
    index: u32,
    known: &Header,
) -> bool {
    let Some((_, place)) = shard.find(key, index).filter(|_| !view.exclusive) else {
        return false;
    };
    let slot = shard.frames.slot(place);
    if !slot.is_valid() || slot.header() != *known {
        return false;
    }
    if !view.persistent {
        slot.touch();
    }
    shard.count(view.slot, Counter::GetsHit, 1);
    true
}
