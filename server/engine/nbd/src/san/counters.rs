//! What the gateway counts, for statistics and metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Bounds of the latency buckets double from this many microseconds on.
pub const FIRST_BUCKET: u64 = 16;
pub const BUCKETS: usize = 18;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        #[derive(Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)*
        }

        impl Counters {
            pub fn fields(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)*]
            }
        }
    };
}

counters! {
    reads, read_bytes, writes, written_bytes, trims, errors,
    /// Pages that reads found in the cache, in the read-ahead buffer, or had to fetch.
    hit_pages, ahead_pages, miss_pages,
    /// Commands and bytes that the SAN got, and reads that it was spared.
    san_reads, san_read_bytes, san_writes, san_reads_saved, san_bytes_saved,
    /// Times the connections to the SAN were lost.
    san_sessions_lost,
    /// Reads that did not ask the cache: it is away or at rest, the page was never put, a change was under way.
    bypass_away, bypass_unknown, bypass_changing,
    /// Cache reads that took too long and were answered by the SAN.
    late,
    /// Reads that asked both at once.
    raced,
    puts, put_pages, puts_refused, puts_dropped_full, puts_dropped_stale, puts_dropped_scan, puts_dropped_thrash,
    flushes, flushes_owed,
    /// Flushes that took longer than a change may be delayed.
    flushes_late,
    /// Sessions opened, lost, and laid to rest because the cache was slow.
    sessions, sessions_lost, rests,
    /// Times all that was cached was given up for a new generation.
    generations,
    readahead_issued, readahead_used, readahead_wasted,
}

#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How long things took, in buckets.
#[derive(Default)]
pub struct Histogram {
    buckets: [Counter; BUCKETS],
    count: Counter,
    micros: Counter,
}

impl Histogram {
    pub fn note(&self, took: Duration) {
        let micros = took.as_micros() as u64;
        let bucket = micros
            .div_ceil(FIRST_BUCKET)
            .max(1)
            .next_power_of_two()
            .ilog2() as usize;
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.add(1);
        }
        self.count.add(1);
        self.micros.add(micros);
    }

    /// The upper bounds in microseconds with how many took at most so long, the count, and the sum in microseconds.
    pub fn read(&self) -> (Vec<(u64, u64)>, u64, u64) {
        let mut below = 0;
        let bounds = (0..).map(|n| FIRST_BUCKET << n);
        let cumulative = bounds.zip(&self.buckets).map(|(bound, bucket)| {
            below += bucket.get();
            (bound, below)
        });
        (cumulative.collect(), self.count.get(), self.micros.get())
    }
}

/// How a gateway is doing.
#[derive(Clone, Debug)]
pub struct Status {
    pub counters: Vec<(&'static str, u64)>,
    /// Why the cache is not used; None: it is.
    pub cache_down: Option<String>,
    /// Why the SAN does not answer; None: it does, as far as is known.
    pub san_down: Option<String>,
    /// Mean microseconds of short reads, lately.
    pub cache_micros: u64,
    pub san_micros: u64,
    /// See [`Histogram::read`]: reads that the cache answered, and that the SAN did.
    pub hit_latency: (Vec<(u64, u64)>, u64, u64),
    pub miss_latency: (Vec<(u64, u64)>, u64, u64),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_up_to_its_bound_and_not_below() {
        let histogram = Histogram::default();
        for micros in [0, 16, 17, 33, 1 << 40] {
            histogram.note(Duration::from_micros(micros));
        }
        let (buckets, count, _) = histogram.read();
        assert_eq!(buckets[..4], [(16, 2), (32, 3), (64, 4), (128, 4)]);
        assert_eq!((buckets[BUCKETS - 1].1, count), (4, 5));
    }
}
