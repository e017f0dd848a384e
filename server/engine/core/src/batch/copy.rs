//! Copy of pages into another pool as they are stored: nothing is decoded. A copy that finds no room is refused, and never
//! makes the store refuse what is put.

use super::get::copy_out;
use super::scratch::{Ready, SCRATCH, Scratch};
use super::{Target, most_of};
use crate::codec::{Encoded, Form};
use crate::error::{Error, Result};
use crate::outcome::Outcome;
use crate::shard::{ObjectKey, PutMode};
use crate::types::CLUSTER;

impl Target<'_> {
    /// Copy those of a cluster's pages that are there, as `map` has them, to the same indices of `into`. The pages that were there,
    /// or None if one found no room.
    pub fn copy(
        &self,
        key: &ObjectKey,
        cluster: u32,
        map: u64,
        into: &Target<'_>,
        there: &ObjectKey,
    ) -> Result<Option<u64>> {
        let mut copied = 0;
        let (mut pages, mut outcomes) = ([0; CLUSTER as usize], [UNDECIDED; CLUSTER as usize]);
        let wanted = (0..CLUSTER).filter(|page| map >> page & 1 != 0);
        let count = wanted.zip(&mut pages).map(|(page, at)| *at = page).count();
        for stretch in pages[..count].chunks(most_of(self.page_size)) {
            SCRATCH.with_borrow_mut(|scratch| {
                self.take_copies(key, scratch, cluster, stretch)?;
                copied |= ready_map(&scratch.encoded);
                if scratch.encoded.is_empty() {
                    return Ok(());
                }
                into.store(there, scratch, PutMode::Copy, &mut outcomes)
            })?;
        }
        let refused = |outcome: &Outcome| matches!(outcome, Outcome::Refused { .. });
        Ok((!outcomes.iter().any(refused)).then_some(copied))
    }

    /// Copy a stretch's pages into the scratch, ready to be stored elsewhere.
    fn take_copies(
        &self,
        key: &ObjectKey,
        scratch: &mut Scratch,
        cluster: u32,
        stretch: &[u32],
    ) -> Result<()> {
        let Scratch {
            blocks,
            copies,
            encoded,
            ..
        } = scratch;
        let index = |i: usize| cluster * CLUSTER + stretch[i];
        let positions: [usize; CLUSTER as usize] = std::array::from_fn(|i| i);
        self.with(key.shard(self.arena, cluster), |shard, view| {
            let positions = &positions[..stretch.len()];
            copy_out(shard, view, key, blocks, copies, index, positions);
        })?;
        encoded.clear();
        for copy in copies.iter() {
            let form = Form::from_bits(copy.header.form).ok_or_else(|| Error::Damaged {
                shard: key.shard(self.arena, cluster),
                why: "a page is stored in an unknown form".into(),
            })?;
            let page = stretch[copy.position];
            encoded.push(Ready {
                position: page as usize,
                index: cluster * CLUSTER + page,
                encoded: Encoded {
                    form,
                    len: copy.header.len,
                    checksum: copy.header.checksum,
                },
                start: copy.start,
            });
        }
        Ok(())
    }
}

/// What stands for an outcome until there is one.
const UNDECIDED: Outcome = Outcome::Stored { replaced: false };

fn ready_map(pages: &[Ready]) -> u64 {
    let bit = |page: &Ready| 1 << (page.index % CLUSTER);
    pages.iter().map(bit).fold(0, std::ops::BitOr::bitor)
}
