//! Free runs that stay committed: a few for the next put and, where promises are backed, as many as are promised.

use std::sync::atomic::{Ordering, fence};

use super::{Frames, PAGE, Run, RunKind};
use crate::arena::{
    Full, MAX_RUN, held_backing, is_backed, promised_to, required_backing, required_backing_after,
    with_index,
};

/// Frames committed at once to be kept behind promises; what is committed beyond them is less than that.
pub const RESERVE_RUN: u32 = 32;

impl<'a> Frames<'a> {
    /// Have a free run keep its frames.
    pub(super) fn keep(&self, run: Run, committed: u32) {
        self.set_tag(run, RunKind::Reserved, 0, 0);
        let (entry, kept) = (self.entry(run), &self.head.reserve[run.frames as usize]);
        entry[2].set(committed);
        entry[3].set(kept.get());
        kept.set(run.first + 1);
        self.head.reserve_frames.add(committed);
    }

    pub(super) fn pop_reserve(&self, frames: u32) -> Run {
        let kept = &self.head.reserve[frames as usize];
        let run = self.run_of(kept.get() - 1);
        kept.set(self.entry(run)[3].get());
        self.head.reserve_frames.sub(self.committed(run));
        run
    }

    /// Give the reserve back to the system but for what is promised; the frames freed.
    pub fn trim_reserve(&self) -> u32 {
        let pool = self.budget.pool();
        let own = pool.is_some_and(|pool| promised_to(self.arena, pool) > 0);
        let owed = required_backing(self.arena);
        // Beside what is required_backing, room for its index is kept, for the pools that it is promised to.
        self.give_back(u32::MAX, if own { owed } else { with_index(owed) })
    }

    /// Give back at most so many kept frames as long as `floor` bytes are kept in all; the frames freed.
    fn give_back(&self, most: u32, floor: u64) -> u32 {
        let mut given = 0;
        for frames in (1..=MAX_RUN).rev() {
            let list = &self.head.reserve[frames as usize];
            while list.get() != 0 && given < most {
                let run = self.run_of(list.get() - 1);
                let committed = self.committed(run);
                let some = committed.min(most - given);
                if !self.discount(some, floor) {
                    return given;
                }
                if some == committed {
                    list.set(self.entry(run)[3].get());
                    self.set_tag(run, RunKind::Free, 0, 0);
                    self.decommit(run, 0);
                    self.return_run(run);
                } else {
                    self.decommit(run, committed - some);
                }
                given += some;
            }
        }
        given
    }

    /// Take frames from the count of those kept, if no fewer than `floor` bytes remain.
    fn discount(&self, frames: u32, floor: u64) -> bool {
        self.head.reserve_frames.sub(frames);
        fence(Ordering::SeqCst);
        if floor == 0 || held_backing(self.arena) >= floor {
            return true;
        }
        self.head.reserve_frames.add(frames);
        false
    }

    /// Whether more frames should be kept than are.
    pub(super) fn is_wanting(&self) -> bool {
        is_backed(self.arena) && held_backing(self.arena) < with_index(required_backing(self.arena))
    }

    /// Whether the last frame that is free to go has gone: whoever gives up `frames` of a pool must keep them.
    pub fn is_short(&self, frames: u32) -> bool {
        is_backed(self.arena)
            && held_backing(self.arena)
                < required_backing(self.arena).saturating_add(u64::from(frames) * PAGE)
    }

    /// Whether the budget's pool may have a kept run: it, or what is left after it is promised.
    pub(super) fn may_take_kept(&self, frames: u32) -> bool {
        if !is_backed(self.arena) {
            return true;
        }
        let taken = u64::from(frames) * PAGE;
        let pool = self.budget.pool();
        let own = pool.is_some_and(|pool| promised_to(self.arena, pool) > 0);
        let left = required_backing_after(self.arena, pool, taken);
        let left = if own { left } else { with_index(left) };
        held_backing(self.arena) >= left.saturating_add(taken)
    }

    /// Commit frames in the place of kept ones that the budget's pool was promised.
    pub(super) fn exchange(&self, frames: u32, at: u64, len: u64) -> Option<()> {
        let enough = self.head.reserve_frames.get() >= frames && self.lend(frames) == frames;
        enough.then(|| self.budget.commit(at, len).ok()).flatten()
    }

    /// Give back kept frames that the budget's pool was promised, for it to commit as many elsewhere; how many.
    pub fn lend(&self, frames: u32) -> u32 {
        let pool = self.budget.pool();
        if !is_backed(self.arena) || pool.is_none_or(|pool| promised_to(self.arena, pool) == 0) {
            return 0;
        }
        self.give_back(
            frames,
            required_backing_after(self.arena, pool, u64::from(frames) * PAGE),
        )
    }

    /// As many frames were committed anew as need be kept no more.
    pub fn balance(&self, frames: u32) {
        if is_backed(self.arena) {
            self.give_back(frames, with_index(required_backing(self.arena)));
        }
    }

    /// Commit free frames while more are promised than kept, at most so many runs; whether there is more to do. The budget
    /// knows no limit: what is promised is counted already.
    pub fn stock(&self, runs: u32) -> Result<bool, Full> {
        for _ in 0..runs {
            if !self.is_wanting() {
                return Ok(false);
            }
            let run = self.new_run(RESERVE_RUN)?;
            self.commit(run, RESERVE_RUN)
                .inspect_err(|_| self.free_run(run))?;
            self.keep(run, RESERVE_RUN);
        }
        Ok(true)
    }

    /// Have all committed frames of a segment mapped, and so locked where this process locks its memory.
    pub fn map_segment(&self, segment: u32) -> Result<(), Full> {
        if self.run_length(segment) == 0 {
            return Ok(());
        }
        for number in 0..self.fresh(segment) {
            let run = self.run(segment, number);
            let (at, committed) = (self.file_offset(run.offset()), self.committed(run));
            if committed > 0 {
                self.arena
                    .map()
                    .populate_again(at, u64::from(committed) * PAGE)?;
            }
        }
        Ok(())
    }
}
