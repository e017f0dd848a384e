//! Whether the cache pays: is it faster than the SAN, does it hit, does it thrash?
//!
//! Latencies are compared between reads of like length, as moving means. All here is advice: any answer is safe.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Reads up to 16 KiB, up to 64 KiB, longer ones.
const CLASSES: usize = 3;
/// Samples before a mean is believed.
const ENOUGH: u32 = 32;
const ENOUGH_SAN: u32 = 4;
/// Cache reads in a row that were late: it does not answer.
const LATE: u32 = 4;
/// The bound never goes below this: a thread may be kept from running for so long.
const LEAST_BOUND: Duration = Duration::from_millis(2);
/// Pages after which the admission is thought over.
const TERM: u32 = 1024;
/// At least one in so many misses is put.
const MOST_SPARING: u32 = 8;

#[derive(Clone, Copy, Default)]
struct Mean {
    micros: f64,
    samples: u32,
}

impl Mean {
    fn note(&mut self, took: Duration) {
        self.samples = self.samples.saturating_add(1);
        let weight = (1.0 / f64::from(self.samples)).max(1.0 / 32.0);
        self.micros += weight * (took.as_secs_f64() * 1e6 - self.micros);
    }
}

pub struct Judge {
    most: Duration,
    state: Mutex<State>,
}

struct State {
    cache: [Mean; CLASSES],
    san: [Mean; CLASSES],
    late: u32,
    /// When the last of them was noticed.
    last_late: Option<Instant>,
    /// Share of pages asked for that were hits, lately.
    hits: f64,
    asked: u32,
    /// This term: hits, and misses of pages that had been cached.
    term_hits: u32,
    term_lost: u32,
    /// One in so many misses is put.
    sparing: u32,
    turn: u32,
}

fn class(length: usize) -> usize {
    match length {
        0..=16384 => 0,
        16385..=65536 => 1,
        _ => 2,
    }
}

impl Judge {
    /// No cache read may take longer than `most`.
    pub fn new(most: Duration) -> Judge {
        let state = State {
            cache: Default::default(),
            san: Default::default(),
            late: 0,
            last_late: None,
            hits: 1.0,
            asked: 0,
            term_hits: 0,
            term_lost: 0,
            sparing: 1,
            turn: 0,
        };
        Judge {
            most,
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the cache is waited for at most.
    pub fn most(&self) -> Duration {
        self.most
    }

    /// How long a cache read may take: twice what the SAN takes.
    pub fn bound(&self, length: usize) -> Duration {
        let san = self.state().san[class(length)];
        if san.samples < ENOUGH_SAN {
            return self.most;
        }
        let twice = Duration::from_secs_f64(2e-6 * san.micros);
        twice.max(LEAST_BOUND).min(self.most)
    }

    pub fn san_took(&self, length: usize, took: Duration) {
        self.state().san[class(length)].note(took);
    }

    /// A cache read was answered; whether the cache should rest.
    pub fn cache_took(&self, length: usize, took: Duration) -> bool {
        let mut state = self.state();
        state.late = 0;
        state.cache[class(length)].note(took);
        state.slow()
    }

    /// A cache read was not answered within `bound`; whether the cache should rest. Those that were under way when one
    /// was late count with it, as one.
    pub fn cache_late(&self, length: usize, bound: Duration, begun: Instant) -> bool {
        let mut state = self.state();
        if state.last_late.is_some_and(|noticed| begun <= noticed) {
            return false;
        }
        state.last_late = Some(Instant::now());
        state.late += 1;
        state.cache[class(length)].note(2 * bound);
        state.late >= LATE || state.slow()
    }

    /// Begin anew with a cache that was away or at rest. Whether probes that took `mean` recommend it.
    pub fn welcome(&self, mean: Duration) -> bool {
        let mut state = self.state();
        let san = state.san[0];
        let good = san.samples < ENOUGH_SAN || mean.as_secs_f64() * 1e6 < 0.8 * san.micros;
        if good {
            (state.cache, state.late, state.asked) = (Default::default(), 0, 0);
            state.hits = 1.0;
        }
        good
    }

    /// Of pages asked for, how many were hits, and how many misses had been cached before.
    pub fn looked_up(&self, hits: u32, misses: u32, lost: u32) {
        let mut state = self.state();
        let pages = hits + misses;
        state.asked = state.asked.saturating_add(pages);
        let weight = (f64::from(pages) / 512.0).min(1.0);
        state.hits += weight * (f64::from(hits) / f64::from(pages.max(1)) - state.hits);
        state.term_hits += hits;
        state.term_lost += lost;
        if state.term_hits + state.term_lost >= TERM {
            state.sparing = match state.term_lost > state.term_hits {
                true => (state.sparing * 2).min(MOST_SPARING),
                false => (state.sparing / 2).max(1),
            };
            (state.term_hits, state.term_lost) = (0, 0);
        }
    }

    /// Hits are so rare that the SAN is better asked at once, beside the cache.
    pub fn race(&self) -> bool {
        let state = self.state();
        state.asked > 256 && state.hits < 0.06
    }

    /// Whether a miss should be put: while pages are lost before they are used again, only some, so that these stay.
    pub fn admit(&self) -> bool {
        let mut state = self.state();
        state.turn = state.turn.wrapping_add(1);
        state.turn.is_multiple_of(state.sparing)
    }

    /// Mean microseconds of short reads: the cache's, the SAN's.
    pub fn means(&self) -> (u64, u64) {
        let state = self.state();
        (state.cache[0].micros as u64, state.san[0].micros as u64)
    }
}

impl State {
    fn slow(&self) -> bool {
        let pairs = self.cache.iter().zip(&self.san);
        let known =
            |(cache, san): &(&Mean, &Mean)| cache.samples >= ENOUGH && san.samples >= ENOUGH_SAN;
        pairs
            .filter(known)
            .any(|(cache, san)| cache.micros > san.micros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn micros(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    fn judge() -> Judge {
        let judge = Judge::new(micros(50_000));
        (0..10).for_each(|_| judge.san_took(4096, micros(1000)));
        judge
    }

    #[test]
    fn a_cache_slower_than_the_san_is_to_rest_and_a_faster_one_is_not() {
        let judge = judge();
        assert!((0..1000).all(|_| !judge.cache_took(4096, micros(900))));
        assert!((0..1000).any(|_| judge.cache_took(4096, micros(1100))));
        assert!(!judge.welcome(micros(900)) && judge.welcome(micros(500)));
        assert!(
            (0..31).all(|_| !judge.cache_took(4096, micros(5000))),
            "not enough is known"
        );
    }

    #[test]
    fn lengths_are_compared_with_their_like() {
        let judge = judge();
        assert!((0..1000).all(|_| !judge.cache_took(256 << 10, micros(3000))));
    }

    #[test]
    fn the_bound_follows_the_san_and_a_cache_that_does_not_answer_is_to_rest() {
        let judge = judge();
        assert_eq!(judge.bound(4096), LEAST_BOUND);
        assert_eq!(judge.bound(1 << 20), micros(50_000));
        let late: Vec<bool> = (0..LATE)
            .map(|_| judge.cache_late(4096, micros(2000), Instant::now()))
            .collect();
        assert_eq!(late, [false, false, false, true]);
        let before = Instant::now();
        let judge = self::judge();
        let together = (0..100).any(|_| judge.cache_late(4096, micros(2000), before));
        assert!(!together, "those under way together count once");
    }

    #[test]
    fn pages_that_are_lost_before_they_are_used_make_puts_rare_and_hits_make_them_common() {
        let judge = judge();
        let admitted = || (0..80).filter(|_| judge.admit()).count();
        assert_eq!(admitted(), 80);
        (0..10).for_each(|_| judge.looked_up(0, 1024, 1024));
        assert_eq!(admitted(), 10);
        assert!(judge.race());
        (0..10).for_each(|_| judge.looked_up(1024, 0, 0));
        assert_eq!(admitted(), 80);
        assert!(!judge.race());
    }
}
