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
//! Where another process holds a lock of the arena and does not let go, a request is to be tried again (`Errno::Again`): it holds
//! nothing while it waits.
//! Locking: a cluster's stripe is taken shared by those who write or remove whole pages, exclusively by those who change parts of
//! one, which read it first, so that no acknowledged write of others is undone. Reads take none.

pub mod snapshot;
mod span;

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::{Duration, Instant};

use tmem_core::{
    CLUSTER, Error, Fetch, LastPage, MAX_PAGE, Oid, Outcome, Pool, Reason, waiting_at_most,
};

use crate::backend::{Backend, Context, ExportInfo, Later, Refusal, Reply, Request, Served};
use crate::protocol::{Errno, allocation};
use snapshot::{Pages, Saving, Snapshot};
use span::{Missing, Span};

/// Locks that clusters share.
const STRIPES: usize = 64;
/// Bytes of a read or write served at once: as large as stays in a processor's cache until it is sent, since every piece costs
/// the client a chunk more to take in.
const PIECE: u32 = 512 << 10;
/// Zeros to be written.
static ZEROS: [u8; MAX_PAGE] = [0; MAX_PAGE];
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

    /// Keep no more for a snapshot.
    pub(crate) fn forget(&self, snapshot: &Arc<Snapshot>) {
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
                "an export on pool {:?} has 1 to {most} bytes, not {size}",
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

    /// Run `whole` on the whole pages of a span, `part` on what is less than a page, each with its stripe taken. `removes`: what is
    /// not there stays so.
    fn change(
        &self,
        span: Span,
        removes: bool,
        whole: &dyn Fn(Span) -> Result<(), Fault>,
        part: &dyn Fn(Span) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        // Whoever waits for the thaw is counted as refused no more than once.
        if self.pool.frozen().map_err(|_| Errno::Io)? {
            return Err(Fault::Frozen);
        }
        for cluster in span.clusters(self.page) {
            let stripe = self.stripe(cluster.offset);
            let [before, pages, after] = cluster.parts(self.page);
            if pages.length > 0 {
                let snapshot = stripe.read().map_err(|_| Errno::Io)?;
                self.inside(pages)?;
                self.change_with(snapshot.as_deref(), pages, removes, whole)?;
            }
            for edge in [before, after].into_iter().filter(|edge| edge.length > 0) {
                let snapshot = stripe.write().map_err(|_| Errno::Io)?;
                self.inside(edge)?;
                self.change_with(snapshot.as_deref(), edge, removes, part)?;
            }
        }
        Ok(())
    }

    /// Change pages of a cluster that a snapshot may want; it gives way where there is not room for both.
    fn change_with(
        &self,
        snapshot: Option<&Snapshot>,
        span: Span,
        removes: bool,
        change: &dyn Fn(Span) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let Some(snapshot) = snapshot else {
            return change(span);
        };
        let end = span.end().div_ceil(self.page);
        snapshot.keep(Pages::between(span.offset / self.page, end), removes);
        let done = change(span);
        if done == Err(Fault::NoMemory) {
            let gave_up = snapshot.give_up("a write needed the memory");
            gave_up.map_err(errno)?;
            self.pool.readmit();
            return change(span);
        }
        done
    }

    /// The end may have moved since the server looked.
    fn inside(&self, span: Span) -> Result<(), Errno> {
        let inside = span.end() <= self.size();
        if inside { Ok(()) } else { Err(Errno::NoSpace) }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Fault> {
        let all = Span {
            offset,
            length: data.len() as u64,
        };
        let whole = |span: Span| self.put(span.offset, &data[span.range(all)]);
        let part =
            |span: Span| self.patch(span, |bytes| bytes.copy_from_slice(&data[span.range(all)]));
        self.change(all, false, &whole, &part)
    }

    /// Put whole pages.
    fn put(&self, offset: u64, pages: &[u8]) -> Result<(), Fault> {
        SCRATCH.with_borrow_mut(|Scratch { outcomes, .. }| {
            self.replace(self.index(offset), pages, outcomes)
        })
    }

    fn replace(&self, first: u32, pages: &[u8], outcomes: &mut Vec<Outcome>) -> Result<(), Fault> {
        let replaced = self.pool.replace_pages(&self.oid, first, pages, outcomes);
        replaced.map_err(errno)?;
        all_stored(outcomes)
    }

    /// Change a part of a page.
    fn patch(&self, part: Span, change: impl FnOnce(&mut [u8])) -> Result<(), Fault> {
        SCRATCH.with_borrow_mut(|scratch| {
            let whole = self.whole(part);
            self.get_page(scratch, whole)?;
            change(&mut scratch.page.change()[part.range(whole)]);
            self.amend(scratch, whole)
        })
    }

    /// Zero a part of a page; a page that is all zeros then is removed, unless it is to stay allocated.
    fn blank(&self, part: Span, allocate: bool) -> Result<(), Fault> {
        SCRATCH.with_borrow_mut(|scratch| {
            let whole = self.whole(part);
            if !self.get_page(scratch, whole)? && !allocate {
                return Ok(());
            }
            scratch.page.change()[part.range(whole)].fill(0);
            let page = scratch.page.bytes();
            if allocate || page != &ZEROS[..page.len()] {
                self.amend(scratch, whole)
            } else {
                self.remove(whole)
            }
        })
    }

    /// Put the scratch's page, of which a part is new.
    fn amend(&self, scratch: &mut Scratch, whole: Span) -> Result<(), Fault> {
        let Scratch { page, outcomes, .. } = scratch;
        self.replace(self.index(whole.offset), page.bytes(), outcomes)
    }

    /// The page that a part is of.
    fn whole(&self, part: Span) -> Span {
        Span {
            offset: part.offset / self.page * self.page,
            length: self.page,
        }
    }

    /// Get a page into the scratch, zeros where there is none; whether there is one.
    fn get_page(&self, scratch: &mut Scratch, whole: Span) -> Result<bool, Errno> {
        let index = self.index(whole.offset);
        match self.pool.get_last(&self.oid, index, &mut scratch.page) {
            Ok(Fetch::Hit) => Ok(true),
            Ok(Fetch::Miss) => {
                scratch.page.change().fill(0);
                Ok(false)
            }
            Ok(Fetch::Corrupt) => Err(Errno::Io),
            Err(error) => Err(errno(error)),
        }
    }

    fn read(&self, span: Span, reply: &mut Reply<'_>) -> Result<(), Errno> {
        SCRATCH.with_borrow_mut(|scratch| {
            let data = reply.data(span.offset, span.length as usize);
            let [before, pages, after] = span.parts(self.page);
            let mut missing = Missing::default();
            missing.add(
                self.read_part(scratch, before, &mut data[before.range(span)])?,
                before,
            );
            if pages.length > 0 {
                let into = &mut data[pages.range(span)];
                let first = self.index(pages.offset);
                let got = self
                    .pool
                    .get_pages(&self.oid, first, into, false, &mut scratch.fetched);
                got.map_err(errno)?;
                if scratch.fetched.contains(&Fetch::Corrupt) {
                    return Err(Errno::Io);
                }
            }
            let holes = pages.length > 0 && scratch.fetched.contains(&Fetch::Miss);
            if !holes && missing.run.is_none() && after.length == 0 {
                return Ok(());
            }
            let fetched = std::mem::take(&mut scratch.fetched);
            let tail = self.read_part(scratch, after, &mut data[after.range(span)])?;
            if pages.length > 0 {
                for (n, fetch) in (0..).zip(&fetched) {
                    let page = Span {
                        offset: pages.offset + n * self.page,
                        length: self.page,
                    };
                    missing.next(*fetch == Fetch::Miss, page, reply);
                }
            }
            scratch.fetched = fetched;
            missing.next(tail, after, reply);
            missing.end(reply);
            Ok(())
        })
    }

    /// Read less than a page; whether nothing is there.
    fn read_part(&self, scratch: &mut Scratch, part: Span, into: &mut [u8]) -> Result<bool, Errno> {
        if part.length == 0 {
            return Ok(false);
        }
        let whole = self.whole(part);
        let held = self.get_page(scratch, whole)?;
        into.copy_from_slice(&scratch.page.bytes()[part.range(whole)]);
        Ok(!held)
    }

    /// Have a span read as zeros: whole pages are removed, unless they are to stay allocated.
    fn zero(&self, span: Span, allocate: bool) -> Result<(), Fault> {
        let remove = |span: Span| self.remove(span);
        let fill = |span: Span| self.put_zeros(span);
        let part = |span: Span| self.blank(span, allocate);
        if allocate {
            self.change(span, false, &fill, &part)
        } else {
            self.change(span, true, &remove, &part)
        }
    }

    fn put_zeros(&self, pages: Span) -> Result<(), Fault> {
        let mut pieces = (pages.offset..pages.end()).step_by(ZEROS.len());
        pieces.try_for_each(|at| {
            let length = (pages.end() - at).min(ZEROS.len() as u64);
            self.put(at, &ZEROS[..length as usize])
        })
    }

    fn remove(&self, pages: Span) -> Result<(), Fault> {
        let (mut index, end) = (pages.offset / self.page, pages.end() / self.page);
        while index < end {
            let count = (end - index).min(PAGES_AT_ONCE);
            let removed = self
                .pool
                .discard_pages(&self.oid, index as u32, count as u32);
            if !removed.map_err(errno)? {
                return Err(Fault::Frozen);
            }
            index += count;
        }
        Ok(())
    }

    fn extents(&self, span: Span, reply: &mut Reply<'_>) -> Result<(), Errno> {
        reply.begin(Context::Allocation);
        SCRATCH.with_borrow_mut(|scratch| self.extents_with(&mut scratch.held, span, reply))
    }

    fn extents_with(
        &self,
        held: &mut Vec<bool>,
        span: Span,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let (mut index, last) = (span.offset / self.page, (span.end() - 1) / self.page);
        let mut skip = span.offset % self.page;
        while index <= last {
            let count = (last + 1 - index).min(PAGES_AT_ONCE);
            let asked = self
                .pool
                .has_pages(&self.oid, index as u32, count as u32, held);
            asked.map_err(errno)?;
            for run in held.chunk_by(|a, b| a == b) {
                let hole = allocation::HOLE | allocation::ZERO;
                let flags = if run[0] { 0 } else { hole };
                let length = run.len() as u64 * self.page - std::mem::take(&mut skip);
                if !reply.extent(length, flags) {
                    return Ok(());
                }
            }
            index += count;
        }
        Ok(())
    }
}

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

/// What a store's error is to a client of an export.
fn errno(error: Error) -> Errno {
    match error {
        Error::Busy { .. } => Errno::Again,
        _ => Errno::Io,
    }
}

/// Why blocks were not changed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The store is full.
    NoMemory,
    /// The pool is frozen: the request waits until it is thawed.
    Frozen,
    Errno(Errno),
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Fault {
        Fault::Errno(errno)
    }
}

impl From<Fault> for Errno {
    fn from(fault: Fault) -> Errno {
        match fault {
            Fault::NoMemory => Errno::NoSpace,
            Fault::Frozen => Errno::Again,
            Fault::Errno(errno) => errno,
        }
    }
}

fn all_stored(outcomes: &[Outcome]) -> Result<(), Fault> {
    let fault = |outcome: &Outcome| match outcome {
        Outcome::Stored { .. } => None,
        Outcome::Refused { reason, .. } => Some(match reason {
            Reason::Memory | Reason::NoSpace => Fault::NoMemory,
            Reason::Frozen => Fault::Frozen,
            Reason::Quota | Reason::PoorCompression => Errno::NoSpace.into(),
        }),
    };
    outcomes.iter().find_map(fault).map_or(Ok(()), Err)
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

    /// What is under way of each cluster is done, and nothing more begun, before the snapshot is there for all of them.
    fn snapshot(self: Arc<Self>, shadow: Pool) -> Result<Saving, Refusal> {
        let begun = Instant::now();
        let mut stripes = self.all_stripes();
        if stripes[0].is_some() {
            return Err(Refusal::Policy("it is being saved already".into()));
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
            export: self,
        })
    }

    /// What lies beyond a nearer end is removed.
    fn resize(&self, bytes: u64) -> Result<(), Refusal> {
        self.check_size(bytes)?;
        let saved = self.stripe(0).read().is_ok_and(|it| it.is_some());
        if bytes < self.size() && saved {
            return Err(Refusal::Policy(
                "it is being saved, and can only grow until that is done".into(),
            ));
        }
        if bytes < self.size() && self.pool.frozen().unwrap_or(false) {
            return Err(Refusal::Policy(
                "its pool is frozen, and it can only grow until that is thawed".into(),
            ));
        }
        let before = self.size.swap(bytes, Ordering::SeqCst);
        // Whoever looked at the old end is done once every stripe has been passed on.
        for stripe in &self.stripes {
            drop(stripe.write());
        }
        let failed = |_| Refusal::Invalid("what is beyond the new end could not be removed".into());
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
