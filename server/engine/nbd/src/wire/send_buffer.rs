//! Bytes to be sent to a client: one reusable buffer, of which some ranges are skipped.
//!
//! The buffer is always initialised up to its length, so room for a page costs no zeroing once it has been used.

use std::io::IoSlice;
use std::ops::Range;

/// What an empty buffer keeps, in bytes.
const KEEP: usize = 2 << 20;

#[derive(Default)]
pub struct SendBuffer {
    bytes: Vec<u8>,
    end: usize,
    /// Stretches that are not sent, in ascending order.
    gaps: Vec<Range<usize>>,
    /// How far it is sent, gaps included.
    sent: usize,
}

/// A state of a buffer to go back to.
#[derive(Clone, Copy)]
pub struct Mark {
    end: usize,
    gaps: usize,
}

impl SendBuffer {
    /// Bytes that were added, gaps included.
    pub fn len(&self) -> usize {
        self.end
    }

    /// Bytes of memory that it keeps.
    pub fn capacity(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.sent == self.end
    }

    pub fn mark(&self) -> Mark {
        Mark {
            end: self.end,
            gaps: self.gaps.len(),
        }
    }

    pub fn back_to(&mut self, mark: Mark) {
        self.end = mark.end;
        self.gaps.truncate(mark.gaps);
    }

    /// Where `count` more bytes are, whatever is in them.
    pub fn grow(&mut self, count: usize) -> usize {
        let start = self.end;
        self.end += count;
        if self.bytes.len() < self.end {
            self.bytes.resize(self.end.next_multiple_of(64 << 10), 0);
        }
        start
    }

    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let start = self.grow(bytes.len());
        self.set(start, bytes);
        start
    }

    pub fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub fn at(&mut self, range: Range<usize>) -> &mut [u8] {
        &mut self.bytes[range]
    }

    /// Leave a stretch out; none may come before those left out already.
    pub fn skip(&mut self, range: Range<usize>) {
        debug_assert!(self.gaps.last().is_none_or(|gap| gap.end <= range.start));
        if !range.is_empty() {
            self.gaps.push(range);
        }
    }

    /// What is to be sent next, in as many slices as there is room for; their number.
    pub fn slices<'a>(&'a self, into: &mut [IoSlice<'a>]) -> usize {
        let (mut count, mut at) = (0, self.sent);
        let gaps = self.gaps.iter().filter(|gap| gap.end > self.sent).cloned();
        for gap in gaps.chain(std::iter::once(self.end..self.end)) {
            if count == into.len() {
                break;
            }
            if at < gap.start {
                into[count] = IoSlice::new(&self.bytes[at..gap.start]);
                count += 1;
            }
            at = at.max(gap.end);
        }
        count
    }

    /// `count` bytes of the slices were sent.
    pub fn advance(&mut self, mut count: usize) {
        let from = self.sent;
        for gap in self.gaps.iter().filter(|gap| gap.end > from) {
            let room = gap.start - self.sent;
            if count < room {
                break;
            }
            count -= room;
            self.sent = gap.end;
        }
        self.sent += count;
        debug_assert!(self.sent <= self.end);
    }

    /// Empty it, and give back what a large reply took.
    pub fn clear(&mut self) {
        (self.end, self.sent) = (0, 0);
        self.gaps.clear();
        if self.bytes.len() > KEEP {
            self.bytes = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(out: &mut SendBuffer, step: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while !out.is_empty() {
            let mut slices = [IoSlice::new(&[]); 2];
            let count = out.slices(&mut slices);
            assert!(count > 0);
            let next: Vec<u8> = slices[..count].iter().flat_map(|s| s.to_vec()).collect();
            let next = &next[..step.min(next.len())];
            all.extend_from_slice(next);
            let count = next.len();
            out.advance(count);
        }
        all
    }

    #[test]
    fn gaps_are_not_sent_however_the_rest_is_cut() {
        for step in 1..12 {
            let mut out = SendBuffer::default();
            out.push(b"abcdefghij");
            out.skip(0..2);
            out.skip(4..5);
            out.skip(5..6);
            out.skip(9..10);
            assert_eq!(sent(&mut out, step), b"cdghi", "{step} at a time");
        }
    }

    #[test]
    fn what_was_taken_back_is_not_sent() {
        let mut out = SendBuffer::default();
        out.push(b"abc");
        let mark = out.mark();
        out.push(b"defg");
        out.skip(4..6);
        out.back_to(mark);
        out.push(b"xyz");
        assert_eq!(sent(&mut out, 100), b"abcxyz");
    }
}
