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
    /// How long a connection looks for the next request before it sleeps: fewer wake-ups for more CPU. Zero: never.
    pub poll: Duration,
    /// After this long without a sign of life a TCP peer is taken for gone.
    pub peer_timeout: Duration,
    /// Requests of a connection that wait for their backend at once, and bytes of them.
    pub max_waiting: usize,
    pub max_waiting_bytes: usize,
    /// Memory for what is large, of all connections together. Servers may share it.
    pub budget: Arc<Budget>,
    /// None: no TLS.
    pub tls: Option<Tls>,
    /// Other machines may reach it without TLS.
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

/// What TLS is to be from now on, as when certificates were renewed; None: what it was.
pub type Renewal = dyn Fn() -> Option<Tls> + Send;

/// Told of each client that TLS kept out: its address, and why.
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

    /// What TLS is for the handshake that begins now. Held while asked, so that no older answer comes after a newer one.
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
