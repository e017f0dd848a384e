//! Rebuilding: derives which runs are free from the runs in use.

use super::{ENTRIES_PER_FRAME, Frames, PAGE, Run, RunKind};
use crate::arena::{ENTRY, MAX_RUN, SEGMENT_FRAMES};

impl<'a> Frames<'a> {
    /// Forget which runs are free, ahead of `adopt` or `discard` for every run. Says how many segments are believable.
    pub fn begin_rebuild(&self) -> u32 {
        self.head
            .available
            .iter()
            .chain(&self.head.reserve)
            .for_each(|list| list.set(0));
        self.head.reserve_frames.set(0);
        self.head.segment_free.set(0);
        let known = (self.segments.committed() / ENTRY).min(u64::from(self.map.segments));
        let count = self.head.segments.get().min(known as u32);
        self.head.segments.set(count);
        for segment in 0..count {
            let cells = self.segment(segment);
            if cells[0].get() > MAX_RUN {
                cells[0].set(0);
            }
            let runs = SEGMENT_FRAMES.checked_div(cells[0].get()).unwrap_or(0);
            if cells[1].get() > runs {
                cells[1].set(runs);
            }
            (2..6).for_each(|i| cells[i].set(0));
        }
        self.segments.punch_beyond();
        count
    }

    /// Rebuilding: the run is used by what its entry says, with this many frames committed.
    pub fn adopt(&self, run: Run, committed: u32) {
        let entry = self.entry(run);
        entry[2].set(entry[2].get() & !0xff | committed);
        self.segment(run.segment())[2].add(1);
    }

    /// Rebuilding: keep a run that was kept, where frames are wanted; whether it is.
    pub fn adopt_kept(&self, run: Run) -> bool {
        let (word, committed) = (self.entry(run)[0].get(), self.committed(run));
        let was_kept = word >> 28 == RunKind::Reserved as u32;
        if !was_kept || !(1..=run.frames).contains(&committed) || !self.is_wanting() {
            return false;
        }
        self.adopt(run, committed);
        self.keep(run, committed);
        true
    }

    /// Rebuilding: nothing uses the run.
    pub fn discard(&self, run: Run) {
        self.set_tag(run, RunKind::Free, 0, 0);
        let (cells, entry) = (self.segment(run.segment()), self.entry(run));
        entry[2].set(0);
        entry[3].set(cells[3].get());
        cells[3].set(run.number + 1);
    }

    /// Rebuilding: list the segments and punch out what nothing uses. Returns the bytes that stay committed.
    pub fn end_rebuild(&self) -> u64 {
        let mut kept = self.segments.committed();
        for segment in 0..self.segment_count() {
            kept += self.sweep_segment(segment);
        }
        let used = u64::from(self.segment_count() * SEGMENT_FRAMES);
        let all = u64::from(self.map.segments * SEGMENT_FRAMES);
        self.punch_frames(used, all);
        let (from, to) = (used * ENTRY, all * ENTRY);
        self.arena
            .map()
            .punch(self.base + self.map.frame_table + from, to - from);
        kept
    }

    fn sweep_segment(&self, segment: u32) -> u64 {
        let cells = self.segment(segment);
        let first = u64::from(segment * SEGMENT_FRAMES);
        let end = first + u64::from(SEGMENT_FRAMES);
        if cells[2].get() == 0 {
            cells[0].publish(0);
            cells[1..4].iter().for_each(|cell| cell.set(0));
            cells[4].set(self.head.segment_free.get());
            self.head.segment_free.set(segment + 1);
        } else if self.has_run(segment) {
            self.list_segment(segment, cells[0].get());
        }
        let (mut kept, mut hole) = (0, first);
        for number in 0..cells[1].get() {
            let run = self.run(segment, number);
            let committed = u64::from(self.committed(run));
            if committed > 0 {
                self.punch_frames(hole, u64::from(run.first));
                hole = u64::from(run.first) + committed;
                kept += committed * PAGE;
            }
        }
        self.punch_frames(hole, end);
        let entries = u64::from(cells[1].get().div_ceil(ENTRIES_PER_FRAME)) * PAGE;
        let room = u64::from(SEGMENT_FRAMES) * ENTRY;
        self.arena
            .map()
            .punch(self.entries_at(segment) + entries, room - entries);
        kept + entries
    }

    fn punch_frames(&self, from: u64, to: u64) {
        if to > from {
            self.arena
                .map()
                .punch(self.file_offset(from * PAGE), (to - from) * PAGE);
        }
    }
}
