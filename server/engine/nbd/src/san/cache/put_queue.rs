//! What waits to be put into the cache. The queue is bounded in bytes, and what does not fit is dropped; no more than
//! [`WINDOW`] bytes are unanswered at once, so that a flush waits behind no more than that, and a cache that stands still
//! keeps nobody waiting in a full socket.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::link::Session;
use crate::san::stripes::{GROUP, Version};

/// Most bytes that wait.
const QUEUE: usize = 16 << 20;
/// Most bytes sent and not answered; with half of them answered, more are sent.
const WINDOW: usize = 128 << 10;
/// Most bytes of one put.
const BATCH: usize = 64 << 10;
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
    pub fn next(&self, page: usize, gather: impl Fn() -> Duration) -> Option<(Vec<Put>, Lost)> {
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

    pub fn answered(&self, length: usize, failed: Option<Arc<Session>>) {
        let mut queue = self.queue();
        queue.under_way -= length;
        queue.failed.extend(failed);
        self.tell(queue);
    }
}

type Lost = Vec<Arc<Session>>;
