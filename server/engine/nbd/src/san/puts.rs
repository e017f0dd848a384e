//! Putting what the SAN gave into the cache: off the way of reads, in batches, bounded, and never an older page.
//!
//! A put carries the version of its stripe from before the SAN was read. It is sent under the stripe's lock, and only if
//! the version is still the same; the flush of a later change goes out after that lock was passed, on the same
//! connection, so the cache carries it out later. The queue is bounded in bytes, and what does not fit is dropped; no
//! more than [`WINDOW`] bytes are unanswered at once, so that a flush waits behind no more than that, and a cache that
//! stands still keeps nobody waiting in a full socket.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Shared;
use super::link::Session;
use super::stripes::{GROUP, Version};
use crate::client::Failure;
use crate::protocol::Errno;

/// Most bytes that wait.
const QUEUE: usize = 16 << 20;
/// Most bytes sent and not answered.
const WINDOW: usize = 96 << 10;
/// Most bytes of one put.
const BATCH: usize = 64 << 10;
/// How long puts gather before they are sent.
const GATHER: Duration = Duration::from_millis(1);

/// Whole pages of one stripe.
pub struct Put {
    pub page: u64,
    pub data: Vec<u8>,
    pub version: Version,
}

#[derive(Default)]
pub struct Puts {
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Put>,
    bytes: usize,
    under_way: usize,
    /// Sessions on which a put failed.
    failed: Vec<Arc<Session>>,
    asleep: bool,
    stopped: bool,
}

impl Puts {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Take pages along, if there is room; whether there was.
    pub fn offer(&self, put: Put) -> bool {
        let mut queue = self.queue();
        if queue.stopped || queue.bytes + put.data.len() > QUEUE {
            return false;
        }
        queue.bytes += put.data.len();
        queue.waiting.push_back(put);
        if std::mem::take(&mut queue.asleep) {
            self.wake.notify_all();
        }
        true
    }

    pub fn stop(&self) {
        let mut queue = self.queue();
        queue.stopped = true;
        queue.waiting.clear();
        self.wake.notify_all();
    }

    /// Nothing waits, and all that was sent is answered.
    pub fn is_idle(&self) -> bool {
        let queue = self.queue();
        queue.bytes == 0 && queue.under_way == 0
    }

    fn sleep<'q>(&self, queue: MutexGuard<'q, Queue>) -> MutexGuard<'q, Queue> {
        self.wake
            .wait(queue)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Some puts that make one, when there are any and the window has room; None when stopped.
    fn next(&self, page: usize) -> Option<Put> {
        let mut queue = self.queue();
        while queue.waiting.is_empty() && !queue.stopped && queue.failed.is_empty() {
            queue.asleep = true;
            queue = self.sleep(queue);
            if !queue.stopped && queue.failed.is_empty() {
                drop(queue);
                std::thread::sleep(GATHER);
                queue = self.queue();
            }
        }
        while queue.under_way >= WINDOW && !queue.stopped && queue.failed.is_empty() {
            queue = self.sleep(queue);
        }
        if queue.stopped {
            return None;
        }
        let mut put = queue.waiting.pop_front().unwrap_or(Put {
            page: 0,
            data: Vec::new(),
            version: Version::default(),
        });
        if put.data.len() > BATCH {
            let rest = put.data.split_off(BATCH);
            queue.waiting.push_front(Put {
                page: put.page + (BATCH / page) as u64,
                data: rest,
                version: put.version,
            });
        }
        while let Some(next) = queue.waiting.front() {
            let end = put.page + (put.data.len() / page) as u64;
            let one = next.page == end && next.page / GROUP == put.page / GROUP;
            if !one || next.version != put.version || put.data.len() + next.data.len() > BATCH {
                break;
            }
            let next = queue.waiting.pop_front().expect("it has a front");
            put.data.extend_from_slice(&next.data);
        }
        queue.bytes -= put.data.len();
        queue.under_way += put.data.len();
        Some(put)
    }

    fn answered(&self, length: usize, failed: Option<Arc<Session>>) {
        let mut queue = self.queue();
        queue.under_way -= length;
        queue.failed.extend(failed);
        self.wake.notify_all();
    }
}

/// The thread that puts.
pub fn run(shared: &Arc<Shared>) {
    let page = shared.page as usize;
    while let Some(put) = shared.puts.next(page) {
        let failed = std::mem::take(&mut shared.puts.queue().failed);
        for session in failed {
            shared.link.lost(&session, "a put was not answered");
        }
        if !put.data.is_empty() {
            send(shared, put.page, &put.data, put.version);
        }
    }
}

fn send(shared: &Arc<Shared>, page: u64, data: &[u8], version: Version) {
    let pages = page..page + (data.len() / shared.page as usize) as u64;
    let Some(stripe) = shared.stripes.unchanged(page, version) else {
        shared
            .counters
            .puts_dropped_stale
            .add(pages.end - pages.start);
        return shared.puts.answered(data.len(), None);
    };
    // Asked for under the stripe's lock: a change that finds this session down begins after it.
    let Some(session) = shared.link.session() else {
        return shared.puts.answered(data.len(), None);
    };
    shared.seen.add(&pages);
    shared.counters.puts.add(1);
    shared.counters.put_pages.add(pages.end - pages.start);
    let (on, back, length) = (session.clone(), shared.clone(), data.len());
    let done = Box::new(move |answer: Result<_, Failure>| match answer {
        Ok(_) => back.puts.answered(length, None),
        Err(Failure::Errno(Errno::NoSpace)) => {
            back.counters.puts_refused.add(1);
            back.puts.answered(length, None);
        }
        Err(_) => back.puts.answered(length, Some(on)),
    });
    shared.link.put(&session, page, data, done);
    drop(stripe);
}
