//! A snapshot of an export: its blocks as they were at one instant, while they go on changing.
//!
//! Copy on write: before a page changes that the snapshot may still be asked for, it is copied to a pool of the snapshot's own, the
//! *shadow*, as it is stored. What is read is the live page unless it was kept by then, so nobody who reads stops one who writes.
//! Memory for copies is taken below the store's accept threshold only. Where there is none for one, or a write finds none for
//! itself, it is the snapshot that ends.
//!
//! Order: a page is kept, and known to be, before it changes; it is read before one asks whether it was kept. That the snapshot has
//! ended is known before anything changes that was not kept, and asked last.
//! Locking: a stripe of `kept` is taken within the export's own, and for no other; `cleared` within the export's own, so that
//! whoever finds no memory waits for what another is giving back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tmem_core::{CLUSTER, Error, Fetched, FetchedPage, Oid, Pool, waiting_at_least};

use super::lock_wait::waiting;

/// Locks that clusters share.
const STRIPES: usize = 64;

/// Pages of one cluster.
#[derive(Clone, Copy)]
pub struct Pages {
    pub cluster: u32,
    /// One bit each.
    pub map: u64,
}

impl Pages {
    /// Pages `first` to `end` of an export, which are of one cluster.
    pub fn between(first: u64, end: u64) -> Pages {
        let below = |page: u64| (1u64 << (page % u64::from(CLUSTER))) - 1;
        let cluster = (first / u64::from(CLUSTER)) as u32;
        let whole = end.is_multiple_of(u64::from(CLUSTER));
        let upto = if whole { u64::MAX } else { below(end) };
        let map = if first < end { upto & !below(first) } else { 0 };
        Pages { cluster, map }
    }
}

type Forget = dyn Fn(&Arc<Snapshot>) + Send + Sync;

/// A snapshot in use. Dropping it ends it.
pub struct Saving {
    pub snapshot: Arc<Snapshot>,
    /// How long requests were held up by its beginning.
    pub paused: Duration,
    /// Tells the export to keep nothing more for it.
    pub(crate) forget: Box<Forget>,
}

impl Drop for Saving {
    fn drop(&mut self) {
        (self.forget)(&self.snapshot);
        self.snapshot.end("it was ended");
    }
}

pub struct Snapshot {
    live: Pool,
    shadow: Pool,
    oid: Oid,
    /// How many it is of.
    pages: u64,
    /// By cluster: pages that were kept, holes among them.
    kept: [Mutex<BTreeMap<u32, u64>>; STRIPES],
    /// Pages below this are no longer needed.
    saved: AtomicU64,
    ended: OnceLock<String>,
    /// Whether what was kept is given back.
    cleared: Mutex<bool>,
}

/// Limit on waiting for a lock of the arena: a snapshot gives way rather than hold up writes.
const PATIENCE: Duration = Duration::from_millis(200);

impl Snapshot {
    pub(crate) fn new(live: Pool, shadow: Pool, oid: Oid, pages: u64) -> Snapshot {
        Snapshot {
            live,
            shadow,
            oid,
            pages,
            kept: std::array::from_fn(|_| Mutex::default()),
            saved: AtomicU64::new(0),
            ended: OnceLock::new(),
            cleared: Mutex::new(false),
        }
    }

    /// How many pages it is of.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    fn kept(&self, cluster: u32) -> MutexGuard<'_, BTreeMap<u32, u64>> {
        let stripe = &self.kept[cluster as usize % STRIPES];
        stripe.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keep pages that are about to change. Pages to be removed need not be kept where they are holes already.
    pub(crate) fn keep(&self, pages: Pages, removed: bool) {
        let wanted = Pages::between(
            self.saved.load(Ordering::SeqCst).max(first(pages.cluster)),
            self.pages.min(first(pages.cluster) + u64::from(CLUSTER)),
        );
        if self.ended.get().is_some() || wanted.cluster != pages.cluster {
            return;
        }
        let mut kept = self.kept(pages.cluster);
        let before = kept.get(&pages.cluster).copied().unwrap_or(0);
        let map = pages.map & wanted.map & !before;
        if map == 0 {
            return;
        }
        let copied = waiting(PATIENCE, || {
            self.live
                .copy_cluster(&self.oid, pages.cluster, map, &self.shadow)
        });
        match copied {
            Ok(Some(held)) => {
                let now = if removed { held } else { map };
                if now != 0 {
                    kept.insert(pages.cluster, before | now);
                }
            }
            Ok(None) => {
                drop(kept);
                self.end("there was no memory to keep the blocks that were overwritten");
            }
            Err(error) => {
                drop(kept);
                self.end(&format!(
                    "a block that was overwritten could not be kept: {error}"
                ));
            }
        }
    }

    /// End, and give back what was kept. If a lock of the arena is held, that stays until the next call.
    pub fn end(&self, why: &str) {
        let _ = self.give_up(why);
    }

    /// The same, with an error if what was kept stays.
    pub(crate) fn give_up(&self, why: &str) -> tmem_core::Result<()> {
        let _ = self.ended.set(why.into());
        let mut cleared = self.cleared.lock().unwrap_or_else(PoisonError::into_inner);
        if !*cleared {
            // Gone already where its export was removed, or the daemon stops.
            match waiting_at_least(PATIENCE, || self.shadow.destroy()) {
                Err(busy @ Error::Busy { .. }) => return Err(busy),
                _ => *cleared = true,
            }
        }
        Ok(())
    }

    /// Why it has ended, if it has.
    pub fn ended(&self) -> Option<&str> {
        self.ended.get().map(String::as_str)
    }

    fn whole<T>(&self, found: tmem_core::Result<T>) -> Result<T, String> {
        match self.ended() {
            Some(why) => Err(format!("the snapshot has ended: {why}")),
            None => found.map_err(|error| format!("the snapshot cannot be read: {error}")),
        }
    }

    /// Which of the pages from `first` on it has.
    pub fn has(&self, first: u32, count: u32) -> Result<Vec<bool>, String> {
        let count = u64::from(count).min(self.pages.saturating_sub(first.into())) as u32;
        let live = self.live.has(&self.oid, first, count);
        let mut held = self.whole(live)?;
        let mut shadow = Vec::new();
        let (mut map, mut of) = (0, None);
        for (page, held) in (first..).zip(&mut held) {
            if of != Some(page / CLUSTER) {
                (map, of) = (self.kept_of(page / CLUSTER), Some(page / CLUSTER));
            }
            if map >> (page % CLUSTER) & 1 == 0 {
                continue;
            }
            if shadow.is_empty() {
                shadow = self.whole(self.shadow.has(&self.oid, first, count))?;
            }
            *held = shadow[(page - first) as usize];
        }
        self.whole(Ok(held))
    }

    fn kept_of(&self, cluster: u32) -> u64 {
        self.kept(cluster).get(&cluster).copied().unwrap_or(0)
    }

    fn is_kept(&self, page: u32) -> bool {
        self.kept_of(page / CLUSTER) >> (page % CLUSTER) & 1 != 0
    }

    /// Its pages, as LZ4 blocks where they are stored so.
    pub fn fetch(&self, indices: &[u32]) -> Result<Fetched, String> {
        let known = self.saved.load(Ordering::SeqCst)..self.pages;
        if let Some(page) = indices.iter().find(|&&page| !known.contains(&page.into())) {
            let (from, to) = (known.start, known.end);
            return Err(format!(
                "page {page} was requested; pages {from} to {to} are available"
            ));
        }
        let live = self.whole(self.live.fetch(&self.oid, indices, true))?;
        let kept = |&position: &usize| self.is_kept(indices[position]);
        let kept: Vec<usize> = (0..indices.len()).filter(kept).collect();
        if kept.is_empty() {
            return self.whole(Ok(live));
        }
        let indices: Vec<u32> = kept.iter().map(|&position| indices[position]).collect();
        let older = self.whole(self.shadow.fetch(&self.oid, &indices, true))?;
        self.whole(Ok(merged(&live, &kept, &older)))
    }

    /// Pages below `page` are no longer needed; copies of them are given back.
    pub fn release(&self, page: u64) {
        if self.saved.fetch_max(page, Ordering::SeqCst) >= page || self.ended().is_some() {
            return;
        }
        let clusters = (page / u64::from(CLUSTER)) as u32;
        for stripe in 0..STRIPES as u32 {
            let mut kept = self.kept(stripe);
            while let Some(cluster) = kept.keys().next().copied().filter(|&one| one < clusters) {
                kept.remove(&cluster);
                let first = cluster * CLUSTER;
                // Where it fails the pages go with the shadow.
                let _ = self.shadow.flush_pages(&self.oid, first, CLUSTER);
            }
        }
    }
}

/// Pages of `live`, but at the positions of `kept` those of `older`.
fn merged(live: &Fetched, kept: &[usize], older: &Fetched) -> Fetched {
    let mut found = Fetched {
        bytes: Vec::with_capacity(live.bytes.len()),
        pages: Vec::with_capacity(live.pages.len()),
    };
    let mut kept = kept.iter().zip(&older.pages).peekable();
    for (position, page) in live.pages.iter().enumerate() {
        let (page, bytes) = match kept.next_if(|(at, _)| **at == position) {
            Some((_, page)) => (page, &older.bytes),
            None => (page, &live.bytes),
        };
        let start = found.bytes.len();
        found
            .bytes
            .extend_from_slice(&bytes[page.start..page.start + page.len]);
        found.pages.push(FetchedPage { start, ..*page });
    }
    found
}

fn first(cluster: u32) -> u64 {
    u64::from(cluster) * u64::from(CLUSTER)
}
