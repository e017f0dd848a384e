//! Get of a batch: compressed bytes are copied out under the lock, then decoded and verified without it.

use std::time::Duration;

use super::pages::Room;
use super::scratch::{Copied, SCRATCH, Scratch};
use super::{Target, stretches};
use crate::alloc::slot::Zhandle;
use crate::arena::waiting_at_least;
use crate::codec::{Compressor, Form, checksum};
use crate::error::{Error, Result, unless_busy};
use crate::outcome::{Counter, Fetch};
use crate::pool_table::PoolView;
use crate::shard::{ObjectKey, Shard};
use crate::types::CLUSTER;

/// Added to a counter, takes one off it: a hit that turned out to be none.
const UNCOUNT: u64 = u64::MAX;

/// Bytes of a cache line.
const LINE: u64 = 64;
/// Lines of a zpage that are asked for ahead of time, at most.
const AHEAD: u64 = 64;

/// Pages of one shard that were fetched and are to be removed: position, index and stamp.
struct Claim {
    home: u32,
    pages: Vec<(usize, u32, u32)>,
}

/// The wait for a lock where pages of the batch were taken out already.
const ENOUGH: Duration = Duration::from_millis(2);

/// Go on with a batch. Where it has taken pages out, a shard whose lock is held is a miss (`None`), which a pool that gives its pages
/// up may always answer: an error would lose what was taken.
pub fn once_taken<T>(taken: bool, go_on: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
    if !taken {
        return go_on().map(Some);
    }
    unless_busy(waiting_at_least(ENOUGH, go_on))
}

/// Make a call again and again while a lock is held, if `on`.
fn patiently<T>(on: bool, mut call: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match waiting_at_least(ENOUGH * u32::from(on), &mut call) {
            Err(Error::Busy { .. }) if on => {}
            done => return done,
        }
    }
}

impl Target<'_> {
    /// Fetch pages of `count` indices into their room; `fetched` becomes what became of each, in their order.
    pub fn get(
        &self,
        key: &ObjectKey,
        count: usize,
        index: impl Fn(usize) -> u32 + Copy,
        room: &mut impl Room,
        exclusive: bool,
        fetched: &mut Vec<Fetch>,
    ) -> Result<()> {
        let takes = self.view()?.exclusive;
        fetched.clear();
        fetched.resize(count, Fetch::Miss);
        let mut claims = Vec::new();
        SCRATCH.with_borrow_mut(|scratch| {
            stretches(scratch, count, self.page_size, index, |scratch, stretch| {
                let took = takes && fetched.contains(&Fetch::Hit);
                let got = once_taken(took, || {
                    self.get_stretch(key, scratch, index, stretch, exclusive, room, fetched)
                })?;
                claims.extend(got.flatten());
                Ok(())
            })?;
            self.claim_all(key, scratch, index, claims, room, fetched)
        })
    }

    /// Get one stretch; what is to be claimed of it.
    #[allow(clippy::too_many_arguments)]
    fn get_stretch(
        &self,
        key: &ObjectKey,
        scratch: &mut Scratch,
        index: impl Fn(usize) -> u32 + Copy,
        stretch: &[usize],
        exclusive: bool,
        room: &mut impl Room,
        fetched: &mut [Fetch],
    ) -> Result<Option<Claim>> {
        let Scratch {
            compressor,
            blocks,
            copies,
            ..
        } = scratch;
        let home = key.shard(self.arena, index(stretch[0]) / CLUSTER);
        let claim = self.with(home, |shard, view| {
            copy_out(shard, view, key, blocks, copies, index, stretch);
            exclusive && !view.exclusive
        })?;
        for copy in copies.iter() {
            let verdict = decode(compressor, blocks, copy, room.page(copy.position));
            fetched[copy.position] = verdict;
            if verdict == Fetch::Corrupt {
                unless_busy(self.corrupt(key, home, copy))?;
            }
        }
        Ok(claim.then(|| {
            let hits = copies.iter();
            let hits = hits.filter(|copy| fetched[copy.position] == Fetch::Hit);
            let pages = hits.map(|copy| (copy.position, copy.index, copy.header.seq));
            Claim {
                home,
                pages: pages.collect(),
            }
        }))
    }

    /// Remove pages that were fetched for good, now that all are verified. Those that were removed or replaced in between are
    /// another's, and are fetched again. Once any is removed the rest is waited for as long as it takes: an error would lose
    /// what was taken.
    fn claim_all(
        &self,
        key: &ObjectKey,
        scratch: &mut Scratch,
        index: impl Fn(usize) -> u32 + Copy,
        claims: Vec<Claim>,
        room: &mut impl Room,
        fetched: &mut [Fetch],
    ) -> Result<()> {
        let mut begun = false;
        for mut claim in claims {
            loop {
                let lost = patiently(begun, || self.claim(key, &claim, fetched))?;
                begun = true;
                if lost.is_empty() {
                    break;
                }
                let got = patiently(true, || {
                    self.get_stretch(key, scratch, index, &lost, true, room, fetched)
                })?;
                match got {
                    Some(again) => claim = again,
                    None => break,
                }
            }
        }
        Ok(())
    }

    /// Claim one stretch's pages; the positions of those that are another's by now.
    fn claim(&self, key: &ObjectKey, claim: &Claim, fetched: &mut [Fetch]) -> Result<Vec<usize>> {
        if claim.pages.is_empty() {
            return Ok(Vec::new());
        }
        let lost: Vec<usize> = self.with(claim.home, |shard, view| {
            let pages = claim.pages.iter();
            let lost = pages.filter(|(_, index, seq)| !shard.remove_if(key, *index, *seq));
            let lost = lost.inspect(|_| shard.count(view.slot, Counter::GetsHit, UNCOUNT));
            lost.map(|(position, ..)| *position).collect()
        })?;
        lost.iter()
            .for_each(|&position| fetched[position] = Fetch::Miss);
        Ok(lost)
    }

    /// Count a corrupt page, and remove it where it may go, if it is still the one that was read.
    pub fn corrupt(&self, key: &ObjectKey, home: u32, copy: &Copied) -> Result<()> {
        self.with(home, |shard, view| {
            shard.count(view.slot, Counter::GetsHit, UNCOUNT);
            shard.count(view.slot, Counter::GetsCorrupt, 1);
            if !view.persistent {
                shard.remove_if(key, copy.index, copy.header.seq);
            }
        })
    }
}

/// Decode and verify a copy into its page, which is zeroed where that fails.
pub fn decode(compressor: &mut Compressor, blocks: &[u8], copy: &Copied, page: &mut [u8]) -> Fetch {
    let block = &blocks[copy.start..copy.start + copy.header.len as usize];
    let form = Form::from_bits(copy.header.form);
    let decoded = form.is_some_and(|form| compressor.decode(form, block, page).is_ok());
    if decoded && checksum(page) == copy.header.checksum {
        return Fetch::Hit;
    }
    page.fill(0);
    Fetch::Corrupt
}

/// Copy the stretch's pages that are there into `blocks`, and unlink them where the pool's gets are exclusive.
pub fn copy_out(
    shard: &Shard<'_>,
    view: &PoolView,
    key: &ObjectKey,
    blocks: &mut Vec<u8>,
    copies: &mut Vec<Copied>,
    index: impl Fn(usize) -> u32,
    stretch: &[usize],
) {
    blocks.clear();
    blocks.reserve(stretch.len() * view.page_size as usize);
    copies.clear();
    if let Some(node) = shard.node(key, index(stretch[0]) / CLUSTER) {
        let object = shard.nodes.key(node).0;
        let place = |&i: &usize| shard.nodes.word(node, index(i) % CLUSTER).map(Zhandle);
        let mut ahead = place(&stretch[0]);
        let mut lines = 4;
        for (n, &position) in stretch.iter().enumerate() {
            let this = ahead;
            ahead = stretch.get(n + 1).and_then(place);
            if let Some(next) = ahead {
                shard.frames.prefetch(next, lines);
            }
            if let Some(place) = this {
                let slot = shard.frames.slot(place);
                let (header, start) = (slot.header(), blocks.len());
                lines = (u64::from(header.len) / LINE + 1).min(AHEAD); // neighbours compress alike
                // An index that was damaged must not give one page for another: the shard is rebuilt.
                let own =
                    slot.is_valid() && (header.object, header.index) == (object, index(position));
                assert!(own, "the index names a slot that is not the page's own");
                shard
                    .arena
                    .map()
                    .copy_out(slot.payload, header.len as usize, blocks);
                copies.push(Copied {
                    position,
                    index: index(position),
                    start,
                    header,
                });
                if !view.persistent && !view.exclusive {
                    slot.touch();
                }
            }
        }
    }
    if view.exclusive {
        // Of an index asked for twice the first gets the page.
        copies.retain(|copy| shard.remove(key, copy.index));
    }
    let (hits, all) = (copies.len() as u64, stretch.len() as u64);
    shard.count(view.slot, Counter::GetsHit, hits);
    shard.count(view.slot, Counter::GetsMiss, all - hits);
}
