//! Limits on waiting for locks.
//!
//! Each attachment has a limit. A lock that was not released within it is *stuck* until this process gets it again;
//! meanwhile others wait for it only briefly, so callers do not pile up behind a frozen owner. A thread with better
//! things to do than wait (an event loop, a connection that retries by itself) can set a limit of its own.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

/// The wait for a stuck lock.
const BRIEF: Duration = Duration::from_millis(50);

thread_local! {
    static MOST: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// From now on this thread waits for no lock longer than this; `None` is as long as anybody.
pub fn waiting_at_most(limit: Option<Duration>) -> Option<Duration> {
    MOST.replace(limit)
}

/// Do something for which locks are worth at least this wait, whatever this thread's own limit is.
pub fn waiting_at_least<T>(limit: Duration, body: impl FnOnce() -> T) -> T {
    let own = MOST.get();
    MOST.set(own.map(|own| own.max(limit)));
    let done = body();
    MOST.set(own);
    done
}

/// How long one attachment waits for each of its locks.
pub struct WaitLimits {
    limit: Duration,
    /// By lock the owner for whom it was waited in vain; 0 is none.
    stuck: Box<[AtomicU32]>,
}

impl WaitLimits {
    pub fn new(limit: Duration, locks: usize) -> WaitLimits {
        WaitLimits {
            limit,
            stuck: (0..locks).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// How long to wait for a lock.
    pub fn limit(&self, lock: usize) -> Duration {
        let most = if self.stuck[lock].load(Relaxed) == 0 {
            self.limit
        } else {
            BRIEF.min(self.limit)
        };
        MOST.get().map_or(most, |own| own.min(most))
    }

    /// A lock was waited for in vain, as this owner holds it; whether for as long as anybody waits.
    pub fn missed(&self, lock: usize, holder: u32) -> bool {
        let waited = MOST.get().is_none();
        if waited {
            self.stuck[lock].store(holder, Relaxed);
        }
        waited
    }

    /// A lock was got.
    pub fn got(&self, lock: usize) {
        self.stuck[lock].store(0, Relaxed);
    }

    /// For whom a lock is stuck, if it is.
    pub fn stuck(&self, lock: usize) -> Option<u32> {
        Some(self.stuck[lock].load(Relaxed)).filter(|&holder| holder != 0)
    }
}
