//! The NBD server: listeners, and a thread for each connection.
//!
//! To stop, it accepts no new connections and finishes what the others have sent; what takes longer than the grace period is
//! cut off.

mod connection;
mod connections;
mod handshake;
mod input;
mod listen;
mod metrics_http;
mod options;
mod shared;
mod transmission;

pub use connections::Limits;
pub use listen::{Listen, is_loopback};
pub use metrics_http::MetricsServer;
pub use shared::{Renewal, Reporter, Settings};

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::backend::{Client, Link};
use crate::exports::Exports;
use crate::tls::Tls;
use crate::wire::Socket;
use connections::Connections;
use listen::{Accepted, Listener};
use shared::Shared;

/// The number of the last connection: servers may share exports, which tell connections apart by it.
static LAST_ID: AtomicU64 = AtomicU64::new(0);

/// How long threads have to notice that their sockets are closed: after the grace, and before one more is accepted.
const LAST_CALL: Duration = Duration::from_secs(1);

/// Counters since the server started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerCounters {
    pub connections: u64,
    /// Connections that have an export open now, and those that have none yet.
    pub connected: u64,
    pub handshakes: u64,
    /// Closed at once, as no thread could be started for them.
    pub turned_away: u64,
    /// Closed in their handshake to make room for a newer one, by the handshake's deadline, and by TLS.
    pub dropped: u64,
    pub timed_out: u64,
    pub kept_out: u64,
    /// Refused by the server's limit, and by the limit of one client.
    pub full: u64,
    pub client_full: u64,
    /// Ended in the handshake: time-outs, malformed requests, clients that only asked.
    pub not_opened: u64,
    /// Ended otherwise than by the client's disconnect or a stop.
    pub broken: u64,
}

/// A running server. Dropping it stops it at once.
pub struct Server {
    shared: Arc<Shared>,
    addresses: Vec<String>,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    /// Listen, and serve `exports`.
    pub fn start(
        listen: &[Listen],
        exports: Arc<Exports>,
        settings: Settings,
    ) -> io::Result<Server> {
        for address in listen {
            let admitted = address.admit(settings.tls.is_some(), settings.insecure);
            admitted.map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
        }
        let listener = Listener::bind(listen)?;
        let addresses = listener.addresses();
        let shared = Arc::new(Shared {
            exports,
            tls: RwLock::new(settings.tls.clone()),
            renewal: Mutex::default(),
            reporter: OnceLock::new(),
            connections: Connections::new(settings.limits.clone()),
            settings,
            stopping: AtomicBool::new(false),
            not_opened: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            timed_out: AtomicU64::new(0),
            kept_out: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            turned_away: AtomicU64::new(0),
            waker: listener.waker(),
        });
        let its = shared.clone();
        let acceptor = std::thread::Builder::new().name("nbd-accept".into());
        let acceptor = acceptor.spawn(move || its.accept(&listener))?;
        Ok(Server {
            shared,
            addresses,
            acceptor: Some(acceptor),
        })
    }

    /// Two servers of the same exports: one for Unix sockets, without TLS because their folder decides who may connect, and one
    /// for TCP, where TLS does.
    pub fn start_each(
        listen: Vec<Listen>,
        exports: &Arc<Exports>,
        settings: Settings,
    ) -> io::Result<Vec<Server>> {
        let plain = Settings {
            tls: None,
            ..settings.clone()
        };
        let is_unix = |address: &Listen| matches!(address, Listen::Unix(_));
        let (unix, tcp): (Vec<_>, Vec<_>) = listen.into_iter().partition(is_unix);
        [(unix, plain), (tcp, settings)]
            .into_iter()
            .filter(|(addresses, _)| !addresses.is_empty())
            .map(|(addresses, settings)| Server::start(&addresses, exports.clone(), settings))
            .collect()
    }

    /// Where it listens, as `unix:PATH` or `tcp:HOST:PORT`, with the actual port where 0 was given.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    pub fn exports(&self) -> &Arc<Exports> {
        &self.shared.exports
    }

    /// Use this for connections from now on.
    pub fn set_tls(&self, tls: Option<Tls>) {
        self.shared.set_tls(tls);
    }

    /// Ask `renewal` before each TLS handshake, one at a time.
    pub fn renew_tls(&self, renewal: Box<Renewal>) {
        *self.shared.renewal() = Some(renewal);
    }

    /// Call `reporter` for clients that TLS keeps out, on the threads of their connections. Set once.
    pub fn report_to(&self, reporter: Box<Reporter>) {
        let _ = self.shared.reporter.set(reporter);
    }

    pub fn counters(&self) -> ServerCounters {
        let shared = &self.shared;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let [dropped, full, client_full] = shared.connections.turned_away();
        ServerCounters {
            connections: get(&shared.accepted),
            connected: shared.connections.open() as u64,
            handshakes: shared.connections.handshakes() as u64,
            turned_away: get(&shared.turned_away),
            dropped,
            timed_out: get(&shared.timed_out),
            kept_out: get(&shared.kept_out),
            full,
            client_full,
            not_opened: get(&shared.not_opened),
            broken: get(&shared.broken),
        }
    }

    /// Stop; whether every connection ended within the grace period.
    pub fn stop(mut self, grace: Duration) -> bool {
        self.shut_down(grace)
    }

    fn shut_down(&mut self, grace: Duration) -> bool {
        let Some(acceptor) = self.acceptor.take() else {
            return true;
        };
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.shared.waker.wake();
        let _ = acceptor.join();
        self.shared
            .connections
            .each(|link| link.socket().stop_receiving());
        let graceful = self.shared.connections.wait_for_end(grace);
        if !graceful {
            self.shared.connections.each(|link| link.socket().close());
            self.shared.connections.wait_for_end(LAST_CALL);
        }
        graceful
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shut_down(Duration::ZERO);
    }
}

impl Shared {
    /// Accept until the server stops.
    fn accept(self: &Arc<Shared>, listener: &Listener) {
        while !self.stopping.load(Ordering::SeqCst) {
            for accepted in listener.accept(self.settings.peer_timeout) {
                self.accepted.fetch_add(1, Ordering::Relaxed);
                let id = LAST_ID.fetch_add(1, Ordering::Relaxed);
                if self.welcome(id, accepted).is_err() {
                    self.turned_away.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Give a connection its thread.
    fn welcome(self: &Arc<Shared>, id: u64, accepted: Accepted) -> io::Result<()> {
        let client = Client {
            id,
            address: accepted.address,
            local: accepted.local,
            tls: false,
            identity: None,
        };
        let link = Arc::new(Link::new(
            Socket::new(accepted.stream)?,
            client.address.clone(),
            self.settings.budget.clone(),
        ));
        if !self
            .connections
            .enter(id, &link, &accepted.origin, LAST_CALL)
        {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let shared = self.clone();
        let thread = std::thread::Builder::new().name(format!("nbd-{id}"));
        let ended = Ended {
            shared: self.clone(),
            id,
        };
        let thread = thread.spawn(move || {
            let _ended = ended;
            connection::run(&shared, &link, client, accepted.origin);
        });
        thread.map(drop)
    }
}

/// Has a connection leave, however its thread ended.
struct Ended {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.shared.connections.leave(self.id);
    }
}
