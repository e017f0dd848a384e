//! zbud: at most two compressed pages ("buddies") to a zbud page.
//!
//! A zbud page is as large as a page of its pool, in 64 chunks. The first buddy grows from its start, the last from its
//! end, so freeing either leaves one hole. Density never falls below one zpage a frame, and evicting frees whole frames:
//! right for ephemeral pools. Pages with one buddy wait in `unbuddied[free chunks]`; a full one is in no list but the
//! eviction order, which is that of the frames themselves.
//!
//! ```text
//! entry:   | tag | first chunks, last chunks | committed | next | prev | . | . | . |
//! ```
//! Locking: runs under the shard lock; takes none of its own.

use crate::alloc::frames::{Run, RunKind};
use crate::alloc::heap::{Allocator, Heap, Owner};
use crate::alloc::slot::{HEADER_WORDS, Slot, Zhandle};
use crate::arena::{Full, W32};
use crate::types::FRAME;

/// Chunks to a zbud page.
pub const CHUNKS: u32 = 64;

/// The allocator, over one pool's heap.
#[derive(Clone, Copy)]
pub struct Zbud<'a> {
    heap: Heap<'a>,
}

/// Which of the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Buddy {
    First,
    Last,
}

impl<'a> Zbud<'a> {
    pub fn new(heap: Heap<'a>) -> Zbud<'a> {
        Zbud { heap }
    }

    fn chunk(&self) -> u32 {
        self.heap.page_size / CHUNKS
    }

    /// Whether `size` bytes can be a buddy at all; what cannot is kept raw.
    pub fn fits(page_size: u32, size: usize) -> bool {
        (size as u32).div_ceil(page_size / CHUNKS) < CHUNKS
    }

    fn entry(&self, run: Run) -> &'a [W32] {
        let (kind, _, pool) = self.heap.frames.tag(run);
        assert!(
            kind == RunKind::Zbud && pool == self.heap.pool,
            "{run:?} is no zbud page of pool {}",
            self.heap.pool
        );
        self.heap.frames.entry(run)
    }

    fn chunks(&self, run: Run) -> (u32, u32) {
        let word = self.entry(run)[1].get();
        (word & 0xff, word >> 8 & 0xff)
    }

    fn set_chunks(&self, run: Run, first: u32, last: u32) {
        self.heap.frames.entry(run)[1].set(first | last << 8);
    }

    fn place(&self, run: Run, buddy: Buddy, chunks: u32) -> Zhandle {
        Zhandle::at(match buddy {
            Buddy::First => run.offset(),
            Buddy::Last => run.offset() + run.bytes() - u64::from(chunks * self.chunk()),
        })
    }

    // --- pages with one buddy ---

    fn list(&self, run: Run) -> &'a W32 {
        let (first, last) = self.chunks(run);
        &self.heap.head.unbuddied[(CHUNKS - first - last) as usize % CHUNKS as usize]
    }

    fn link(&self, run: Run) {
        let (list, entry) = (self.list(run), self.heap.frames.entry(run));
        let first = list.get();
        entry[3].set(first);
        entry[4].set(0);
        if first != 0 {
            self.entry(self.heap.frames.run_of(first - 1))[4].set(run.first + 1);
        }
        list.set(run.first + 1);
    }

    fn unlink(&self, run: Run) {
        let entry = self.entry(run);
        let (next, prev) = (entry[3].get(), entry[4].get());
        match prev {
            0 => self.list(run).set(next),
            _ => self.entry(self.heap.frames.run_of(prev - 1))[3].set(next),
        }
        if next != 0 {
            self.entry(self.heap.frames.run_of(next - 1))[4].set(prev);
        }
    }

    /// The unbuddied page with the least room that is enough.
    fn best_fit(&self, chunks: u32) -> Option<Run> {
        let lists = &self.heap.head.unbuddied[chunks as usize..];
        let first = lists.iter().map(W32::get).find(|&first| first != 0)?;
        Some(self.heap.frames.run_of(first - 1))
    }

    fn new_page(&self, chunks: u32) -> Result<Run, Full> {
        let run = self.heap.take_run(self.heap.page_size / FRAME as u32)?;
        self.heap
            .commit(run, run.frames)
            .inspect_err(|_| self.heap.free_run(run))?;
        self.slot_words(self.place(run, Buddy::First, 0))[HEADER_WORDS - 1].set(0);
        self.set_chunks(run, chunks, 0);
        self.heap
            .frames
            .set_tag(run, RunKind::Zbud, 0, self.heap.pool);
        self.link(run);
        Ok(run)
    }

    fn slot_words(&self, zhandle: Zhandle) -> &'a [W32] {
        self.heap.frames.slot(zhandle).cells
    }

    fn join(&self, run: Run, chunks: u32) -> Zhandle {
        self.unlink(run);
        let (first, last) = self.chunks(run);
        let buddy = if first == 0 {
            Buddy::First
        } else {
            Buddy::Last
        };
        let place = self.place(run, buddy, chunks);
        // The new buddy's slot is empty before the entry says that it is there.
        self.slot_words(place)[HEADER_WORDS - 1].set(0);
        match buddy {
            Buddy::First => self.set_chunks(run, chunks, last),
            Buddy::Last => self.set_chunks(run, first, chunks),
        }
        place
    }

    fn buddies(&self, run: Run) -> impl Iterator<Item = (Buddy, Zhandle)> + use<'a> {
        let (first, last) = self.chunks(run);
        let allocator = *self;
        let present = [(Buddy::First, first), (Buddy::Last, last)]
            .into_iter()
            .filter(|(_, chunks)| *chunks != 0);
        present.map(move |(buddy, chunks)| (buddy, allocator.place(run, buddy, chunks)))
    }

    /// The slots of a zbud page.
    pub fn slots(&self, run: Run) -> impl Iterator<Item = (Zhandle, Slot<'a>)> + use<'a> {
        let frames = self.heap.frames;
        self.buddies(run)
            .map(move |(_, zhandle)| (zhandle, frames.slot(zhandle)))
    }

    fn drop_page(&self, run: Run) {
        self.set_chunks(run, 0, 0);
        self.heap.free_run(run);
    }

    // --- rebuilding and checking ---

    /// Rebuilding: believe what of this run is believable, and list it; false when it holds nothing.
    pub fn adopt(&self, run: Run) -> bool {
        let whole = self.heap.frames.committed(run) == run.frames;
        let (first, last) = self.chunks(run);
        if !whole || first + last > CHUNKS || run.frames != self.heap.page_size / FRAME as u32 {
            return false;
        }
        let valid = |buddy, chunks| {
            chunks != 0
                && self
                    .heap
                    .frames
                    .slot(self.place(run, buddy, chunks))
                    .is_valid()
        };
        let first = if valid(Buddy::First, first) { first } else { 0 };
        let last = if valid(Buddy::Last, last) { last } else { 0 };
        self.set_chunks(run, first, last);
        if first + last == 0 {
            return false;
        }
        self.heap.frames.adopt(run, run.frames);
        if first == 0 || last == 0 {
            self.link(run);
        }
        true
    }

    /// Violations in one zbud page.
    pub fn check(&self, run: Run, faults: &mut Vec<String>) {
        let (first, last) = self.chunks(run);
        if first + last == 0 || first + last > CHUNKS {
            faults.push(format!("zbud page {run:?} has {first}+{last} chunks"));
        }
        if self.slots(run).any(|(_, slot)| !slot.is_valid()) {
            faults.push(format!("zbud page {run:?} has a buddy that is not valid"));
        }
    }

    /// Pages in the unbuddied lists; None where one is unsound.
    pub fn check_lists(&self) -> Option<u32> {
        let mut listed = 0;
        for (free, list) in self.heap.head.unbuddied.iter().enumerate() {
            let (mut at, mut prev) = (list.get(), 0);
            while at != 0 {
                let run = self.heap.frames.run_of(at - 1);
                let (first, last) = self.chunks(run);
                let lone = (first == 0) != (last == 0) && (CHUNKS - first - last) as usize == free;
                if !lone || self.entry(run)[4].get() != prev || listed > 1 << 30 {
                    return None;
                }
                listed += 1;
                prev = at;
                at = self.entry(run)[3].get();
            }
        }
        Some(listed)
    }

    /// Whether a page has one buddy only.
    pub fn is_unbuddied(&self, run: Run) -> bool {
        let (first, last) = self.chunks(run);
        (first == 0) != (last == 0)
    }
}

impl Allocator for Zbud<'_> {
    fn alloc(&self, size: usize) -> Result<Zhandle, Full> {
        let chunks = (size as u32).div_ceil(self.chunk());
        debug_assert!(chunks < CHUNKS);
        match self.best_fit(chunks) {
            Some(run) => Ok(self.join(run, chunks)),
            None => Ok(self.place(self.new_page(chunks)?, Buddy::First, chunks)),
        }
    }

    fn free(&self, zhandle: Zhandle) {
        let run = self.heap.frames.run_of(zhandle.frame());
        let (first, last) = self.chunks(run);
        if first != 0 && last != 0 {
            let freed = self
                .buddies(run)
                .find(|&(_, place)| place == zhandle)
                .map(|(buddy, _)| buddy);
            match freed.expect("a zhandle names a buddy's start") {
                Buddy::First => self.set_chunks(run, 0, last),
                Buddy::Last => self.set_chunks(run, first, 0),
            }
            self.link(run);
        } else {
            self.unlink(run);
            self.drop_page(run);
        }
    }

    fn map(&self, zhandle: Zhandle) -> Slot<'_> {
        self.heap.frames.slot(zhandle)
    }

    /// Two buddies at most: moving them frees no frame that best fit would not have spared.
    fn compact(&self, _: &dyn Owner) -> bool {
        false
    }

    /// The whole page at once; a use of either buddy since the last pass spares both.
    fn evict(&self, run: Run, owner: &dyn Owner) -> bool {
        let used = self
            .slots(run)
            .fold(false, |used, (_, slot)| slot.take_reference() | used);
        if used {
            return false;
        }
        for (_, slot) in self.slots(run) {
            owner.evicted(&slot);
            slot.invalidate();
        }
        if self.is_unbuddied(run) {
            self.unlink(run);
        }
        self.drop_page(run);
        true
    }
}
