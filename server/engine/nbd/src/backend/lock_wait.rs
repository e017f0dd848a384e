//! Limits on how long a request waits for the locks of an arena.

use std::time::Duration;

use tmem_core::waiting_at_most;

/// The wait for a lock of the arena while others wait for what is held here: the server tries a request again by itself.
const BRIEF: Duration = Duration::from_millis(2);

/// Carry out a request: where another process does not let go of a lock of the arena, it is to be tried again.
pub fn briefly<T>(request: impl FnOnce() -> T) -> T {
    waiting(BRIEF, request)
}

/// Do something, waiting for no lock of the arena longer than `limit`.
pub fn waiting<T>(limit: Duration, body: impl FnOnce() -> T) -> T {
    let before = waiting_at_most(Some(limit));
    let done = body();
    waiting_at_most(before);
    done
}
