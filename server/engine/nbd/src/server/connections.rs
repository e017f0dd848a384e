//! The connections of a server, and their limits: of handshakes, and of connections with an export open.
//!
//! A connection begins with a handshake. Where there are too many, the oldest handshake of the peer with the most is closed,
//! so that silent peers keep nobody out. Connections with an export open are limited in all and for each client; some stay
//! reserved for the clients that exports name.
//! Locking: `table` is held for no I/O.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::backend::Link;
use crate::exports::Claim;

/// Connections at once.
#[derive(Clone, Debug)]
pub struct Limits {
    /// With an export open.
    pub connections: usize,
    /// The same, of one client: the name in its certificate, else its address.
    pub of_one_client: usize,
    /// Before that.
    pub handshakes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 512,
            of_one_client: 256,
            handshakes: 64,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Handshake,
    Open,
    /// Closed to make room, and on its way out.
    Dropped,
}

struct Entry {
    link: Arc<Link>,
    who: String,
    stage: Stage,
}

/// Why a connection may not open an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    All,
    Client,
}

#[derive(Default)]
pub struct Connections {
    limits: Limits,
    table: Mutex<HashMap<u64, Entry>>,
    /// A connection ended.
    left: Condvar,
    /// Handshakes closed to make room.
    dropped: AtomicU64,
    /// Connections that might not open an export, by reason.
    full: AtomicU64,
    client_full: AtomicU64,
}

impl Connections {
    pub fn new(limits: Limits) -> Connections {
        Connections {
            limits,
            ..Connections::default()
        }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<u64, Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begin a handshake; if there are too many, another is closed. False if too many closed ones are still there after
    /// `patience`.
    pub fn enter(&self, id: u64, link: &Arc<Link>, who: &str, patience: Duration) -> bool {
        let table = self.table();
        let crowded =
            |table: &mut HashMap<_, _>| count(table, Stage::Dropped) > self.limits.handshakes;
        let waited = self.left.wait_timeout_while(table, patience, crowded);
        let (mut table, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return false;
        }
        let entry = Entry {
            link: link.clone(),
            who: who.into(),
            stage: Stage::Handshake,
        };
        table.insert(id, entry);
        if count(&table, Stage::Handshake) > self.limits.handshakes
            && let Some(entry) = oldest_of_most(&mut table)
        {
            entry.stage = Stage::Dropped;
            entry.link.socket().close();
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    /// Let a connection open an export; waits up to `limit` until one more may.
    pub fn admit(
        &self,
        id: u64,
        who: &str,
        claim: &dyn Fn() -> Claim,
        limit: Duration,
    ) -> Result<(), Full> {
        let deadline = Instant::now() + limit;
        loop {
            // Asked without the table's lock: an export's table has one of its own.
            let claim = if self.open() * 2 < self.limits.connections {
                Claim::default()
            } else {
                claim()
            };
            let mut table = self.table();
            let full = self.full(&table, who, claim);
            let Some(why) = full else {
                if let Some(entry) = table.get_mut(&id) {
                    entry.stage = Stage::Open;
                    entry.who = who.into();
                }
                return Ok(());
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let counter = match why {
                    Full::All => &self.full,
                    Full::Client => &self.client_full,
                };
                counter.fetch_add(1, Ordering::Relaxed);
                return Err(why);
            }
            drop(self.left.wait_timeout(table, left));
        }
    }

    fn full(&self, table: &HashMap<u64, Entry>, who: &str, claim: Claim) -> Option<Full> {
        let open = table.values().filter(|entry| entry.stage == Stage::Open);
        let own = open.filter(|entry| entry.who == who).count();
        // However many exports name clients, half of all connections are open to anyone.
        let kept = match claim.own {
            true => 0,
            false => claim.others.min(self.limits.connections / 2),
        };
        if own >= self.limits.of_one_client {
            return Some(Full::Client);
        }
        (count(table, Stage::Open) + kept >= self.limits.connections).then_some(Full::All)
    }

    /// Back to the handshake: the export was not opened after all.
    pub fn step_back(&self, id: u64) {
        if let Some(entry) = self.table().get_mut(&id) {
            entry.stage = Stage::Handshake;
        }
        self.left.notify_all();
    }

    pub fn leave(&self, id: u64) {
        if let Some(entry) = self.table().remove(&id) {
            entry.link.socket().close();
        }
        self.left.notify_all();
    }

    /// Whether a connection was closed to make room for another.
    pub fn was_dropped(&self, id: u64) -> bool {
        let table = self.table();
        table
            .get(&id)
            .is_some_and(|entry| entry.stage == Stage::Dropped)
    }

    pub fn each(&self, body: impl Fn(&Link)) {
        self.table().values().for_each(|entry| body(&entry.link));
    }

    /// Wait until nobody is left; whether that came to be in time.
    pub fn wait_for_end(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut table = self.table();
        while !table.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.left.wait_timeout(table, left);
            table = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    pub fn open(&self) -> usize {
        count(&self.table(), Stage::Open)
    }

    pub fn handshakes(&self) -> usize {
        count(&self.table(), Stage::Handshake)
    }

    /// How many were closed to make room, found the server's limit reached, and found their client's limit reached.
    pub fn turned_away(&self) -> [u64; 3] {
        [&self.dropped, &self.full, &self.client_full]
            .map(|counter| counter.load(Ordering::Relaxed))
    }

    pub fn explain(&self, full: Full) -> String {
        match full {
            Full::All => format!(
                "all {} connections of the server are in use or reserved for clients that exports name",
                self.limits.connections
            ),
            Full::Client => format!(
                "this client already has {} connections, the maximum for one client",
                self.limits.of_one_client
            ),
        }
    }
}

fn count(table: &HashMap<u64, Entry>, stage: Stage) -> usize {
    table.values().filter(|entry| entry.stage == stage).count()
}

/// The oldest handshake of the peer that has the most.
fn oldest_of_most(table: &mut HashMap<u64, Entry>) -> Option<&mut Entry> {
    let mut peers: HashMap<&str, (usize, u64)> = HashMap::new();
    for (&id, entry) in table
        .iter()
        .filter(|(_, one)| one.stage == Stage::Handshake)
    {
        let (number, oldest) = peers.entry(&entry.who).or_insert((0, id));
        (*number, *oldest) = (*number + 1, id.min(*oldest));
    }
    let most = peers.into_values();
    let (_, oldest) = most.max_by_key(|&(number, oldest)| (number, std::cmp::Reverse(oldest)))?;
    table.get_mut(&oldest)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::backend::Budget;
    use crate::wire::Socket;

    fn link() -> Arc<Link> {
        let (stream, _) = UnixStream::pair().unwrap();
        let socket = Socket::new(stream).unwrap();
        Arc::new(Link::new(socket, String::new(), Arc::<Budget>::default()))
    }

    fn connections(connections: usize, of_one_client: usize, handshakes: usize) -> Connections {
        Connections::new(Limits {
            connections,
            of_one_client,
            handshakes,
        })
    }

    #[test]
    fn the_oldest_handshake_of_the_peer_with_the_most_makes_room() {
        let connections = connections(9, 9, 4);
        for (id, who) in [(1, "a"), (2, "b"), (3, "b"), (4, "b"), (5, "c")] {
            assert!(connections.enter(id, &link(), who, Duration::ZERO));
        }
        let dropped: Vec<u64> = (1..6).filter(|id| connections.was_dropped(*id)).collect();
        assert_eq!(dropped, [2]);
        assert_eq!(connections.handshakes(), 4);
    }

    /// They come faster than the threads of those that were closed end.
    #[test]
    fn who_comes_waits_for_those_that_were_closed_to_leave() {
        let connections = connections(9, 9, 1);
        for id in 1..4 {
            assert!(connections.enter(id, &link(), "a", Duration::ZERO));
        }
        assert!(!connections.enter(4, &link(), "a", Duration::ZERO));
        std::thread::scope(|scope| {
            let comes =
                scope.spawn(|| connections.enter(5, &link(), "a", Duration::from_secs(600)));
            connections.leave(1);
            assert!(comes.join().unwrap());
        });
    }

    #[test]
    fn a_client_has_its_limit_and_named_ones_their_seats() {
        let connections = connections(4, 2, 9);
        let admit = |id, who: &str, own, others| {
            assert!(connections.enter(id, &link(), who, Duration::ZERO));
            connections.admit(id, who, &|| Claim { own, others }, Duration::ZERO)
        };
        assert_eq!(admit(1, "a", false, 2), Ok(()));
        assert_eq!(admit(2, "a", false, 2), Ok(()));
        assert_eq!(admit(3, "a", true, 1), Err(Full::Client));
        assert_eq!(admit(4, "b", false, 2), Err(Full::All));
        assert_eq!(admit(5, "named", true, 1), Ok(()));
        assert_eq!(admit(6, "b", false, 1), Err(Full::All));
        connections.leave(1);
        assert_eq!(admit(7, "b", false, 1), Ok(()));
        assert_eq!(connections.turned_away(), [0, 2, 1]);
    }
}
