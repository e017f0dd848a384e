//! Changes that a SAN has acknowledged and need not have made durable: kept, so that they can be carried out again.
//!
//! A flush lets go of what was acknowledged before it was sent. Bounded in bytes: beyond that the oldest are forgotten,
//! and the next flush after a loss must fail, as nobody can tell whether the SAN still has them.

use std::collections::VecDeque;

use super::backing::Change;

/// Bytes beyond which a flush is due that nobody asked for, and beyond which changes are forgotten.
const DUE: usize = 16 << 20;
const MOST: usize = 64 << 20;
/// What keeping a change takes beside its bytes.
const OWN: usize = 128;

/// Place in the order of acknowledgement.
pub type Mark = u64;

#[derive(Default)]
pub struct Unflushed {
    /// Oldest first, with their marks, which have no gaps.
    kept: VecDeque<Change>,
    bytes: usize,
    /// Changes that were ever noted.
    noted: Mark,
    /// Those up to this one were forgotten, and not flushed.
    forgotten: Option<Mark>,
    flushing: bool,
    /// A session ended, and what was forgotten with it.
    failed: bool,
}

fn cost(change: &Change) -> usize {
    match change {
        Change::Write { data, .. } => data.len() + OWN,
        _ => OWN,
    }
}

impl Unflushed {
    /// A change was acknowledged.
    pub fn note(&mut self, change: Change) {
        self.noted += 1;
        self.bytes += cost(&change);
        self.kept.push_back(change);
        while self.bytes > MOST {
            self.forgotten = Some(self.first());
            self.drop_first();
        }
    }

    /// The mark of the oldest that is kept.
    fn first(&self) -> Mark {
        self.noted - self.kept.len() as Mark + 1
    }

    fn drop_first(&mut self) {
        if let Some(change) = self.kept.pop_front() {
            self.bytes -= cost(&change);
        }
    }

    /// What a flush that is sent now covers.
    pub fn mark(&self) -> Mark {
        self.noted
    }

    /// Whether a flush is to be sent now although nobody asks; it then counts as sent.
    pub fn is_due(&mut self) -> bool {
        let due = self.bytes > DUE && !self.flushing;
        self.flushing |= due;
        due
    }

    /// A flush that nobody asked for is over.
    pub fn asked(&mut self) {
        self.flushing = false;
    }

    /// A flush was carried out that covers what was acknowledged up to a mark.
    pub fn flushed(&mut self, mark: Mark) {
        while !self.kept.is_empty() && self.first() <= mark {
            self.drop_first();
        }
        self.forgotten = self.forgotten.filter(|forgotten| *forgotten > mark);
    }

    /// The session in which all this was acknowledged has ended.
    pub fn lost(&mut self) {
        self.failed |= self.forgotten.take().is_some();
    }

    /// Something cannot be carried out again.
    pub fn fail(&mut self) {
        self.failed = true;
    }

    /// Whether a flush must fail, as what it should cover may be gone. Said once.
    pub fn take_failure(&mut self) -> bool {
        std::mem::take(&mut self.failed)
    }

    /// What must be carried out again after the first `done` of it.
    pub fn again(&self, done: usize) -> Option<Change> {
        self.kept.get(done).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn write(offset: u64, length: usize) -> Change {
        Change::Write {
            offset,
            data: Arc::new(vec![1; length]),
            fua: false,
        }
    }

    fn offsets(unflushed: &Unflushed) -> Vec<u64> {
        let all = (0..).map_while(|done| unflushed.again(done));
        all.map(|change| match change {
            Change::Write { offset, .. } => offset,
            _ => u64::MAX,
        })
        .collect()
    }

    #[test]
    fn a_flush_lets_go_of_what_was_acknowledged_before_it_was_sent() {
        let mut unflushed = Unflushed::default();
        unflushed.note(write(1, 10));
        let mark = unflushed.mark();
        unflushed.note(write(2, 10));
        unflushed.flushed(mark);
        assert_eq!(offsets(&unflushed), [2]);
        unflushed.lost();
        assert!(!unflushed.take_failure());
        unflushed.flushed(unflushed.mark());
        assert_eq!(offsets(&unflushed), []);
    }

    #[test]
    fn what_is_forgotten_fails_one_flush_after_a_loss_and_none_without() {
        let mut unflushed = Unflushed::default();
        for at in 0..70 {
            unflushed.note(write(at, 1 << 20));
        }
        assert!(unflushed.is_due() && !unflushed.is_due());
        assert!(unflushed.again(0).is_some() && offsets(&unflushed)[0] > 5);
        unflushed.flushed(unflushed.mark());
        unflushed.lost();
        assert!(!unflushed.take_failure());
        for at in 0..70 {
            unflushed.note(write(at, 1 << 20));
        }
        unflushed.lost();
        assert!(unflushed.take_failure() && !unflushed.take_failure());
    }
}
