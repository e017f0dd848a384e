//! Putting what the SAN gave into the cache: off the way of reads, many at once, bounded, and never an older page.
//!
//! A put carries the version of its stripe from before the SAN was read. It is sent under the stripe's lock, and only if
//! the version is still the same; the flush of a later change goes out after that lock was passed, on the same
//! connection, so the cache carries it out later. The queue is bounded in bytes, and what does not fit is dropped; no
//! more than [`WINDOW`] bytes are unanswered at once, so that a flush waits behind no more than that, and a cache that
//! stands still keeps nobody waiting in a full socket.
//!
//! Puts gather for some milliseconds: each time that the thread, the server and the reader of its answers are woken costs
//! whoever reads at that moment more than a page's put does. While the volume is being changed they wait less, as any
//! change of a stripe makes the puts of all its pages worthless.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::link::Session;
use crate::client::{Done, Failure};
use crate::protocol::Errno;
use crate::san::Shared;
use crate::san::stripes::{GROUP, Version};

/// Most bytes that wait.
const QUEUE: usize = 16 << 20;
/// Most bytes sent and not answered; with half of them answered, more are sent.
const WINDOW: usize = 128 << 10;
/// Most bytes of one put.
const BATCH: usize = 64 << 10;
/// How long puts gather before they are sent, unless they are many: by default, and after a change.
const GATHER: Duration = Duration::from_millis(10);
const GATHER_BRIEFLY: Duration = Duration::from_millis(1);

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
    asleep: Asleep,
    stopped: bool,
}

/// For what the thread is to be woken.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Asleep {
    #[default]
    No,
    ForAny,
    ForMany,
    ForRoom,
}

impl Queue {
    fn is_woken(&self) -> bool {
        let wanted = match self.asleep {
            Asleep::No => false,
            Asleep::ForAny => !self.waiting.is_empty(),
            Asleep::ForMany => self.bytes >= BATCH,
            Asleep::ForRoom => self.under_way <= WINDOW / 2,
        };
        wanted || self.stopped || !self.failed.is_empty()
    }

    /// Neighbours that make one put.
    fn take(&mut self, page: usize, most: usize) -> Option<Put> {
        let mut put = self.waiting.pop_front()?;
        if put.data.len() > most {
            let rest = put.data.split_off(most);
            self.waiting.push_front(Put {
                page: put.page + (most / page) as u64,
                data: rest,
                version: put.version,
            });
        }
        while let Some(next) = self.waiting.front() {
            let end = put.page + (put.data.len() / page) as u64;
            let one = next.page == end && next.page / GROUP == put.page / GROUP;
            if !one || next.version != put.version || put.data.len() + next.data.len() > most {
                break;
            }
            let next = self.waiting.pop_front().expect("it has a front");
            put.data.extend_from_slice(&next.data);
        }
        self.bytes -= put.data.len();
        self.under_way += put.data.len();
        Some(put)
    }
}

impl Puts {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wake the thread, if there is what it waits for.
    fn tell(&self, mut queue: MutexGuard<'_, Queue>) {
        if queue.asleep != Asleep::No && queue.is_woken() {
            queue.asleep = Asleep::No;
            drop(queue);
            self.wake.notify_all();
        }
    }

    /// Take pages along, if there is room; whether there was.
    pub fn offer(&self, put: Put) -> bool {
        let mut queue = self.queue();
        if queue.stopped || queue.bytes + put.data.len() > QUEUE {
            return false;
        }
        queue.bytes += put.data.len();
        queue.waiting.push_back(put);
        self.tell(queue);
        true
    }

    pub fn stop(&self) {
        let mut queue = self.queue();
        queue.stopped = true;
        queue.waiting.clear();
        self.tell(queue);
    }

    /// Nothing waits, and all that was sent is answered.
    pub fn is_idle(&self) -> bool {
        let queue = self.queue();
        queue.bytes == 0 && queue.under_way == 0
    }

    fn sleep<'q>(
        &self,
        mut queue: MutexGuard<'q, Queue>,
        what: Asleep,
        limit: Duration,
    ) -> MutexGuard<'q, Queue> {
        let deadline = Instant::now().checked_add(limit);
        queue.asleep = what;
        while queue.asleep != Asleep::No && !queue.is_woken() {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                break;
            }
            let woken = self.wake.wait_timeout(queue, left.unwrap_or(limit));
            queue = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        queue.asleep = Asleep::No;
        queue
    }

    /// Puts to be sent at once, with sessions that are of no more use; None when stopped. `gather` says for how long to wait
    /// for more.
    fn next(&self, page: usize, gather: impl Fn() -> Duration) -> Option<(Vec<Put>, Lost)> {
        let mut queue = self.queue();
        if queue.waiting.is_empty() {
            queue = self.sleep(queue, Asleep::ForAny, Duration::MAX);
            queue = self.sleep(queue, Asleep::ForMany, gather());
        }
        queue = self.sleep(queue, Asleep::ForRoom, Duration::MAX);
        if queue.stopped {
            return None;
        }
        let mut puts = Vec::new();
        while queue.under_way < WINDOW {
            let room = BATCH.min(WINDOW - queue.under_way);
            let Some(put) = queue.take(page, room) else {
                break;
            };
            puts.push(put);
        }
        Some((puts, std::mem::take(&mut queue.failed)))
    }

    fn answered(&self, length: usize, failed: Option<Arc<Session>>) {
        let mut queue = self.queue();
        queue.under_way -= length;
        queue.failed.extend(failed);
        self.tell(queue);
    }
}

type Lost = Vec<Arc<Session>>;

/// The thread that puts.
pub fn run(shared: &Arc<Shared>) {
    let page = shared.page as usize;
    let mut changes = 0;
    let changes_now = || shared.counters.san_writes.get();
    while let Some((puts, lost)) = shared.puts.next(page, || match changes_now() == changes {
        true => GATHER,
        false => GATHER_BRIEFLY,
    }) {
        changes = changes_now();
        for session in lost {
            shared.link.lost(&session, "a put was not answered");
        }
        if !puts.is_empty() {
            send(shared, puts);
        }
    }
}

fn send(shared: &Arc<Shared>, puts: Vec<Put>) {
    let page = shared.page as usize;
    let count = |put: &Put| (put.data.len() / page) as u64;
    let (puts, stale, stripes) = shared
        .stripes
        .unchanged(puts, |put| (put.page, put.version));
    for put in stale {
        shared.counters.puts_dropped_stale.add(count(&put));
        shared.puts.answered(put.data.len(), None);
    }
    // Asked for under the stripes' locks: a change that finds this session down begins after them.
    let Some(session) = shared.link.session() else {
        let length = puts.iter().map(|put| put.data.len()).sum();
        return shared.puts.answered(length, None);
    };
    for put in &puts {
        shared.seen.add(&(put.page..put.page + count(put)));
        shared.counters.puts.add(1);
        shared.counters.put_pages.add(count(put));
    }
    let all = puts.iter().map(|put| {
        let done = answer(shared, &session, put.data.len());
        (put.page, &put.data[..], done)
    });
    shared.link.put(&session, all);
    drop(stripes);
}

fn answer(shared: &Arc<Shared>, session: &Arc<Session>, length: usize) -> Done {
    let (on, back) = (session.clone(), shared.clone());
    Box::new(move |answer| match answer {
        Ok(_) => back.puts.answered(length, None),
        Err(Failure::Errno(Errno::NoSpace)) => {
            back.counters.puts_refused.add(1);
            back.puts.answered(length, None);
        }
        Err(_) => back.puts.answered(length, Some(on)),
    })
}
