//! The way of a read: the read-ahead buffer, then the cache, then the SAN; a piece of one stripe at a time.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::cache::link::Session;
use super::cache::put_queue::Put;
use super::changes::groups;
use super::readahead::buffer::Fetch;
use super::shared::{Busy, Shared};
use super::stripes::Version;
use crate::backend::Ticket;
use crate::client::{Answer, Failure};
use crate::protocol::Errno;

/// Most bytes of a hint that are fetched.
const MOST_HINTED: u64 = 4 << 20;

/// The bytes of whole pages; the volume's last page may be shorter.
type Bytes = Arc<Vec<u8>>;
type Done = Box<dyn FnOnce(Result<Bytes, Errno>) + Send>;

/// A read that was cut in pieces.
struct Joined {
    offset: u64,
    length: usize,
    parts: Mutex<Vec<Option<Bytes>>>,
    errno: Mutex<Option<Errno>>,
    left: AtomicUsize,
    ticket: Mutex<Option<(Ticket, Busy)>>,
}

/// Read and answer.
pub fn serve(shared: &Arc<Shared>, offset: u64, length: u32, ticket: Ticket, busy: Busy) {
    shared.counters.reads.add(1);
    shared.counters.read_bytes.add(length.into());
    let pages = offset / shared.page..(offset + u64::from(length)).div_ceil(shared.page);
    let end = shared.size.load(Ordering::Relaxed).div_ceil(shared.page);
    let advice = shared.ahead.advise(&pages, end, &shared.counters);
    let scan = shared.scan > 0 && advice.run > shared.scan;
    let parts = groups(&pages).flat_map(|part| shared.ahead.cut(part));
    let parts: Vec<Range<u64>> = parts.collect();
    let joined = Arc::new(Joined {
        offset: offset - pages.start * shared.page,
        length: length as usize,
        parts: Mutex::new(vec![None; parts.len()]),
        errno: Mutex::new(None),
        left: AtomicUsize::new(parts.len()),
        ticket: Mutex::new(Some((ticket, busy))),
    });
    for (number, part) in parts.into_iter().enumerate() {
        let (joined, whole) = (joined.clone(), offset);
        let done = Box::new(move |result| joined.part(number, result, whole));
        piece(shared, part, scan, done);
    }
    ahead(shared, &advice.ahead, scan);
}

impl Joined {
    fn part(&self, number: usize, result: Result<Bytes, Errno>, offset: u64) {
        match result {
            Ok(bytes) => {
                self.parts.lock().unwrap_or_else(PoisonError::into_inner)[number] = Some(bytes)
            }
            Err(errno) => *self.errno.lock().unwrap_or_else(PoisonError::into_inner) = Some(errno),
        }
        if self.left.fetch_sub(1, Ordering::SeqCst) > 1 {
            return;
        }
        let Some((ticket, busy)) = self
            .ticket
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        else {
            return;
        };
        let parts = std::mem::take(&mut *self.parts.lock().unwrap_or_else(PoisonError::into_inner));
        let errno = *self.errno.lock().unwrap_or_else(PoisonError::into_inner);
        ticket.reply(|reply| {
            if let Some(errno) = errno {
                return Err(errno);
            }
            let mut into = reply.data(offset, self.length);
            let mut skip = self.offset as usize;
            for bytes in parts.iter().flatten() {
                let from = &bytes[skip.min(bytes.len())..];
                let count = from.len().min(into.len());
                into[..count].copy_from_slice(&from[..count]);
                into = &mut into[count..];
                skip = 0;
            }
            if into.is_empty() {
                Ok(())
            } else {
                Err(Errno::Io)
            }
        });
        drop(busy);
    }
}

/// Fetch soon what a client says it will read.
pub fn prefetch(shared: &Arc<Shared>, offset: u64, length: u32) {
    let end = offset + u64::from(length).min(MOST_HINTED);
    let pages: Vec<u64> = (offset / shared.page..end.div_ceil(shared.page)).collect();
    ahead(shared, &pages, false);
}

/// Fetch pages that nobody asked for yet.
fn ahead(shared: &Arc<Shared>, pages: &[u64], scan: bool) {
    let mut at = 0;
    while at < pages.len() {
        let same = pages[at..]
            .windows(2)
            .take_while(|pair| pair[1] == pair[0] + 1);
        let count = same.count() + 1;
        groups(&(pages[at]..pages[at] + count as u64))
            .for_each(|part| fetch_ahead(shared, part, scan));
        at += count;
    }
}

fn fetch_ahead(shared: &Arc<Shared>, pages: Range<u64>, scan: bool) {
    let Some(version) = shared.stripes.look(pages.start) else {
        return;
    };
    let Some(fetch) = shared.ahead.enter(pages) else {
        return;
    };
    shared
        .counters
        .readahead_issued
        .add(fetch.pages.end - fetch.pages.start);
    let (back, entered) = (shared.clone(), fetch.clone());
    let busy = Busy::new(shared);
    let done = Box::new(move |result: Result<Bytes, Errno>| {
        let first = vec![entered.pages.start];
        let (unchanged, _, stripe) = back.stripes.unchanged(first, |page| (*page, version));
        let bytes = result.ok().filter(|_| !unchanged.is_empty());
        let sound = bytes.is_some();
        let waiters = entered.finish(bytes);
        drop(stripe);
        if !sound {
            back.ahead.forget(&entered);
        }
        let bytes = if waiters.is_empty() {
            None
        } else {
            entered.bytes()
        };
        waiters.into_iter().for_each(|waiter| waiter(bytes.clone()));
        drop(busy);
    });
    lookup(shared, fetch.pages.clone(), scan, true, done);
}

/// Read pages of one stripe, from the read-ahead buffer if they are there or on their way.
fn piece(shared: &Arc<Shared>, pages: Range<u64>, scan: bool, done: Done) {
    match shared.ahead.find(&pages) {
        Some(fetches) => gather(shared, pages, scan, fetches, Vec::new(), done),
        None => lookup(shared, pages, scan, false, done),
    }
}

/// Add what the fetches bring, one after the other. Where one brings nothing, read anew.
fn gather(
    shared: &Arc<Shared>,
    pages: Range<u64>,
    scan: bool,
    mut fetches: Vec<(Arc<Fetch>, Range<u64>)>,
    mut bytes: Vec<u8>,
    done: Done,
) {
    if fetches.is_empty() {
        shared.counters.ahead_pages.add(pages.end - pages.start);
        return done(Ok(Arc::new(bytes)));
    }
    let ((fetch, taken), shared, page) = (fetches.remove(0), shared.clone(), shared.page);
    let (from, to) = (
        taken.start - fetch.pages.start,
        taken.end - fetch.pages.start,
    );
    fetch.wait(Box::new(move |brought| match brought {
        Some(brought) => {
            let end = brought.len().min((to * page) as usize);
            bytes.extend_from_slice(&brought[(from * page) as usize..end]);
            gather(&shared, pages, scan, fetches, bytes, done);
        }
        None => lookup(&shared, pages, scan, false, done),
    }));
}

/// A lookup of pages under way.
struct Lookup {
    shared: Arc<Shared>,
    pages: Range<u64>,
    /// Bytes of the volume that the pages have.
    length: usize,
    /// What a put needs; None: nothing is to be put.
    version: Option<Version>,
    begun: Instant,
    scan: bool,
    /// Nobody waits for it: one of many at once, whose times tell little.
    ahead: bool,
    /// Cache and SAN are asked at once.
    race: bool,
    state: Mutex<State>,
}

struct State {
    done: Option<Done>,
    /// The cache was asked at the same time, and has missed.
    missed: bool,
}

/// Read pages of one stripe from the cache, and what it has not from the SAN.
fn lookup(shared: &Arc<Shared>, pages: Range<u64>, scan: bool, ahead: bool, done: Done) {
    let size = shared.size.load(Ordering::Relaxed);
    let end = (pages.end * shared.page).min(size);
    let counters = &shared.counters;
    let version = shared.stripes.look(pages.start);
    let lookup = Arc::new(Lookup {
        shared: shared.clone(),
        length: end.saturating_sub(pages.start * shared.page) as usize,
        version,
        begun: Instant::now(),
        scan,
        ahead,
        race: shared.judge.race(),
        state: Mutex::new(State {
            done: Some(done),
            missed: false,
        }),
        pages,
    });
    let Some(session) = worth_asking(&lookup) else {
        counters.miss_pages.add(lookup.count());
        return lookup.ask_san(0..lookup.length, Vec::new());
    };
    lookup.clone().ask_cache(session);
    if lookup.race {
        counters.raced.add(1);
        lookup.ask_san(0..lookup.length, Vec::new());
    }
}

/// The session to ask, if the cache is worth asking.
fn worth_asking(lookup: &Lookup) -> Option<Arc<Session>> {
    let (shared, counters) = (&lookup.shared, &lookup.shared.counters);
    if lookup.version.is_none() {
        counters.bypass_changing.add(1);
        return None;
    }
    let Some(session) = shared.link.session().filter(|session| !session.is_busy()) else {
        counters.bypass_away.add(1);
        return None;
    };
    if !shared.read_only && !shared.seen.any(&lookup.pages) {
        counters.bypass_unknown.add(1);
        return None;
    }
    Some(session)
}

impl Lookup {
    fn count(&self) -> u64 {
        self.pages.end - self.pages.start
    }

    /// The completion, if it was not called yet.
    fn done(&self) -> Option<Done> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.done.take()
    }

    fn finish(&self, result: Result<Bytes, Errno>) {
        if let Some(done) = self.done() {
            done(result);
        }
    }

    fn ask_cache(self: Arc<Self>, session: Arc<Session>) {
        let page = self.shared.page;
        let length = (self.count() * page) as usize;
        let bound = self.shared.judge.bound(length);
        let (asked, offset) = (session.clone(), self.pages.start * page);
        let done = Box::new(move |answer: Result<Answer, Failure>| {
            let shared = &self.shared;
            match answer {
                Ok(answer) => {
                    let took = self.begun.elapsed();
                    if !self.ahead && shared.judge.cache_took(length, took) {
                        shared.link.rest(&session);
                    }
                    return self.found(answer);
                }
                Err(Failure::TimedOut) => {
                    shared.counters.late.add(1);
                    if shared.judge.cache_late(length, bound, self.begun) {
                        shared.link.rest(&session);
                    }
                }
                Err(_) => shared.link.lost(&session, "a read failed"),
            }
            if !self.race {
                shared.counters.miss_pages.add(self.count());
                self.ask_san(0..self.length, Vec::new());
            }
        });
        asked.read(offset, length as u32, bound, done);
    }

    /// The cache answered: fetch what it has not.
    fn found(self: Arc<Self>, answer: Answer) {
        let (shared, page) = (self.shared.clone(), self.shared.page as usize);
        let missing: usize = answer
            .holes
            .iter()
            .map(|(_, length)| *length as usize)
            .sum();
        let misses = (missing / page) as u64;
        let hits = self.count() - misses;
        let lost = shared.seen.count(&self.pages).saturating_sub(hits as u32);
        shared.judge.looked_up(hits as u32, misses as u32, lost);
        let mut data = answer.data;
        data.truncate(self.length);
        if misses == 0 {
            if let Some(done) = self.done() {
                shared.counters.hit_pages.add(hits);
                shared.counters.san_reads_saved.add(1);
                shared.counters.san_bytes_saved.add(self.length as u64);
                shared.hit_latency.note(self.begun.elapsed());
                done(Ok(Arc::new(data)));
            }
            return;
        }
        shared.counters.miss_pages.add(misses);
        if self.race {
            self.state
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .missed = true;
            return;
        }
        shared.counters.hit_pages.add(hits);
        let first = answer
            .holes
            .iter()
            .map(|(at, _)| *at as usize)
            .min()
            .unwrap_or(0);
        let last = answer
            .holes
            .iter()
            .map(|(at, length)| (at + length) as usize)
            .max();
        let range = first..last.unwrap_or(0).min(self.length);
        shared
            .counters
            .san_bytes_saved
            .add((self.length - range.len()) as u64);
        self.ask_san(range, data);
    }

    /// Read a range of the pages' bytes from the SAN into what the cache gave.
    fn ask_san(self: &Arc<Self>, range: Range<usize>, mut data: Vec<u8>) {
        let (shared, back) = (self.shared.clone(), self.clone());
        let (offset, asked, length) = (self.pages.start * shared.page, Instant::now(), range.len());
        shared.counters.san_reads.add(1);
        shared.counters.san_read_bytes.add(length as u64);
        let start = range.start as u64;
        let done = Box::new(move |result: Result<Vec<u8>, Errno>| {
            let shared = &back.shared;
            let read = match result {
                Ok(read) => read,
                Err(errno) => {
                    shared.counters.errors.add(1);
                    back.finish(Err(errno));
                    return;
                }
            };
            if !back.ahead {
                shared.judge.san_took(length, asked.elapsed());
            }
            shared.miss_latency.note(back.begun.elapsed());
            let whole = if data.is_empty() {
                read
            } else {
                data[range.clone()].copy_from_slice(&read);
                data
            };
            let whole = Arc::new(whole);
            back.finish(Ok(whole.clone()));
            back.put(range, &whole);
        });
        shared.backing.read(offset + start, length, done);
    }

    /// Offer what the SAN gave to the cache, if that makes sense.
    fn put(&self, range: Range<usize>, whole: &[u8]) {
        let (shared, page) = (&self.shared, self.shared.page as usize);
        let Some(version) = self.version else {
            return;
        };
        let missed = self
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .missed;
        if shared.link.session().is_none() || (self.race && !missed) {
            return;
        }
        let pages = range.start / page..range.end / page; // a short last page is not put
        let count = pages.len() as u64;
        let counters = &shared.counters;
        if self.scan {
            return counters.puts_dropped_scan.add(count);
        }
        if !shared.judge.admit() {
            return counters.puts_dropped_thrash.add(count);
        }
        if count > 0 {
            let data = whole[pages.start * page..pages.end * page].to_vec();
            let put = Put {
                page: self.pages.start + pages.start as u64,
                data,
                version,
            };
            if !shared.puts.offer(put) {
                counters.puts_dropped_full.add(count);
            }
        }
    }
}
