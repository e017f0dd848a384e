//! Memory for requests and replies: what the connections of a server may hold together, beyond [`OWN`] each.
//!
//! A connection that wants more than is left waits in line; nobody is ever refused. Whoever waits also watches those who
//! hold: one that waits for its client, and sees no byte of it for `patience`, is cut off. A request larger than the whole
//! budget is served alone.
//! Locking: `state` is the last lock taken, and held for no I/O.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Link;

/// Bytes that a connection may hold without asking.
pub const OWN: usize = 1 << 20;

pub struct Budget {
    limit: usize,
    patience: Duration,
    stalled: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    used: usize,
    line: VecDeque<(Arc<Link>, usize)>,
    holders: Vec<Holder>,
}

/// A connection that holds more than its own.
struct Holder {
    link: Arc<Link>,
    /// Bytes that had passed when a waiter first looked, and since when no more did.
    moved: u64,
    since: Option<Instant>,
}

/// What of `held` bytes comes out of the budget.
fn charged(held: usize) -> usize {
    held.saturating_sub(OWN)
}

impl Default for Budget {
    fn default() -> Self {
        Budget::new(256 << 20, Duration::from_secs(30))
    }
}

impl std::fmt::Debug for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Budget({} of {})", self.used(), self.limit)
    }
}

impl Budget {
    pub fn new(limit: usize, patience: Duration) -> Budget {
        Budget {
            limit,
            patience,
            stalled: AtomicU64::new(0),
            state: Mutex::default(),
        }
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    /// How long a client may be silent while others wait for what it holds.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// Bytes held out of it now.
    pub fn used(&self) -> usize {
        self.state().used
    }

    /// Connections that wait in line now.
    pub fn waiting(&self) -> usize {
        self.state().line.len()
    }

    /// Connections cut off so far, because they held memory that others waited for.
    pub fn stalled(&self) -> u64 {
        self.stalled.load(Ordering::Relaxed)
    }

    /// How often a waiter looks at those who hold.
    pub fn interval(&self) -> Duration {
        (self.patience / 4).min(Duration::from_secs(1))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Let a connection hold so many bytes more, if that can be now. Only its own thread asks.
    pub fn try_take(&self, link: &Arc<Link>, bytes: usize) -> Option<Hold> {
        if charged(link.held.load(Ordering::SeqCst) + bytes) > 0 {
            let mut state = self.state();
            if !state.line.is_empty() || !state.fits(link, bytes, self.limit) {
                return None;
            }
            state.grant(link, bytes);
        } else {
            link.held.fetch_add(bytes, Ordering::SeqCst);
        }
        Some(Hold::of(link, bytes))
    }

    /// Stand in line for so many bytes.
    pub fn queue(&self, link: &Arc<Link>, bytes: usize) -> Place {
        let mut state = self.state();
        link.granted.store(false, Ordering::SeqCst);
        state.line.push_back((link.clone(), bytes));
        state.serve(self.limit);
        Place {
            link: link.clone(),
            bytes,
        }
    }

    fn leave(&self, link: &Arc<Link>) {
        let mut state = self.state();
        state
            .line
            .retain(|(waiting, _)| !Arc::ptr_eq(waiting, link));
        state.serve(self.limit);
    }

    fn give_back(&self, link: &Arc<Link>, bytes: usize) {
        let before = link.held.fetch_sub(bytes, Ordering::SeqCst);
        let freed = charged(before) - charged(before - bytes);
        if freed > 0 {
            let mut state = self.state();
            state.used -= freed;
            if charged(link.held.load(Ordering::SeqCst)) == 0 {
                state.holders.retain(|one| !Arc::ptr_eq(&one.link, link));
            }
            state.serve(self.limit);
        }
    }

    /// Cut off those who hold memory while their clients neither send nor take anything; their addresses.
    pub fn cut_off_stalled(&self) -> Vec<String> {
        let mut state = self.state();
        let now = Instant::now();
        let stalled = state.holders.iter_mut().filter_map(|holder| {
            let moved = holder.link.socket.moved();
            let since = holder.since.filter(|_| holder.moved == moved);
            let since = since.filter(|_| holder.link.waits_for_client());
            (holder.moved, holder.since) = (moved, Some(since.unwrap_or(now)));
            let lost = now - since? >= self.patience && !holder.link.socket.is_closed();
            lost.then(|| holder.link.clone())
        });
        let stalled: Vec<_> = stalled.collect();
        drop(state);
        self.stalled
            .fetch_add(stalled.len() as u64, Ordering::Relaxed);
        stalled.iter().for_each(|link| link.socket.close());
        stalled.iter().map(|link| link.address.clone()).collect()
    }
}

impl State {
    fn fits(&self, link: &Link, bytes: usize, limit: usize) -> bool {
        let held = link.held.load(Ordering::SeqCst);
        let more = charged(held + bytes) - charged(held);
        self.used == 0 || self.used + more <= limit
    }

    fn grant(&mut self, link: &Arc<Link>, bytes: usize) {
        // Others only give back meanwhile, so that this is no more than what was found to fit.
        let before = link.held.fetch_add(bytes, Ordering::SeqCst);
        self.used += charged(before + bytes) - charged(before);
        let known = self.holders.iter().any(|one| Arc::ptr_eq(&one.link, link));
        if !known && before + bytes > OWN {
            self.holders.push(Holder {
                link: link.clone(),
                moved: 0,
                since: None,
            });
        }
    }

    /// Let those go on who are first in line, as far as there is room.
    fn serve(&mut self, limit: usize) {
        while let Some((link, bytes)) = self.line.front() {
            if !self.fits(link, *bytes, limit) {
                return;
            }
            let (link, bytes) = self.line.pop_front().expect("it has a front");
            self.grant(&link, bytes);
            link.granted.store(true, Ordering::SeqCst);
            link.socket.wake();
        }
    }
}

/// Bytes that a connection holds; dropped, they are given back.
pub struct Hold {
    link: Arc<Link>,
    bytes: usize,
}

impl Hold {
    fn of(link: &Arc<Link>, bytes: usize) -> Hold {
        Hold {
            link: link.clone(),
            bytes,
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.link.budget.give_back(&self.link, self.bytes);
    }
}

/// A place in line. Dropped, it is left.
pub struct Place {
    link: Arc<Link>,
    bytes: usize,
}

impl Place {
    /// What was waited for, once it is there.
    pub fn granted(&self) -> Option<Hold> {
        let granted = self.link.granted.swap(false, Ordering::SeqCst);
        granted.then(|| Hold::of(&self.link, self.bytes))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.link.budget.leave(&self.link);
        drop(self.granted());
    }
}
