//! Which pages of the volume may be in the cache: those that were put or found there in this generation.
//!
//! Where only this gateway puts, a page that was not seen is surely not there, and neither asked for nor flushed. A page
//! is marked before it is put, under its stripe's lock, and stays marked: a miss proves nothing about a put that came
//! after it. After a warm start every page counts as seen.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

pub struct Seen {
    words: Vec<AtomicU64>,
}

impl Seen {
    pub fn new(pages: u64, all: bool) -> Seen {
        let word = || AtomicU64::new(if all { u64::MAX } else { 0 });
        let words = (0..pages.div_ceil(64)).map(|_| word()).collect();
        Seen { words }
    }

    fn bits(&self, pages: &Range<u64>) -> impl Iterator<Item = (&AtomicU64, u64)> {
        let end = pages.end.min(64 * self.words.len() as u64);
        let pages = if pages.start < end {
            pages.start..end
        } else {
            0..0
        };
        (pages.start / 64..pages.end.div_ceil(64)).map(move |number| {
            let first = pages.start.max(64 * number) % 64;
            let count = pages.end.min(64 * number + 64) - (64 * number + first);
            let mask = u64::MAX >> (64 - count);
            (&self.words[number as usize], mask << first)
        })
    }

    pub fn any(&self, pages: &Range<u64>) -> bool {
        self.bits(pages)
            .any(|(word, mask)| word.load(Ordering::SeqCst) & mask != 0)
    }

    pub fn count(&self, pages: &Range<u64>) -> u32 {
        let bits = self.bits(pages);
        bits.map(|(word, mask)| (word.load(Ordering::Relaxed) & mask).count_ones())
            .sum()
    }

    pub fn add(&self, pages: &Range<u64>) {
        self.bits(pages).for_each(|(word, mask)| {
            word.fetch_or(mask, Ordering::SeqCst);
        });
    }

    pub fn clear(&self) {
        self.words
            .iter()
            .for_each(|word| word.store(0, Ordering::SeqCst));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_across_words_are_marked_to_the_page() {
        let seen = Seen::new(300, false);
        seen.add(&(60..130));
        assert!(!seen.any(&(0..60)) && !seen.any(&(130..300)) && !seen.any(&(5..5)));
        assert!(seen.any(&(59..61)) && seen.any(&(129..200)) && !seen.any(&(1000..1001)));
        assert_eq!(seen.count(&(0..300)), 70);
        seen.clear();
        assert!(!seen.any(&(0..300)));
        assert!(Seen::new(300, true).any(&(299..300)));
    }
}
