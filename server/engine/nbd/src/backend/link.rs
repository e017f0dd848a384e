//! What a connection and its tickets share: the socket, and the replies not yet sent.
//!
//! Whoever finishes a reply sends as much of it as the socket takes; the rest is queued for the connection's own
//! thread, so no other thread ever waits for a slow client. Replies are never interleaved. A ticket counts, and holds
//! its memory, until its reply is sent.
//! Locking: `queue` is the last lock taken but the budget's.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::budget::{Budget, Hold, Peer};
use super::counts::Counts;
use super::reply::{Head, Reply};
use crate::protocol::Errno;
use crate::wire::{SendBuffer, Socket};

/// Buffers kept for replies of tickets, and the bytes of them.
const SPARE: usize = 32;
const SPARE_BYTES: usize = 2 << 20;

/// The sending half of a connection.
pub struct Link {
    pub peer: Arc<Peer>,
    queue: Mutex<Queue>,
    /// Tickets whose replies are not sent.
    pub tickets: AtomicUsize,
    /// The connection's thread wants to be woken when a ticket is answered.
    pub wanted: AtomicBool,
    /// Of the export that was opened.
    pub counts: OnceLock<Arc<Counts>>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Parcel>,
    spare: Vec<SendBuffer>,
}

/// Replies to be sent: one that a ticket answered, or others without.
struct Parcel {
    out: SendBuffer,
    ticket: Option<Hold>,
}

impl Queue {
    fn keep(&mut self, mut out: SendBuffer) {
        out.clear();
        let kept: usize = self.spare.iter().map(SendBuffer::capacity).sum();
        if self.spare.len() < SPARE && kept + out.capacity() <= SPARE_BYTES {
            self.spare.push(out);
        }
    }
}

impl Link {
    pub fn new(socket: Socket, address: String, budget: Arc<Budget>) -> Link {
        Link {
            peer: Arc::new(Peer::new(socket, address, budget)),
            queue: Mutex::default(),
            tickets: AtomicUsize::new(0),
            wanted: AtomicBool::new(false),
            counts: OnceLock::new(),
        }
    }

    pub fn socket(&self) -> &Socket {
        &self.peer.socket
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn spare(&self) -> SendBuffer {
        self.queue().spare.pop().unwrap_or_default()
    }

    /// Send what is queued and then `out` as far as that goes without waiting; false if some is left.
    pub fn send(&self, out: Option<SendBuffer>) -> bool {
        self.send_parcel(out.map(|out| Parcel { out, ticket: None }))
    }

    fn send_parcel(&self, parcel: Option<Parcel>) -> bool {
        let mut queue = self.queue();
        queue.waiting.extend(parcel);
        let all = loop {
            let Some(first) = queue.waiting.front_mut() else {
                break true;
            };
            if !self.socket().send_some(&mut first.out) {
                break false;
            }
            let sent = queue.waiting.pop_front().expect("it has a front");
            queue.keep(sent.out);
            if let Some(hold) = sent.ticket {
                drop(hold);
                self.tickets.fetch_sub(1, Ordering::SeqCst);
            }
        };
        let queued = queue.waiting.len();
        self.peer.queued.store(queued, Ordering::SeqCst);
        all
    }

    /// Count an answer, if it is an error.
    pub fn count_error(&self, answer: Result<(), Errno>) {
        if let (Err(errno), Some(counts)) = (answer, self.counts.get()) {
            counts.error(errno);
        }
    }
}

/// Hands out the ticket of a request.
pub struct Later<'a> {
    link: &'a Arc<Link>,
    head: Head,
    /// The memory of the request, which the ticket takes over.
    hold: Cell<Option<Hold>>,
}

impl<'a> Later<'a> {
    pub(crate) fn new(link: &'a Arc<Link>, head: Head, hold: Hold) -> Later<'a> {
        let hold = Cell::new(Some(hold));
        Later { link, head, hold }
    }

    /// The memory, where no ticket took it.
    pub(crate) fn hold(self) -> Option<Hold> {
        self.hold.take()
    }

    /// The ticket of this request. Whoever takes it returns [`super::Served::Later`]. Each request has one.
    pub fn take(&self) -> Ticket {
        self.link.tickets.fetch_add(1, Ordering::Relaxed);
        Ticket {
            link: self.link.clone(),
            head: self.head,
            hold: self.hold.take(),
            answered: false,
        }
    }
}

/// The duty to answer a request, from any thread and in any order. Never waits for the client. Dropped unanswered, it
/// answers EIO.
pub struct Ticket {
    link: Arc<Link>,
    head: Head,
    hold: Option<Hold>,
    answered: bool,
}

impl Ticket {
    /// Answer a request that brings no data.
    pub fn finish(self, result: Result<(), Errno>) {
        self.reply(|_| result);
    }

    /// Answer with what `fill` puts into the reply, as `serve` does.
    pub fn reply(mut self, fill: impl FnOnce(&mut Reply<'_>) -> Result<(), Errno>) {
        self.answer(fill);
    }

    fn answer(&mut self, fill: impl FnOnce(&mut Reply<'_>) -> Result<(), Errno>) {
        let mut out = self.link.spare();
        let mut reply = Reply::new(&mut out, self.head);
        let result = fill(&mut reply);
        self.link.count_error(reply.finish(result));
        self.answered = true;
        let ticket = self.hold.take();
        let all = self.link.send_parcel(Some(Parcel { out, ticket }));
        if !all || self.link.wanted.load(Ordering::SeqCst) {
            self.link.socket().wake();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.answered {
            self.answer(|_| Err(Errno::Io));
        }
    }
}
