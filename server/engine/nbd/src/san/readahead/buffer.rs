//! The read-ahead buffer: pages that were fetched before they were asked for.
//!
//! A fetch is entered here when it begins. Reads of its pages wait for it or take from it, but only while it is *sound*: no
//! change of its stripe began since it did. A change takes the fetches of its pages out before it is acknowledged, and a
//! fetch during which one began is not entered at its end; its waiters fetch for themselves. So nobody gets a page here
//! that is older than an acknowledged write. The buffer is bounded: the oldest fetches leave.
//! Locking: `buffer` is taken under a stripe's lock, and a fetch's `state` under either.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::streams::{Advice, Streams};
use crate::san::counters::Counters;

/// Called with the fetch's bytes, or None where they are not to be had.
pub type Waiter = Box<dyn FnOnce(Option<Arc<Vec<u8>>>) + Send>;

/// Neighbouring pages on their way, or there.
pub struct Fetch {
    pub pages: Range<u64>,
    state: Mutex<State>,
}

enum State {
    UnderWay(Vec<Waiter>),
    Done(Option<Arc<Vec<u8>>>),
}

pub struct Ahead {
    streams: Mutex<Streams>,
    buffer: Mutex<Buffer>,
    /// Most pages in the buffer.
    room: u64,
}

#[derive(Default)]
struct Buffer {
    fetches: HashMap<u64, (Arc<Fetch>, bool)>,
    /// Pages in the order in which they came; some have left since.
    order: VecDeque<(u64, Arc<Fetch>)>,
    used: u64,
    wasted: u64,
}

impl Fetch {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Call `waiter` when the bytes are there, at once if they are.
    pub fn wait(&self, waiter: Waiter) {
        let mut state = self.state();
        let done = match &mut *state {
            State::UnderWay(waiters) => return waiters.push(waiter),
            State::Done(bytes) => bytes.clone(),
        };
        drop(state);
        waiter(done);
    }

    /// What it came to.
    pub fn bytes(&self) -> Option<Arc<Vec<u8>>> {
        match &*self.state() {
            State::UnderWay(_) => None,
            State::Done(bytes) => bytes.clone(),
        }
    }

    /// The fetch is over. Those to be called with what it came to, without a lock held.
    pub fn finish(&self, bytes: Option<Arc<Vec<u8>>>) -> Vec<Waiter> {
        match std::mem::replace(&mut *self.state(), State::Done(bytes)) {
            State::UnderWay(waiters) => waiters,
            State::Done(_) => Vec::new(),
        }
    }
}

impl Ahead {
    /// At most `depth` pages ahead of a stream, and `room` pages in all.
    pub fn new(depth: u64, room: u64) -> Ahead {
        Ahead {
            streams: Mutex::new(Streams::new(depth)),
            buffer: Mutex::default(),
            room,
        }
    }

    fn buffer(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn advise(&self, pages: &Range<u64>, end: u64, counters: &Counters) -> Advice {
        let streams = self.streams.lock();
        let mut streams = streams.unwrap_or_else(PoisonError::into_inner);
        let (used, wasted) = {
            let mut buffer = self.buffer();
            (
                std::mem::take(&mut buffer.used),
                std::mem::take(&mut buffer.wasted),
            )
        };
        if used + wasted > 0 {
            counters.readahead_used.add(used);
            counters.readahead_wasted.add(wasted);
            streams.hear(used, wasted);
        }
        streams.advise(pages, end)
    }

    /// Pages cut in two where the buffer has the first of them and not all: those that it has are not fetched again.
    pub fn cut(&self, pages: Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
        let buffer = self.buffer();
        let there = |page: &u64| buffer.fetches.contains_key(page);
        let at = pages.start + pages.clone().take_while(there).count() as u64;
        let parts = [pages.start..at, at..pages.end];
        parts.into_iter().filter(|part| !part.is_empty())
    }

    /// The fetches that together have all these pages, if there are, each with the pages to be taken from it: others of
    /// its pages may have changed since. They count as used.
    pub fn find(&self, pages: &Range<u64>) -> Option<Vec<(Arc<Fetch>, Range<u64>)>> {
        let mut buffer = self.buffer();
        if buffer.fetches.is_empty()
            || !pages.clone().all(|page| buffer.fetches.contains_key(&page))
        {
            return None;
        }
        let mut found: Vec<(Arc<Fetch>, Range<u64>)> = Vec::new();
        for page in pages.clone() {
            let (fetch, used) = buffer.fetches.get_mut(&page)?;
            let newly = !std::mem::replace(used, true);
            match found.last_mut() {
                Some((last, taken)) if Arc::ptr_eq(last, fetch) => taken.end = page + 1,
                _ => found.push((fetch.clone(), page..page + 1)),
            }
            buffer.used += u64::from(newly);
        }
        Some(found)
    }

    /// Enter a fetch that begins, as far as its pages are not there already; None if they all are.
    pub fn enter(&self, pages: Range<u64>) -> Option<Arc<Fetch>> {
        let mut buffer = self.buffer();
        let mut missing = pages.skip_while(|page| buffer.fetches.contains_key(page));
        let start = missing.next()?;
        let end = missing
            .take_while(|page| !buffer.fetches.contains_key(page))
            .last();
        let pages = start..end.map_or(start + 1, |last| last + 1);
        let fetch = Arc::new(Fetch {
            pages: pages.clone(),
            state: Mutex::new(State::UnderWay(Vec::new())),
        });
        for page in pages {
            buffer.fetches.insert(page, (fetch.clone(), false));
            buffer.order.push_back((page, fetch.clone()));
        }
        while buffer.order.len() as u64 > self.room {
            if let Some((page, fetch)) = buffer.order.pop_front() {
                buffer.remove(page, Some(&fetch));
            }
        }
        Some(fetch)
    }

    /// A fetch came to nothing, or a change began meanwhile.
    pub fn forget(&self, fetch: &Arc<Fetch>) {
        let mut buffer = self.buffer();
        fetch
            .pages
            .clone()
            .for_each(|page| buffer.remove(page, Some(fetch)));
    }

    /// These pages change.
    pub fn invalidate(&self, pages: &Range<u64>) {
        let mut buffer = self.buffer();
        if pages.end - pages.start <= buffer.fetches.len() as u64 {
            pages.clone().for_each(|page| buffer.remove(page, None));
        } else {
            buffer.fetches.retain(|page, _| !pages.contains(page));
        }
    }
}

impl Buffer {
    fn remove(&mut self, page: u64, only: Option<&Arc<Fetch>>) {
        let there = self.fetches.get(&page);
        if there.is_some_and(|(fetch, _)| only.is_none_or(|only| Arc::ptr_eq(only, fetch))) {
            let (_, used) = self.fetches.remove(&page).expect("it is there");
            self.wasted += u64::from(!used);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_takes_its_pages_out_and_leaves_the_others() {
        let ahead = Ahead::new(8, 100);
        let fetch = ahead.enter(10..20).unwrap();
        assert!(ahead.enter(12..18).is_none());
        assert_eq!(ahead.enter(15..25).unwrap().pages, 20..25);
        fetch.finish(Some(Arc::new(vec![7; 10])));
        assert_eq!(ahead.find(&(18..22)).unwrap().len(), 2);
        ahead.invalidate(&(19..21));
        assert!(ahead.find(&(18..20)).is_none() && ahead.find(&(18..19)).is_some());
        assert_eq!(ahead.enter(10..30).unwrap().pages, 19..21);
        let found = ahead.find(&(18..21)).unwrap();
        let taken: Vec<_> = found.into_iter().map(|(_, pages)| pages).collect();
        assert_eq!(
            taken,
            [18..19, 19..21],
            "of the older fetch, what has not changed"
        );
    }

    #[test]
    fn a_read_that_goes_on_beyond_the_buffer_is_cut_at_its_end() {
        let ahead = Ahead::new(8, 100);
        ahead.enter(10..20);
        let cut = |pages: Range<u64>| -> Vec<(u64, u64)> {
            ahead
                .cut(pages)
                .map(|part| (part.start, part.end))
                .collect()
        };
        assert_eq!(cut(15..25), [(15, 20), (20, 25)]);
        assert_eq!(cut(12..20), [(12, 20)]);
        assert_eq!(cut(8..12), [(8, 12)]);
    }

    #[test]
    fn the_oldest_leave_and_count_as_wasted_unless_they_were_used() {
        let ahead = Ahead::new(8, 10);
        ahead.enter(0..10);
        ahead.find(&(0..2));
        ahead.enter(100..105);
        assert!(ahead.find(&(4..5)).is_none() && ahead.find(&(5..6)).is_some());
        let counters = Counters::default();
        ahead.advise(&(0..1), 100, &counters);
        let counted = (
            counters.readahead_used.get(),
            counters.readahead_wasted.get(),
        );
        assert_eq!(counted, (3, 3));
    }
}
