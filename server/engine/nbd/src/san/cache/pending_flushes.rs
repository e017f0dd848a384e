//! Pages that changed while the cache was away: what must be flushed before it is read again.

use std::collections::BTreeMap;
use std::ops::Range;

/// Most ranges remembered.
const MOST: usize = 4096;

#[derive(Debug, Default)]
pub struct Owed {
    /// Ends by start; none touch.
    ranges: BTreeMap<u64, u64>,
    everything: bool,
}

impl Owed {
    /// Remember a range; beyond a bound all is owed.
    pub fn add(&mut self, range: Range<u64>) {
        if self.everything || range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        while let Some((&s, &e)) = self.ranges.range(..=end).next_back() {
            if e < start {
                break;
            }
            (start, end) = (start.min(s), end.max(e));
            self.ranges.remove(&s);
        }
        self.ranges.insert(start, end);
        if self.ranges.len() > MOST {
            self.ranges.clear();
            self.everything = true;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty() && !self.everything
    }

    pub fn is_everything(&self) -> bool {
        self.everything
    }

    /// Take a range out, to flush it now.
    pub fn pop(&mut self) -> Option<Range<u64>> {
        let (start, end) = self.ranges.pop_first()?;
        Some(start..end)
    }

    pub fn clear(&mut self) {
        *self = Owed::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_are_one() {
        let mut owed = Owed::default();
        for range in [5..6, 1..2, 3..4, 2..3, 20..30, 10..25, 22..23] {
            owed.add(range);
        }
        let all: Vec<_> = owed.ranges.iter().map(|(s, e)| *s..*e).collect();
        assert_eq!(all, [1..4, 5..6, 10..30]);
        owed.add(0..100);
        assert_eq!(owed.pop(), Some(0..100));
        assert!(owed.is_empty());
    }

    #[test]
    fn beyond_the_bound_everything_is_owed() {
        let mut owed = Owed::default();
        (0..=MOST as u64).for_each(|page| owed.add(2 * page..2 * page + 1));
        assert!(owed.is_everything() && !owed.is_empty() && owed.pop().is_none());
    }
}
