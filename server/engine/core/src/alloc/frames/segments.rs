//! Segments: opened for one length of run, listed while they have runs to give, closed when all are free.

use super::{ENTRIES_PER_FRAME, Frames, PAGE, SEGMENT_WORDS};
use crate::arena::{ENTRY, Full, SEGMENT_FRAMES, W32};

impl<'a> Frames<'a> {
    pub(super) fn segment(&self, segment: u32) -> &'a [W32] {
        self.segments
            .words(u64::from(segment) * ENTRY, SEGMENT_WORDS)
    }

    /// Segments ever opened.
    pub fn segment_count(&self) -> u32 {
        self.head.segments.get()
    }

    /// Frames to a run of a segment; 0 where it is closed.
    #[inline(always)]
    pub fn run_length(&self, segment: u32) -> u32 {
        self.segment(segment)[0].get()
    }

    /// Runs of a segment that were ever used.
    pub fn fresh(&self, segment: u32) -> u32 {
        self.segment(segment)[1].get()
    }

    pub(super) fn open_segment(&self, frames: u32) -> Result<u32, Full> {
        let free = self.head.segment_free.get();
        let segment = if free != 0 {
            self.head.segment_free.set(self.segment(free - 1)[4].get());
            free - 1
        } else {
            let next = self.head.segments.get();
            if next >= self.map.segments {
                return Err(Full::Memory);
            }
            self.segments.grow(u64::from(next + 1) * ENTRY)?;
            self.segment(next)[0].set(0);
            self.head.segments.set(next + 1);
            next
        };
        let cells = self.segment(segment);
        cells[1..].iter().for_each(|cell| cell.set(0));
        cells[0].publish(frames);
        self.list_segment(segment, frames);
        Ok(segment)
    }

    /// Close a segment whose runs are all free.
    pub(super) fn close_segment(&self, segment: u32) {
        let cells = self.segment(segment);
        self.unlist_segment(segment, cells[0].get());
        let entries = cells[1].get().div_ceil(ENTRIES_PER_FRAME);
        cells[0].publish(0);
        cells[1..4].iter().for_each(|cell| cell.set(0));
        self.budget
            .release(self.entries_at(segment), u64::from(entries) * PAGE);
        cells[4].set(self.head.segment_free.get());
        self.head.segment_free.set(segment + 1);
    }

    pub(super) fn entries_at(&self, segment: u32) -> u64 {
        self.base + self.map.frame_table + u64::from(segment * SEGMENT_FRAMES) * ENTRY
    }

    pub(super) fn list_segment(&self, segment: u32, frames: u32) {
        let (cells, list) = (self.segment(segment), &self.head.available[frames as usize]);
        let first = list.get();
        cells[4].set(first);
        cells[5].set(0);
        if first != 0 {
            self.segment(first - 1)[5].set(segment + 1);
        }
        list.set(segment + 1);
    }

    pub(super) fn unlist_segment(&self, segment: u32, frames: u32) {
        let cells = self.segment(segment);
        let (next, prev) = (cells[4].get(), cells[5].get());
        match prev {
            0 => self.head.available[frames as usize].set(next),
            _ => self.segment(prev - 1)[4].set(next),
        }
        if next != 0 {
            self.segment(next - 1)[5].set(prev);
        }
    }

    pub(super) fn has_run(&self, segment: u32) -> bool {
        let cells = self.segment(segment);
        cells[3].get() != 0 || cells[1].get() < SEGMENT_FRAMES / cells[0].get()
    }
}
