//! State shared by the threads of a server: its settings, its connections, and its current TLS configuration.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use super::connections::{Connections, Limits};
use super::listen::Waker;
use crate::backend::Budget;
use crate::exports::Exports;
use crate::tls::Tls;

/// How a server behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    pub limits: Limits,
    /// How long a client may take from connecting to opening an export.
    pub handshake_timeout: Duration,
    /// How long a connection polls for the next request before it sleeps, trading CPU for wake-ups; zero disables polling.
    pub poll: Duration,
    /// A TCP peer that is silent for this long is considered gone.
    pub peer_timeout: Duration,
    /// Limits on a connection's requests that wait for their backend: their number and their bytes.
    pub max_waiting: usize,
    pub max_waiting_bytes: usize,
    /// Memory for large requests and replies of all connections. Servers may share it.
    pub budget: Arc<Budget>,
    /// None: no TLS.
    pub tls: Option<Tls>,
    /// Allow access from other machines without TLS.
    pub insecure: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            limits: Limits::default(),
            handshake_timeout: Duration::from_secs(10),
            poll: Duration::ZERO,
            peer_timeout: Duration::from_secs(20),
            max_waiting: 256,
            max_waiting_bytes: 64 << 20,
            budget: Arc::default(),
            tls: None,
            insecure: false,
        }
    }
}

/// The new TLS configuration, for example after certificates were renewed; None if it is unchanged.
pub type Renewal = dyn Fn() -> Option<Tls> + Send;

/// Called for each client that TLS kept out, with its address and the reason.
pub type Reporter = dyn Fn(&str, &str) + Send + Sync;

/// What the threads of a server share.
pub struct Shared {
    pub exports: Arc<Exports>,
    pub settings: Settings,
    pub stopping: AtomicBool,
    pub not_opened: AtomicU64,
    pub broken: AtomicU64,
    pub timed_out: AtomicU64,
    pub kept_out: AtomicU64,
    pub connections: Connections,
    pub tls: RwLock<Option<Tls>>,
    pub renewal: Mutex<Option<Box<Renewal>>>,
    pub reporter: OnceLock<Box<Reporter>>,
    pub accepted: AtomicU64,
    pub turned_away: AtomicU64,
    pub waker: Waker,
}

impl Shared {
    pub fn tls(&self) -> Option<Tls> {
        let tls = self.tls.read();
        tls.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_tls(&self, tls: Option<Tls>) {
        let place = self.tls.write();
        *place.unwrap_or_else(PoisonError::into_inner) = tls;
    }

    pub fn renewal(&self) -> MutexGuard<'_, Option<Box<Renewal>>> {
        self.renewal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The TLS configuration for a handshake that starts now. The lock is held while asking, so that an older answer never
    /// replaces a newer one.
    pub fn newest_tls(&self) -> Option<Tls> {
        let renewal = self.renewal();
        if let Some(renewed) = renewal.as_ref().and_then(|renewal| renewal()) {
            self.set_tls(Some(renewed));
        }
        self.tls()
    }

    /// A client was kept out by TLS.
    pub fn report(&self, address: &str, why: &str) {
        if let Some(reporter) = self.reporter.get() {
            reporter(address, why);
        }
    }
}
