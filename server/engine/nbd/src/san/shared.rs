//! State shared by the threads of a gateway.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::cache::link::Link;
use super::cache::presence::Seen;
use super::cache::put_queue::Puts;
use super::cache::usefulness::Judge;
use super::counters::{Counters, Histogram};
use super::readahead::buffer::Ahead;
use super::stripes::Stripes;
use super::volume::backing::Backing;

pub struct Shared {
    pub backing: Arc<dyn Backing>,
    pub link: Arc<Link>,
    pub stripes: Stripes,
    pub puts: Puts,
    pub ahead: Ahead,
    pub judge: Arc<Judge>,
    pub seen: Arc<Seen>,
    pub counters: Arc<Counters>,
    pub hit_latency: Histogram,
    pub miss_latency: Histogram,
    pub size: AtomicU64,
    /// What a shared volume was when it was opened.
    pub fingerprint: Option<String>,
    /// Of the cache, in bytes.
    pub page: u64,
    /// Pages read in a row that make a scan.
    pub scan: u64,
    pub read_only: bool,
    /// Requests under way.
    pub busy: AtomicU64,
    pub stopped: AtomicBool,
}

/// Counts a request as under way for as long as it lives.
pub struct Busy(Arc<Shared>);

impl Busy {
    pub fn new(shared: &Arc<Shared>) -> Busy {
        shared.busy.fetch_add(1, Ordering::SeqCst);
        Busy(shared.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::SeqCst);
    }
}
