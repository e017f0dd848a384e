//! Runs: taken from segments, their frames committed from the start, and given back.

use super::{ENTRIES_PER_FRAME, Frames, PAGE, Run, RunKind};
use crate::arena::{ENTRY, Full, MAX_RUN};

impl<'a> Frames<'a> {
    /// A free run of `frames` frames; its entry says how many are committed. It is `Reserved` until tagged.
    pub fn take_run(&self, frames: u32) -> Result<Run, Full> {
        debug_assert!((1..=MAX_RUN).contains(&frames));
        if self.head.reserve[frames as usize].get() != 0 && self.may_take_kept(frames) {
            self.budget.allow_committed()?;
            return Ok(self.pop_reserve(frames));
        }
        self.new_run(frames)
    }

    /// The same with no frame committed.
    pub(super) fn new_run(&self, frames: u32) -> Result<Run, Full> {
        let listed = self.head.available[frames as usize].get();
        let segment = if listed != 0 {
            listed - 1
        } else {
            self.open_segment(frames)?
        };
        let cells = self.segment(segment);
        let number = match cells[3].get() {
            0 => self.fresh_run(segment)?,
            free => {
                cells[3].set(self.entry(self.run(segment, free - 1))[3].get());
                free - 1
            }
        };
        cells[2].add(1);
        if !self.has_run(segment) {
            self.unlist_segment(segment, frames);
        }
        let run = self.run(segment, number);
        self.entry(run)[2].set(0);
        Ok(run)
    }

    pub(super) fn fresh_run(&self, segment: u32) -> Result<u32, Full> {
        let cells = self.segment(segment);
        let number = cells[1].get();
        if number.is_multiple_of(ENTRIES_PER_FRAME) {
            let at = self.entries_at(segment) + u64::from(number) * ENTRY;
            if let Err(full) = self.budget.commit(at, PAGE) {
                if cells[2].get() == 0 {
                    self.close_segment(segment);
                }
                return Err(full);
            }
        }
        self.entry(self.run(segment, number))[0].set(0);
        cells[1].publish(number + 1);
        Ok(number)
    }

    /// Frames of a run that are committed, from its first.
    #[inline(always)]
    pub fn committed(&self, run: Run) -> u32 {
        self.entry(run)[2].get() & 0xff
    }

    /// Commit a run's frames up to `frames` in all.
    pub fn commit(&self, run: Run, frames: u32) -> Result<(), Full> {
        let have = self.committed(run);
        if frames > have {
            let at = self.file_offset(run.offset() + u64::from(have) * PAGE);
            let len = u64::from(frames - have) * PAGE;
            self.budget
                .commit(at, len)
                .or_else(|full| self.exchange(frames - have, at, len).ok_or(full))?;
            self.entry(run)[2].add(frames - have);
        }
        Ok(())
    }

    /// Give back a run's frames beyond the first `frames`.
    pub fn decommit(&self, run: Run, frames: u32) {
        let have = self.committed(run);
        if frames < have {
            self.entry(run)[2].sub(have - frames);
            let at = self.file_offset(run.offset() + u64::from(frames) * PAGE);
            self.budget.release(at, u64::from(have - frames) * PAGE);
        }
    }

    /// A run that nothing uses any more.
    pub fn free_run(&self, run: Run) {
        let committed = self.committed(run);
        let few = self.head.reserve_frames.get() + committed <= self.reserve;
        if committed > 0 && (few || self.is_wanting()) {
            self.keep(run, committed);
        } else {
            self.set_tag(run, RunKind::Free, 0, 0);
            self.decommit(run, 0);
            self.return_run(run);
        }
    }

    /// Put an uncommitted run back into its segment.
    pub(super) fn return_run(&self, run: Run) {
        let (segment, cells) = (run.segment(), self.segment(run.segment()));
        if !self.has_run(segment) {
            self.list_segment(segment, run.frames);
        }
        let entry = self.entry(run);
        entry[2].set(0);
        entry[3].set(cells[3].get());
        cells[3].set(run.number + 1);
        cells[2].sub(1);
        if cells[2].get() == 0 {
            self.close_segment(segment);
        }
    }
}
