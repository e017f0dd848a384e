//! Batches: many pages of one object, taken cluster by cluster.
//!
//! Pages are compressed before a lock is taken and decompressed after it is released; under it bytes are only copied. A
//! cluster of 64 pages is one shard's, so each cluster of a batch takes one lock once.

use std::cell::RefCell;

use crate::arena::{Arena, Counter};
use crate::codec::{Compressor, Encoded, Form, checksum, same_filled};
use crate::error::{Error, Result};
use crate::frames::Frames;
use crate::pools::{PoolId, PoolView};
use crate::shard::{Item, ObjectKey, Shard, with_shard};
use crate::slot::{HEADER, Zhandle};
use crate::types::{CLUSTER, Cause, Codec, FRAME, Fetch, Outcome};
use crate::zbud::Zbud;
use crate::zsmalloc::CLASSES;

/// Most bytes of pages that are worked on under one lock.
const STRETCH: usize = 256 << 10;

/// One thread's buffers.
#[derive(Default)]
struct Scratch {
    compressor: Compressor,
    blocks: Vec<u8>,
    page: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

/// What the operations of one pool need to know that never changes.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub arena: &'a Arena,
    pub id: PoolId,
    pub name: &'a str,
    pub page_size: usize,
    pub codec: Codec,
    /// Largest compressed page worth keeping compressed, in bytes.
    pub limit: usize,
}

/// The largest payload that costs less than a raw page.
pub fn payload_limit(zbud: bool, page_size: usize) -> usize {
    if zbud {
        let chunk = page_size / crate::zbud::CHUNKS as usize;
        debug_assert!(Zbud::fits(page_size as u32, page_size - chunk));
        page_size - chunk - HEADER
    } else {
        CLASSES.largest_payload(page_size, HEADER)
    }
}

/// How the pages of a put arrive.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Input {
    Pages,
    Lz4Blocks,
}

/// Positions of `count` items in order of their index, cut where the cluster changes or the bytes become many.
fn stretches(count: usize, page_size: usize, index: impl Fn(usize) -> u32, mut body: impl FnMut(&[usize]) -> Result<()>) -> Result<()> {
    let mut order: Vec<usize> = (0..count).collect();
    if !order.is_sorted_by_key(|&i| index(i)) {
        order.sort_by_key(|&i| index(i)); // stable: of two with one index the later stays later
    }
    let most = (STRETCH / page_size).max(1);
    for cluster in order.chunk_by(|&a, &b| index(a) / CLUSTER == index(b) / CLUSTER) {
        cluster.chunks(most).try_for_each(&mut body)?;
    }
    Ok(())
}

impl<'a> Target<'a> {
    fn view(&self) -> Result<PoolView> {
        PoolView::read(self.arena, self.id).ok_or_else(|| Error::UnknownPool(self.name.to_owned()))
    }

    /// Run `body` on a shard with what it needs of the pool.
    fn with<T>(&self, shard: u32, body: impl FnOnce(&Shard<'_>, &PoolView) -> T) -> Result<T> {
        with_shard(self.arena, shard, |shard| Ok(body(shard, &self.view()?)))?
    }

    // --- put ---

    pub fn put(&self, key: &ObjectKey, pages: &[(u32, &[u8])], input: Input) -> Result<Vec<Outcome>> {
        self.view()?;
        let mut outcomes = vec![Outcome::Stored { replaced: false }; pages.len()];
        SCRATCH.with_borrow_mut(|scratch| {
            if input == Input::Lz4Blocks {
                self.verify_blocks(scratch, pages)?;
            }
            stretches(pages.len(), self.page_size, |i| pages[i].0, |stretch| {
                let encoded = self.encode(scratch, pages, stretch, input)?;
                self.put_stretch(key, scratch, &encoded, |i, outcome| outcomes[i] = outcome)
            })
        })?;
        Ok(outcomes)
    }

    /// Refuse the whole batch for one block that is no page, before anything is touched.
    fn verify_blocks(&self, scratch: &mut Scratch, pages: &[(u32, &[u8])]) -> Result<()> {
        scratch.page.resize(self.page_size, 0);
        for &(index, block) in pages {
            let decoded = scratch.compressor.decode(Form::Lz4, block, &mut scratch.page);
            decoded.map_err(|_| Error::Invalid(format!("the LZ4 block for index {index} does not decode to a page of {} bytes", self.page_size)))?;
        }
        Ok(())
    }

    /// Encode a stretch into the scratch's blocks: (position, index, encoding, start of its bytes).
    fn encode(&self, scratch: &mut Scratch, pages: &[(u32, &[u8])], stretch: &[usize], input: Input) -> Result<Vec<(usize, u32, Encoded, usize)>> {
        let mut encoded = Vec::with_capacity(stretch.len());
        let mut at = 0;
        let room = stretch.len() * self.page_size;
        if scratch.blocks.len() < room {
            scratch.blocks.resize(room, 0);
        }
        for &i in stretch {
            let (index, bytes) = pages[i];
            let out = &mut scratch.blocks[at..at + self.page_size];
            let one = match input {
                Input::Pages => scratch.compressor.encode(self.codec, bytes, self.limit, out),
                Input::Lz4Blocks => self.adopt_block(&mut scratch.compressor, &mut scratch.page, bytes, out)?,
            };
            encoded.push((i, index, one, at));
            at += one.len as usize;
        }
        Ok(encoded)
    }

    /// An LZ4 block as it is to be kept: as it came, unless the page is same-filled or the block is too large.
    fn adopt_block(&self, compressor: &mut Compressor, page: &mut Vec<u8>, block: &[u8], out: &mut [u8]) -> Result<Encoded> {
        page.resize(self.page_size, 0);
        let undecodable = |_| Error::Invalid("an LZ4 block changed while it was being stored".into());
        compressor.decode(Form::Lz4, block, page).map_err(undecodable)?;
        if block.len() > self.limit || same_filled(page).is_some() {
            return Ok(compressor.encode(Codec::Raw, page, self.limit, out));
        }
        out[..block.len()].copy_from_slice(block);
        Ok(Encoded { form: Form::Lz4, len: block.len() as u32, checksum: checksum(page) })
    }

    fn put_stretch(
        &self,
        key: &ObjectKey,
        scratch: &Scratch,
        encoded: &[(usize, u32, Encoded, usize)],
        mut settle: impl FnMut(usize, Outcome),
    ) -> Result<()> {
        let home = key.shard(self.arena, encoded[0].1 / CLUSTER);
        let mut todo = encoded;
        for last in [false, false, true] {
            let done = self.with(home, |shard, view| {
                todo.iter()
                    .map_while(|&(i, index, one, at)| {
                        let bytes = &scratch.blocks[at..at + one.len as usize];
                        let item = Item { index, form: one.form, checksum: one.checksum, bytes };
                        let outcome = shard.put(view, key, &item, last).ok()?;
                        settle(i, outcome);
                        Some(())
                    })
                    .count()
            })?;
            todo = &todo[done..];
            if todo.is_empty() {
                break;
            }
            relieve(self.arena, home, todo.iter().map(|(_, _, one, _)| u64::from(one.len)).sum())?;
        }
        debug_assert!(todo.is_empty());
        Ok(())
    }

    // --- get ---

    pub fn get(&self, key: &ObjectKey, indices: &[u32], into: &mut [&mut [u8]], exclusive: bool) -> Result<Vec<Fetch>> {
        self.view()?;
        let mut fetched = vec![Fetch::Miss; indices.len()];
        SCRATCH.with_borrow_mut(|scratch| {
            stretches(indices.len(), self.page_size, |i| indices[i], |stretch| {
                self.get_stretch(key, scratch, indices, stretch, exclusive, into, &mut fetched)
            })
        })?;
        Ok(fetched)
    }

    #[allow(clippy::too_many_arguments)]
    fn get_stretch(
        &self,
        key: &ObjectKey,
        scratch: &mut Scratch,
        indices: &[u32],
        stretch: &[usize],
        exclusive: bool,
        into: &mut [&mut [u8]],
        fetched: &mut [Fetch],
    ) -> Result<()> {
        let cluster = indices[stretch[0]] / CLUSTER;
        let home = key.shard(self.arena, cluster);
        scratch.blocks.clear();
        let found = self.with(home, |shard, view| {
            copy_out(shard, view, key, &mut scratch.blocks, indices, stretch, exclusive)
        })?;
        for copy in found {
            let block = &scratch.blocks[copy.start..copy.start + copy.len as usize];
            let page = &mut *into[copy.position];
            let form = Form::from_bits(copy.form);
            let decoded = form.is_some_and(|form| scratch.compressor.decode(form, block, page).is_ok());
            fetched[copy.position] = if decoded && checksum(page) == copy.checksum {
                Fetch::Hit
            } else {
                page.fill(0);
                self.corrupt(key, home, indices[copy.position], copy.seq)?;
                Fetch::Corrupt
            };
        }
        Ok(())
    }

    /// Count a corrupt page, and remove it where it may go, if it is still the one that was read.
    fn corrupt(&self, key: &ObjectKey, home: u32, index: u32, seq: u32) -> Result<()> {
        self.with(home, |shard, view| {
            shard.count(view.slot, Counter::GetsCorrupt, 1);
            let same = shard.find(key, index).is_some_and(|(_, place)| shard.frames.slot(place).header().seq == seq);
            if same && !view.persistent {
                shard.remove(key, index);
            }
        })
    }

    // --- the rest ---

    pub fn has(&self, key: &ObjectKey, first: u32, count: u32) -> Result<Vec<bool>> {
        self.view()?;
        let mut held = vec![false; count as usize];
        let mut at = u64::from(first);
        let end = at + u64::from(count);
        while at < end {
            let cluster = at as u32 / CLUSTER;
            let stop = (u64::from(cluster + 1) * u64::from(CLUSTER)).min(end);
            let map = self.with(key.shard(self.arena, cluster), |shard, _| {
                shard.node(key, cluster).map_or(0, |node| shard.nodes.map(node))
            })?;
            for index in at..stop {
                held[(index - u64::from(first)) as usize] = map >> (index % u64::from(CLUSTER)) & 1 != 0;
            }
            at = stop;
        }
        Ok(held)
    }

    pub fn flush(&self, key: &ObjectKey, indices: &[u32]) -> Result<u64> {
        self.view()?;
        let mut found = 0;
        stretches(indices.len(), self.page_size, |i| indices[i], |stretch| {
            let home = key.shard(self.arena, indices[stretch[0]] / CLUSTER);
            found += self.with(home, |shard, view| {
                let removed = stretch.iter().filter(|&&i| shard.remove(key, indices[i])).count() as u64;
                shard.count(view.slot, Counter::Flushes, stretch.len() as u64);
                shard.count(view.slot, Counter::FlushedPages, removed);
                removed
            })?;
            Ok(())
        })?;
        Ok(found)
    }
}

/// Compressed bytes copied out of a shard.
struct Copied {
    position: usize,
    start: usize,
    len: u32,
    form: u8,
    checksum: u32,
    seq: u32,
}

/// Copy the stretch's pages that are there into `blocks`, and remove them where the get is exclusive.
fn copy_out(
    shard: &Shard<'_>,
    view: &PoolView,
    key: &ObjectKey,
    blocks: &mut Vec<u8>,
    indices: &[u32],
    stretch: &[usize],
    exclusive: bool,
) -> Vec<Copied> {
    let mut found = Vec::with_capacity(stretch.len());
    if let Some(node) = shard.node(key, indices[stretch[0]] / CLUSTER) {
        let place = |i: usize| shard.nodes.word(node, indices[i] % CLUSTER).map(Zhandle);
        let mut ahead = stretch.first().and_then(|&i| place(i));
        for (n, &position) in stretch.iter().enumerate() {
            let this = ahead;
            ahead = stretch.get(n + 1).and_then(|&i| place(i));
            if let Some(next) = ahead {
                prefetch(&shard.frames, next);
            }
            let Some(this) = this else { continue };
            let slot = shard.frames.slot(this);
            let header = slot.header();
            let start = blocks.len();
            shard.arena.map().copy_out(slot.payload, header.len as usize, blocks);
            let (len, form) = (header.len, header.form);
            found.push(Copied { position, start, len, form, checksum: header.checksum, seq: header.seq });
            if !view.persistent && !view.exclusive {
                slot.touch();
            }
        }
    }
    if exclusive || view.exclusive {
        for copy in &found {
            shard.remove(key, indices[copy.position]);
        }
    }
    shard.count(view.slot, Counter::GetsHit, found.len() as u64);
    shard.count(view.slot, Counter::GetsMiss, (stretch.len() - found.len()) as u64);
    found
}

fn prefetch(frames: &Frames<'_>, place: Zhandle) {
    let at = frames.file_offset(place.offset());
    for line in 0..4 {
        frames.arena().map().prefetch(at + line * 64);
    }
}

/// Have shards other than `home` give up their reserve, and ephemeral pages until `bytes` are free.
pub fn relieve(arena: &Arena, home: u32, bytes: u64) -> Result<()> {
    let target = arena.used().saturating_sub(bytes + 16 * FRAME as u64);
    for step in 1..arena.shards() {
        if arena.used() <= target {
            break;
        }
        with_shard(arena, (home + step) % arena.shards(), |shard| shrink(shard, target, Cause::Memory))?;
    }
    Ok(())
}

/// Evict from one shard until the arena uses `target` bytes, or a bounded number of rounds is done; false when done.
pub fn shrink(shard: &Shard<'_>, target: u64, cause: Cause) -> bool {
    shard.frames.trim_reserve();
    for _ in 0..crate::evict::TRIES {
        if shard.arena.used() <= target {
            return false;
        }
        let evicted = shard.victim().is_some_and(|heap| shard.evict(&heap, cause));
        shard.frames.trim_reserve();
        if !evicted {
            return false;
        }
    }
    true
}

