//! An export on one object of a pool: page `n` of the object holds the bytes from `n` pages on.
//!
//! What was never written, or was trimmed, is no page and reads as zeros. What was acknowledged is in the arena, so there is
//! nothing to flush. A page that the pool refuses is ENOSPC to the write, a corrupt one EIO to the read. After ENOSPC each page is the
//! old or the new one: pages are replaced or kept, never put. What is less than a page is read, changed and put again as a whole;
//! a page of which zeros are left after a trim is removed.
//! Once a connection's buffers are as large as its requests need, nothing here takes memory from the heap.
//! What would change a frozen pool is to be tried again by the server until it is thawed (`Errno::Again`); reads go on.
//! While a snapshot of it is read, pages are kept before they change; where a write finds no room the snapshot goes, and then the
//! write is tried again.
//! Where another process holds a lock of the arena and does not release it, a request is to be tried again (`Errno::Again`): it holds
//! nothing while it waits.
//! Locking: a cluster's stripe is taken shared by those who write or remove whole pages, exclusively by those who change parts of
//! one, which read it first, so that no acknowledged write of others is undone. Reads take none.

mod changes;
mod fault;
mod reads;
mod span;

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::Instant;

use tmem_core::{CLUSTER, Fetch, LastPage, Oid, Outcome, Pool};

use crate::backend::{
    Backend, ExportInfo, Later, Refusal, Reply, Request, Saving, Served, Snapshot, briefly,
};
use crate::protocol::Errno;
use span::Span;

/// Locks that clusters share.
const STRIPES: usize = 64;
/// Bytes of a read or write served at once: as large as stays in a processor's cache until it is sent, since every piece costs
/// the client a chunk more to take in.
const PIECE: u32 = 512 << 10;
/// Pages looked up or removed by one call.
const PAGES_AT_ONCE: u64 = 4096;

/// How an export on a pool behaves.
#[derive(Clone, Debug, Default)]
pub struct PoolExportSettings {
    pub description: String,
    pub read_only: bool,
    pub multi_conn: bool,
}

pub struct PoolExport {
    pool: Pool,
    oid: Oid,
    page: u64,
    size: AtomicU64,
    settings: PoolExportSettings,
    /// Each has the snapshot that is read, if one is.
    stripes: [Stripe; STRIPES],
}

type Stripe = RwLock<Option<Arc<Snapshot>>>;

/// One thread's buffers.
#[derive(Default)]
struct Scratch {
    /// A page of which a part is wanted: requests that are next to each other find it here.
    page: LastPage,
    fetched: Vec<Fetch>,
    outcomes: Vec<Outcome>,
    held: Vec<bool>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl PoolExport {
    /// An export of `size` bytes on the pages of `oid`.
    pub fn new(
        pool: Pool,
        oid: Oid,
        size: u64,
        settings: PoolExportSettings,
    ) -> Result<PoolExport, Refusal> {
        let page = pool.page_size() as u64;
        let export = PoolExport {
            pool,
            oid,
            page,
            size: AtomicU64::new(0),
            settings,
            stripes: std::array::from_fn(|_| RwLock::default()),
        };
        export.check_size(size)?;
        export.size.store(size, Ordering::SeqCst);
        Ok(export)
    }

    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    fn all_stripes(&self) -> Vec<RwLockWriteGuard<'_, Option<Arc<Snapshot>>>> {
        let stripes = self.stripes.iter();
        let taken = stripes.map(|it| it.write().unwrap_or_else(PoisonError::into_inner));
        taken.collect()
    }

    /// Stop keeping pages for a snapshot.
    fn forget(&self, snapshot: &Arc<Snapshot>) {
        for stripe in &self.stripes {
            let mut held = stripe.write().unwrap_or_else(PoisonError::into_inner);
            if held
                .as_ref()
                .is_some_and(|held| Arc::ptr_eq(held, snapshot))
            {
                *held = None;
            }
        }
    }

    fn check_size(&self, size: u64) -> Result<(), Refusal> {
        let most = self.page << 32;
        if size == 0 || size > most {
            return Err(Refusal::Invalid(format!(
                "an export of pool {:?} can have 1 to {most} bytes, not {size}",
                self.pool.name()
            )));
        }
        Ok(())
    }

    fn index(&self, offset: u64) -> u32 {
        (offset / self.page) as u32
    }

    fn stripe(&self, offset: u64) -> &Stripe {
        &self.stripes[(self.index(offset) / CLUSTER) as usize % STRIPES]
    }

    /// The page that a part is of.
    fn whole(&self, part: Span) -> Span {
        Span {
            offset: part.offset / self.page * self.page,
            length: self.page,
        }
    }
}

impl Backend for PoolExport {
    fn info(&self) -> ExportInfo {
        ExportInfo {
            description: self.settings.description.clone(),
            read_only: self.settings.read_only,
            multi_conn: self.settings.multi_conn,
            preferred_block: self.page as u32,
            piece: PIECE.max(self.page as u32),
            ..ExportInfo::default()
        }
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::SeqCst)
    }

    fn serve(&self, request: Request<'_>, reply: &mut Reply<'_>, _: &Later<'_>) -> Served {
        let span = |offset, length: u32| Span {
            offset,
            length: length.into(),
        };
        Served::Now(briefly(|| match request {
            Request::Read { offset, length } => self.read(span(offset, length), reply),
            Request::Write { offset, data, .. } => self.write(offset, data).map_err(Errno::from),
            Request::Trim { offset, length, .. } => {
                self.zero(span(offset, length), false).map_err(Errno::from)
            }
            Request::WriteZeroes {
                offset,
                length,
                no_hole,
                ..
            } => self
                .zero(span(offset, length), no_hole)
                .map_err(Errno::from),
            Request::Flush | Request::Cache { .. } => Ok(()),
            Request::BlockStatus { offset, length, .. } => {
                self.extents(span(offset, length), reply)
            }
        }))
    }

    /// Requests in progress on any cluster finish, and none starts, before the snapshot exists for all clusters.
    fn snapshot(self: Arc<Self>, shadow: Pool) -> Result<Saving, Refusal> {
        let begun = Instant::now();
        let mut stripes = self.all_stripes();
        if stripes[0].is_some() {
            return Err(Refusal::Policy("it is already being saved".into()));
        }
        let pages = self.size().div_ceil(self.page);
        let snapshot = Arc::new(Snapshot::new(self.pool.clone(), shadow, self.oid, pages));
        for stripe in &mut stripes {
            **stripe = Some(snapshot.clone());
        }
        drop(stripes);
        Ok(Saving {
            snapshot,
            paused: begun.elapsed(),
            forget: Box::new(move |snapshot| self.forget(snapshot)),
        })
    }

    /// Pages beyond a smaller size are removed.
    fn resize(&self, bytes: u64) -> Result<(), Refusal> {
        self.check_size(bytes)?;
        let saved = self.stripe(0).read().is_ok_and(|it| it.is_some());
        if bytes < self.size() && saved {
            return Err(Refusal::Policy(
                "it is being saved: until that is done it can only grow".into(),
            ));
        }
        if bytes < self.size() && self.pool.frozen().unwrap_or(false) {
            return Err(Refusal::Policy(
                "its pool is frozen: until that is thawed it can only grow".into(),
            ));
        }
        let before = self.size.swap(bytes, Ordering::SeqCst);
        // Whoever looked at the old end is done once every stripe has been passed on.
        for stripe in &self.stripes {
            drop(stripe.write());
        }
        let failed =
            |_| Refusal::Invalid("the blocks beyond the new end could not be removed".into());
        let rest = bytes.next_multiple_of(self.page).saturating_sub(bytes);
        if bytes < before && rest > 0 {
            let edge = Span {
                offset: bytes,
                length: rest,
            };
            let _exclusive = self.stripe(bytes).write();
            self.blank(edge, false).map_err(failed)?;
        }
        let first = bytes.next_multiple_of(self.page);
        if first < before {
            let length = before.next_multiple_of(self.page) - first;
            let beyond = Span {
                offset: first,
                length,
            };
            self.remove(beyond).map_err(failed)?;
        }
        Ok(())
    }
}
