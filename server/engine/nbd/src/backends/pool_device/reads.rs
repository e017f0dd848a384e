//! Reads of an export, and block status: which pages exist.

use tmem_core::Fetch;

use super::fault::errno;
use super::span::{Missing, Span};
use super::{PAGES_AT_ONCE, PoolExport, SCRATCH, Scratch};
use crate::backend::{Context, Reply};
use crate::protocol::{Errno, allocation};

impl PoolExport {
    pub(super) fn read(&self, span: Span, reply: &mut Reply<'_>) -> Result<(), Errno> {
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

    /// Get a page into the scratch, zeros where there is none; whether there is one.
    pub(super) fn get_page(&self, scratch: &mut Scratch, whole: Span) -> Result<bool, Errno> {
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

    pub(super) fn extents(&self, span: Span, reply: &mut Reply<'_>) -> Result<(), Errno> {
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
