//! Fetch of a batch for a user far away: blocks as they are stored where the user can read them, and each page's stamp.
//!
//! Unlike `get` it takes nothing out of a pool that keeps its pages, as the answer may be lost on its way. Once the user
//! has the pages, `flush_if` removes them by their stamps and leaves alone what was put in between.

use super::get::{copy_out, decode, once_taken};
use super::scratch::{Copied, SCRATCH, Scratch};
use super::{Target, stretches};
use crate::codec::Form;
use crate::error::{Result, unless_busy};
use crate::outcome::Fetch;
use crate::shard::ObjectKey;
use crate::types::{CLUSTER, Codec};

/// What a fetch found.
pub struct Fetched {
    /// The bytes of the hits.
    pub bytes: Vec<u8>,
    /// One for each index, in their order.
    pub pages: Vec<FetchedPage>,
}

/// One page of a fetch.
#[derive(Clone, Copy, Debug)]
pub struct FetchedPage {
    pub fetch: Fetch,
    /// Where it starts in `bytes`.
    pub start: usize,
    /// A page long where it is the page itself, else the length of its LZ4 block.
    pub len: usize,
    /// Of the page, decoded. Pages were verified; blocks are the user's to verify.
    pub checksum: u32,
    /// The stamp for `flush_if`.
    pub seq: u32,
}

const MISS: FetchedPage = FetchedPage {
    fetch: Fetch::Miss,
    start: 0,
    len: 0,
    checksum: 0,
    seq: 0,
};

impl Target<'_> {
    /// Fetch pages: with `lz4` as LZ4 blocks where they are stored so or shrink at once, else decoded.
    pub fn fetch(&self, key: &ObjectKey, indices: &[u32], lz4: bool) -> Result<Fetched> {
        let takes = self.view()?.exclusive;
        let mut found = Fetched {
            bytes: Vec::new(),
            pages: vec![MISS; indices.len()],
        };
        let index = |i: usize| indices[i];
        SCRATCH.with_borrow_mut(|scratch| {
            stretches(
                scratch,
                indices.len(),
                self.page_size,
                index,
                |scratch, stretch| {
                    let took = takes && found.pages.iter().any(|page| page.fetch == Fetch::Hit);
                    let fetched = once_taken(took, || {
                        self.fetch_stretch(key, scratch, indices, stretch, lz4, &mut found)
                    });
                    fetched.map(drop)
                },
            )
        })?;
        Ok(found)
    }

    fn fetch_stretch(
        &self,
        key: &ObjectKey,
        scratch: &mut Scratch,
        indices: &[u32],
        stretch: &[usize],
        lz4: bool,
        found: &mut Fetched,
    ) -> Result<()> {
        let home = key.shard(self.arena, indices[stretch[0]] / CLUSTER);
        self.with(home, |shard, view| {
            let Scratch { blocks, copies, .. } = &mut *scratch;
            copy_out(shard, view, key, blocks, copies, |i| indices[i], stretch);
        })?;
        let copies = std::mem::take(&mut scratch.copies);
        for copy in &copies {
            let start = found.bytes.len();
            let fetch = self.append(scratch, copy, lz4, &mut found.bytes);
            found.pages[copy.position] = FetchedPage {
                fetch,
                start,
                len: found.bytes.len() - start,
                checksum: copy.header.checksum,
                seq: copy.header.seq,
            };
            if fetch == Fetch::Corrupt {
                unless_busy(self.corrupt(key, home, copy))?;
            }
        }
        scratch.copies = copies;
        Ok(())
    }

    /// Append a copy's block or page; nothing where it is corrupt.
    fn append(&self, scratch: &mut Scratch, copy: &Copied, lz4: bool, out: &mut Vec<u8>) -> Fetch {
        let Scratch {
            compressor,
            blocks,
            page,
            ..
        } = scratch;
        let form = Form::from_bits(copy.header.form);
        let block = &blocks[copy.start..copy.start + copy.header.len as usize];
        if lz4 && form == Some(Form::Lz4) && block.len() < self.page_size {
            out.extend_from_slice(block);
            return Fetch::Hit;
        }
        let start = out.len();
        out.resize(start + self.page_size, 0);
        let fetch = decode(compressor, blocks, copy, &mut out[start..]);
        if fetch == Fetch::Corrupt {
            out.truncate(start);
        } else if lz4 && form == Some(Form::Same) {
            page.resize(self.page_size, 0);
            let codec = Codec::Lz4 { acceleration: 1 };
            if let Some((_, len)) = compressor.compress(codec, &out[start..], page) {
                out.truncate(start);
                out.extend_from_slice(&page[..len]);
            }
        }
        fetch
    }

    /// Remove pages, each an index and the stamp of its fetch, unless they were replaced; the number found.
    pub fn flush_if(&self, key: &ObjectKey, pages: &[(u32, u32)]) -> Result<u64> {
        self.view()?;
        let mut found = 0;
        let index = |i: usize| pages[i].0;
        SCRATCH.with_borrow_mut(|scratch| {
            stretches(scratch, pages.len(), self.page_size, index, |_, stretch| {
                let home = key.shard(self.arena, pages[stretch[0]].0 / CLUSTER);
                found += self.with(home, |shard, _| {
                    let pages = stretch.iter().map(|&i| pages[i]);
                    let removed = pages.filter(|&(index, seq)| shard.remove_if(key, index, seq));
                    removed.count() as u64
                })?;
                Ok(())
            })
        })?;
        Ok(found)
    }
}
