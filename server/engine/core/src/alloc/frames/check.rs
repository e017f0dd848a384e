//! The invariants of frames, and the size of their tables.

use super::{ENTRIES_PER_FRAME, Frames, PAGE, RunKind};

impl<'a> Frames<'a> {
    /// Violations of what this file promises, for `check`; `committed` frames are added up into the second value.
    pub fn check(&self, faults: &mut Vec<String>) -> u64 {
        let mut total = 0;
        let mut reserved = 0;
        for segment in 0..self.segment_count() {
            let cells = self.segment(segment);
            let mut live = 0;
            for number in 0..cells[1].get() {
                let run = self.run(segment, number);
                let (kind, committed) = (self.tag(run).0, self.committed(run));
                total += u64::from(committed);
                live += u32::from(kind != RunKind::Free);
                if kind == RunKind::Reserved {
                    reserved += committed;
                }
                if kind == RunKind::Free && committed != 0 || committed > run.frames {
                    faults.push(format!(
                        "{run:?} is {kind:?} with {committed} frames committed"
                    ));
                }
            }
            if live != cells[2].get() {
                faults.push(format!(
                    "segment {segment} has {live} runs in use and counts {}",
                    cells[2].get()
                ));
            }
            let free = self.count_free_runs(segment);
            if free != Some(cells[1].get() - live) {
                faults.push(format!(
                    "segment {segment}: its free list has {free:?} runs of {}",
                    cells[1].get() - live
                ));
            }
        }
        if reserved != self.head.reserve_frames.get() {
            faults.push(format!(
                "reserve is {reserved} frames and counts {}",
                self.head.reserve_frames.get()
            ));
        }
        total
    }

    fn count_free_runs(&self, segment: u32) -> Option<u32> {
        let cells = self.segment(segment);
        let (mut at, mut count) = (cells[3].get(), 0);
        while at != 0 {
            count += 1;
            if at > cells[1].get() || count > cells[1].get() {
                return None;
            }
            at = self.entry(self.run(segment, at - 1))[3].get();
        }
        Some(count)
    }

    /// Bytes of committed frame-table pages, and of the segment table.
    pub fn table_bytes(&self) -> u64 {
        let pages = |s| u64::from(self.fresh(s).div_ceil(ENTRIES_PER_FRAME)) * PAGE;
        self.segments.committed() + (0..self.segment_count()).map(pages).sum::<u64>()
    }
}
