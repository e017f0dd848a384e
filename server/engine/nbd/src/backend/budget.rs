//! Memory for requests and replies: what the connections of a server may hold together, beyond [`OWN`] each.
//!
//! A connection that wants more than is available queues for it; none is refused. Whoever waits also watches the
//! holders: one that waits for its client, and sees no byte from it for `patience`, is disconnected. A request larger
//! than the whole budget is served alone.
//! Locking: `state` is the last lock taken, and is not held during I/O.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::wire::Socket;

/// Bytes that a connection may hold without asking.
pub const OWN: usize = 1 << 20;

/// The other end of a connection, and the memory that is held for it.
pub struct Peer {
    pub socket: Socket,
    /// In words.
    pub address: String,
    pub budget: Arc<Budget>,
    /// Bytes of requests and replies. Changed by the budget alone.
    held: AtomicUsize,
    /// What its thread queues for has been granted.
    granted: AtomicBool,
    /// Its thread waits for the client to send what it began, or to take a reply.
    pub expects: AtomicBool,
    /// Replies that wait for the client to take them.
    pub queued: AtomicUsize,
}

impl Peer {
    pub fn new(socket: Socket, address: String, budget: Arc<Budget>) -> Peer {
        Peer {
            socket,
            address,
            budget,
            held: AtomicUsize::new(0),
            granted: AtomicBool::new(false),
            expects: AtomicBool::new(false),
            queued: AtomicUsize::new(0),
        }
    }

    pub fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }

    /// Whether the memory is held because of the client, and not because of the backend.
    fn waits_for_client(&self) -> bool {
        self.expects.load(Ordering::SeqCst) || self.queued.load(Ordering::SeqCst) > 0
    }
}

pub struct Budget {
    limit: usize,
    patience: Duration,
    stalled: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    used: usize,
    line: VecDeque<(Arc<Peer>, usize)>,
    holders: Vec<Holder>,
}

/// A connection that holds more than [`OWN`].
struct Holder {
    peer: Arc<Peer>,
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

    /// Connections queueing now.
    pub fn waiting(&self) -> usize {
        self.state().line.len()
    }

    /// Connections cut off so far, because they held memory that others waited for.
    pub fn stalled(&self) -> u64 {
        self.stalled.load(Ordering::Relaxed)
    }

    /// How often a waiter checks the holders.
    pub fn interval(&self) -> Duration {
        (self.patience / 4).min(Duration::from_secs(1))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Let a connection hold so many bytes more if that is possible at once. Called by its own thread only.
    pub fn try_take(&self, peer: &Arc<Peer>, bytes: usize) -> Option<Hold> {
        if charged(peer.held() + bytes) > 0 {
            let mut state = self.state();
            if !state.line.is_empty() || !state.fits(peer, bytes, self.limit) {
                return None;
            }
            state.grant(peer, bytes);
        } else {
            peer.held.fetch_add(bytes, Ordering::SeqCst);
        }
        Some(Hold::of(peer, bytes))
    }

    /// Queue for so many bytes.
    pub fn queue(&self, peer: &Arc<Peer>, bytes: usize) -> Place {
        let mut state = self.state();
        peer.granted.store(false, Ordering::SeqCst);
        state.line.push_back((peer.clone(), bytes));
        state.serve(self.limit);
        Place {
            peer: peer.clone(),
            bytes,
        }
    }

    fn leave(&self, peer: &Arc<Peer>) {
        let mut state = self.state();
        state
            .line
            .retain(|(waiting, _)| !Arc::ptr_eq(waiting, peer));
        state.serve(self.limit);
    }

    fn give_back(&self, peer: &Arc<Peer>, bytes: usize) {
        let before = peer.held.fetch_sub(bytes, Ordering::SeqCst);
        let freed = charged(before) - charged(before - bytes);
        if freed > 0 {
            let mut state = self.state();
            state.used -= freed;
            if charged(peer.held()) == 0 {
                state.holders.retain(|one| !Arc::ptr_eq(&one.peer, peer));
            }
            state.serve(self.limit);
        }
    }

    /// Disconnect holders whose clients neither send nor receive anything; their addresses.
    pub fn cut_off_stalled(&self) -> Vec<String> {
        let mut state = self.state();
        let now = Instant::now();
        let stalled = state.holders.iter_mut().filter_map(|holder| {
            let moved = holder.peer.socket.moved();
            let since = holder.since.filter(|_| holder.moved == moved);
            let since = since.filter(|_| holder.peer.waits_for_client());
            (holder.moved, holder.since) = (moved, Some(since.unwrap_or(now)));
            let lost = now - since? >= self.patience && !holder.peer.socket.is_closed();
            lost.then(|| holder.peer.clone())
        });
        let stalled: Vec<_> = stalled.collect();
        drop(state);
        self.stalled
            .fetch_add(stalled.len() as u64, Ordering::Relaxed);
        stalled.iter().for_each(|peer| peer.socket.close());
        stalled.iter().map(|peer| peer.address.clone()).collect()
    }
}

impl State {
    fn fits(&self, peer: &Peer, bytes: usize, limit: usize) -> bool {
        let held = peer.held();
        let more = charged(held + bytes) - charged(held);
        self.used == 0 || self.used + more <= limit
    }

    fn grant(&mut self, peer: &Arc<Peer>, bytes: usize) {
        // Others only give back meanwhile, so that this is no more than what was found to fit.
        let before = peer.held.fetch_add(bytes, Ordering::SeqCst);
        self.used += charged(before + bytes) - charged(before);
        let known = self.holders.iter().any(|one| Arc::ptr_eq(&one.peer, peer));
        if !known && before + bytes > OWN {
            self.holders.push(Holder {
                peer: peer.clone(),
                moved: 0,
                since: None,
            });
        }
    }

    /// Grant memory to the head of the queue as long as there is room.
    fn serve(&mut self, limit: usize) {
        while let Some((peer, bytes)) = self.line.front() {
            if !self.fits(peer, *bytes, limit) {
                return;
            }
            let (peer, bytes) = self.line.pop_front().expect("it has a front");
            self.grant(&peer, bytes);
            peer.granted.store(true, Ordering::SeqCst);
            peer.socket.wake();
        }
    }
}

/// Bytes that a connection holds; dropped, they are given back.
pub struct Hold {
    peer: Arc<Peer>,
    bytes: usize,
}

impl Hold {
    fn of(peer: &Arc<Peer>, bytes: usize) -> Hold {
        Hold {
            peer: peer.clone(),
            bytes,
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.peer.budget.give_back(&self.peer, self.bytes);
    }
}

/// A place in the queue; dropping it leaves the queue.
pub struct Place {
    peer: Arc<Peer>,
    bytes: usize,
}

impl Place {
    /// The memory, once it is granted.
    pub fn granted(&self) -> Option<Hold> {
        let granted = self.peer.granted.swap(false, Ordering::SeqCst);
        granted.then(|| Hold::of(&self.peer, self.bytes))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.peer.budget.leave(&self.peer);
        drop(self.granted());
    }
}
