//! Put of a batch: a stretch is compressed, then its shard's lock is taken once and its pages are stored.

use super::pages::Source;
use super::reclaim::{reclaim, settle};
use super::scratch::{Ready, SCRATCH, Scratch};
use super::{Input, STRETCH, Target, stretches};
use crate::arena::Full;
use crate::codec::{Compressor, Encoded, Form, checksum, same_filled};
use crate::error::{Error, Result};
use crate::outcome::Outcome;
use crate::shard::{ObjectKey, PutMode};
use crate::types::{CLUSTER, Codec};

impl Target<'_> {
    /// Store pages; `outcomes` becomes what became of each, in their order. Nothing is taken from the heap but for buffers that
    /// grow to the largest stretch yet.
    pub fn put(
        &self,
        key: &ObjectKey,
        pages: &impl Source,
        input: Input,
        mode: PutMode,
        outcomes: &mut [Outcome],
    ) -> Result<()> {
        self.view()?;
        let index = |i: usize| pages.index(i);
        SCRATCH.with_borrow_mut(|scratch| {
            // A single stretch is encoded whole, and so verified, before any of it is stored.
            if input.has_blocks() && !self.is_one_stretch(pages) {
                self.verify_blocks(scratch, pages, input)?;
            }
            stretches(
                scratch,
                pages.count(),
                self.page_size,
                index,
                |scratch, stretch| {
                    self.encode(scratch, pages, stretch, input)?;
                    self.store(key, scratch, mode, outcomes)
                },
            )
        })
    }

    fn is_one_stretch(&self, pages: &impl Source) -> bool {
        let cluster = |i| pages.index(i) / CLUSTER;
        pages.count() * self.page_size <= STRETCH
            && (0..pages.count()).all(|i| cluster(i) == cluster(0))
    }

    /// Refuse the whole batch for one block that is no page, before anything is touched.
    fn verify_blocks(
        &self,
        scratch: &mut Scratch,
        pages: &impl Source,
        input: Input,
    ) -> Result<()> {
        let Scratch {
            compressor, page, ..
        } = scratch;
        (0..pages.count())
            .map(|i| (pages.index(i), pages.bytes(i)))
            .filter(|(_, block)| input.is_block(block.len(), self.page_size))
            .try_for_each(|(index, block)| self.decode_block(compressor, index, block, page))
    }

    fn decode_block(
        &self,
        compressor: &mut Compressor,
        index: u32,
        block: &[u8],
        page: &mut Vec<u8>,
    ) -> Result<()> {
        let size = self.page_size;
        page.resize(size, 0);
        compressor.decode(Form::Lz4, block, page).map_err(|_| {
            Error::Invalid(format!(
                "the LZ4 block for index {index} does not decode to a page of {size} bytes"
            ))
        })
    }

    /// Encode a stretch into the scratch.
    fn encode(
        &self,
        scratch: &mut Scratch,
        pages: &impl Source,
        stretch: &[usize],
        input: Input,
    ) -> Result<()> {
        let Scratch {
            compressor,
            blocks,
            page,
            encoded: ready,
            ..
        } = scratch;
        let room = Compressor::room(self.page_size);
        let most = (stretch.len() - 1) * self.page_size + room;
        if blocks.len() < most {
            blocks.resize(most, 0);
        }
        ready.clear();
        let mut start = 0;
        for &position in stretch {
            let (index, bytes) = (pages.index(position), pages.bytes(position));
            let out = &mut blocks[start..start + room];
            let encoded = if input.is_block(bytes.len(), self.page_size) {
                self.decode_block(compressor, index, bytes, page)?;
                self.adopt_block(compressor, page, bytes, out)
            } else {
                compressor.encode(self.codec, bytes, self.limit, out)
            };
            ready.push(Ready {
                position,
                index,
                encoded,
                start,
            });
            start += encoded.len as usize;
        }
        Ok(())
    }

    /// A decoded LZ4 block as it is to be kept: as it came, unless the pool's codec is a denser one, the page is
    /// same-filled or the block too large.
    fn adopt_block(
        &self,
        compressor: &mut Compressor,
        page: &[u8],
        block: &[u8],
        out: &mut [u8],
    ) -> Encoded {
        if let Codec::Zstd { .. } | Codec::Lz4hc { .. } = self.codec {
            return compressor.encode(self.codec, page, self.limit, out);
        }
        if block.len() > self.limit || same_filled(page).is_some() {
            return compressor.encode(Codec::Raw, page, self.limit, out);
        }
        out[..block.len()].copy_from_slice(block);
        Encoded {
            form: Form::Lz4,
            len: block.len() as u32,
            checksum: checksum(page),
        }
    }

    /// Store an encoded stretch, asking other shards for room twice before any page is refused for want of it.
    pub(super) fn store(
        &self,
        key: &ObjectKey,
        scratch: &Scratch,
        mode: PutMode,
        outcomes: &mut [Outcome],
    ) -> Result<()> {
        let mut todo = &scratch.encoded[..];
        let home = key.shard(self.arena, todo[0].index / CLUSTER);
        let mut relieved = false;
        for last in [false, false, true] {
            let mut full = Full::Memory;
            let done = self.with(home, |shard, view| {
                let stored = todo.iter().map_while(|ready| {
                    let put = shard.put(view, key, &ready.item(&scratch.blocks, mode), last);
                    outcomes[ready.position] = put.map_err(|why| full = why).ok()?;
                    Some(())
                });
                stored.count()
            })?;
            todo = &todo[done..];
            if todo.is_empty() {
                break;
            }
            let bytes = todo.iter().map(|ready| u64::from(ready.encoded.len)).sum();
            reclaim(self.arena, home, bytes, self.id.slot, full == Full::Quota)?;
            relieved = true;
        }
        debug_assert!(todo.is_empty());
        if relieved {
            self.with(home, |shard, _| settle(shard))?;
        }
        Ok(())
    }
}
