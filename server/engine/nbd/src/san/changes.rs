//! The way of a change: versions first, then the SAN and the cache at once, then the answer, then a put of what was written.

use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::cache::put_queue::Put;
use super::shared::{Busy, Shared};
use super::stripes::{Changing, GROUP};
use super::volume::backing::Change;
use crate::backend::Ticket;
use crate::protocol::Errno;

/// A change of which SAN and cache are told.
struct UnderWay {
    shared: Arc<Shared>,
    change: Change,
    stripes: Changing,
    fua: bool,
    /// SAN and cache, if not yet done.
    left: AtomicU8,
    result: Mutex<Result<(), Errno>>,
    ticket: Mutex<Option<(Ticket, Busy)>>,
}

/// Carry a change out and answer it.
pub fn serve(shared: &Arc<Shared>, change: Change, fua: bool, ticket: Ticket, busy: Busy) {
    let Some((offset, length)) = extent(&change) else {
        let answer = Box::new(move |result| {
            ticket.finish(result);
            drop(busy);
        });
        return shared.backing.change(Change::Flush, answer);
    };
    let pages = offset / shared.page..(offset + length).div_ceil(shared.page);
    count(shared, &change, length);
    let under_way = Arc::new(UnderWay {
        stripes: shared.stripes.begin(&pages),
        shared: shared.clone(),
        change: change.clone(),
        fua,
        left: AtomicU8::new(2),
        result: Mutex::new(Ok(())),
        ticket: Mutex::new(Some((ticket, busy))),
    });
    shared.ahead.invalidate(&pages);
    let san = under_way.clone();
    shared
        .backing
        .change(change, Box::new(move |result| san.in_san(result)));
    shared
        .link
        .forget(pages, Box::new(move || under_way.half()));
}

/// Where a change changes bytes, and how many.
fn extent(change: &Change) -> Option<(u64, u64)> {
    match *change {
        Change::Write {
            offset, ref data, ..
        } => Some((offset, data.len() as u64)),
        Change::Trim { offset, length } | Change::Zero { offset, length, .. } => {
            Some((offset, length.into()))
        }
        Change::Flush => None,
    }
}

fn count(shared: &Shared, change: &Change, length: u64) {
    let counters = &shared.counters;
    counters.san_writes.add(1);
    if let Change::Write { .. } = change {
        counters.writes.add(1);
        counters.written_bytes.add(length);
    } else {
        counters.trims.add(1);
    }
}

impl UnderWay {
    /// The SAN is done; where the change must be durable and is none by itself, not yet.
    fn in_san(self: Arc<Self>, result: Result<(), Errno>) {
        if self.fua && result.is_ok() {
            let durable = self.clone();
            let done = Box::new(move |result| durable.ended(result));
            return self.shared.backing.change(Change::Flush, done);
        }
        self.ended(result);
    }

    fn ended(&self, result: Result<(), Errno>) {
        *self.result.lock().unwrap_or_else(PoisonError::into_inner) = result;
        self.half();
    }

    /// SAN or cache is done; the second of them ends it.
    fn half(&self) {
        if self.left.fetch_sub(1, Ordering::SeqCst) > 1 {
            return;
        }
        let result = *self.result.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.stripes.end(&self.stripes);
        if result.is_ok() {
            self.put();
        } else {
            self.shared.counters.errors.add(1);
        }
        let ticket = self
            .ticket
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some((ticket, busy)) = ticket {
            ticket.finish(result);
            drop(busy);
        }
    }

    /// Offer the whole pages that were written to the cache, unless a later change began.
    fn put(&self) {
        let Change::Write { offset, data, .. } = &self.change else {
            return;
        };
        if self.shared.link.session().is_none() {
            return;
        }
        let page = self.shared.page;
        let whole = offset.div_ceil(page)..(offset + data.len() as u64) / page;
        for part in groups(&whole) {
            let Some(version) = self.stripes.version(part.start) else {
                continue;
            };
            let from = (part.start * page - offset) as usize;
            let length = ((part.end - part.start) * page) as usize;
            let data = data[from..from + length].to_vec();
            if !self.shared.puts.offer(Put {
                page: part.start,
                data,
                version,
            }) {
                self.shared
                    .counters
                    .puts_dropped_full
                    .add(part.end - part.start);
            }
        }
    }
}

/// A range of pages, cut where stripes meet.
pub fn groups(pages: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let (mut at, end) = (pages.start, pages.end);
    std::iter::from_fn(move || {
        let next = ((at / GROUP + 1) * GROUP).min(end);
        let part = at..next;
        at = next;
        (!part.is_empty()).then_some(part)
    })
}
