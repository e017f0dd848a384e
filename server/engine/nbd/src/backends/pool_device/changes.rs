//! Changes to an export: writes, trims and zeroes, of whole pages and of parts.

use tmem_core::{MAX_PAGE, Outcome};

use super::fault::{Fault, all_stored, errno};
use super::span::Span;
use super::{PAGES_AT_ONCE, PoolExport, SCRATCH, Scratch};
use crate::backend::{Backend, Pages, Snapshot};
use crate::protocol::Errno;

/// Zeros to be written.
static ZEROS: [u8; MAX_PAGE] = [0; MAX_PAGE];
impl PoolExport {
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

    /// Change pages of a cluster that a snapshot may need; the snapshot gives way if there is not room for both.
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

    pub(super) fn write(&self, offset: u64, data: &[u8]) -> Result<(), Fault> {
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
    pub(super) fn blank(&self, part: Span, allocate: bool) -> Result<(), Fault> {
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

    /// Make a span read as zeros: whole pages are removed unless they are to stay allocated.
    pub(super) fn zero(&self, span: Span, allocate: bool) -> Result<(), Fault> {
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

    pub(super) fn remove(&self, pages: Span) -> Result<(), Fault> {
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
}
