//! What a connection and the tickets taken on it share: the socket, and the replies not yet sent.
//!
//! Whoever finishes a reply sends it, as far as the socket takes it; what is left over waits in the queue for the
//! connection's own thread. So no thread but that one ever waits for a slow client. Replies are never cut by others.
//! A ticket counts, and holds its memory, until its reply is sent.
//! Locking: `queue` is the last lock taken but the budget's.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::budget::{Budget, Hold};
use super::{Context, Contexts, Reply};
use crate::backend::counts::Counts;
use crate::protocol::Errno;
use crate::wire::{Out, Socket};

/// Buffers kept for replies of tickets, and the bytes of them.
const SPARE: usize = 32;
const SPARE_BYTES: usize = 2 << 20;

/// What the reply to a request must know of it.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    pub cookie: u64,
    pub command: u16,
    pub offset: u64,
    pub length: u32,
    /// The client takes structured replies.
    pub structured: bool,
    /// A read's reply must not be cut.
    pub whole: bool,
    /// One extent a context is enough.
    pub one: bool,
    pub contexts: Contexts,
}

impl Head {
    /// The number of a context on the wire.
    pub fn context_id(context: Context) -> u32 {
        match context {
            Context::Allocation => 1,
            Context::Private => 2,
        }
    }
}

/// The sending half of a connection.
pub struct Link {
    pub socket: Socket,
    /// Of the other end, in words.
    pub address: String,
    pub budget: Arc<Budget>,
    /// Bytes of requests and replies that it holds. Changed by `budget` alone.
    pub held: AtomicUsize,
    /// What its thread stands in line for is there.
    pub granted: AtomicBool,
    /// Its thread waits for the client to send what it began, or to take a reply.
    pub expects: AtomicBool,
    queue: Mutex<Queue>,
    /// Replies in the queue.
    queued: AtomicUsize,
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
    spare: Vec<Out>,
}

/// Replies to be sent: one that a ticket answered, or others without.
struct Parcel {
    out: Out,
    ticket: Option<Hold>,
}

impl Queue {
    fn keep(&mut self, mut out: Out) {
        out.clear();
        let kept: usize = self.spare.iter().map(Out::capacity).sum();
        if self.spare.len() < SPARE && kept + out.capacity() <= SPARE_BYTES {
            self.spare.push(out);
        }
    }
}

impl Link {
    pub fn new(socket: Socket, address: String, budget: Arc<Budget>) -> Link {
        Link {
            socket,
            address,
            budget,
            held: AtomicUsize::new(0),
            granted: AtomicBool::new(false),
            expects: AtomicBool::new(false),
            queue: Mutex::default(),
            queued: AtomicUsize::new(0),
            tickets: AtomicUsize::new(0),
            wanted: AtomicBool::new(false),
            counts: OnceLock::new(),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn spare(&self) -> Out {
        self.queue().spare.pop().unwrap_or_default()
    }

    /// Send what is queued and then `out` as far as that goes without waiting; false if some is left.
    pub fn send(&self, out: Option<Out>) -> bool {
        self.send_parcel(out.map(|out| Parcel { out, ticket: None }))
    }

    fn send_parcel(&self, parcel: Option<Parcel>) -> bool {
        let mut queue = self.queue();
        queue.waiting.extend(parcel);
        let all = loop {
            let Some(first) = queue.waiting.front_mut() else {
                break true;
            };
            if !self.socket.send_some(&mut first.out) {
                break false;
            }
            let sent = queue.waiting.pop_front().expect("it has a front");
            queue.keep(sent.out);
            if let Some(hold) = sent.ticket {
                drop(hold);
                self.tickets.fetch_sub(1, Ordering::SeqCst);
            }
        };
        self.queued.store(queue.waiting.len(), Ordering::SeqCst);
        all
    }

    /// Whether it holds what it holds because of its client, and not because of its backend.
    pub fn waits_for_client(&self) -> bool {
        self.expects.load(Ordering::SeqCst) || self.queued.load(Ordering::SeqCst) > 0
    }

    /// Count an answer, if it is an error.
    pub fn count_error(&self, answer: Result<(), Errno>) {
        if let (Err(errno), Some(counts)) = (answer, self.counts.get()) {
            counts.error(errno);
        }
    }
}

/// The way to a ticket.
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

    /// The duty to answer this request. Whoever takes it returns [`super::Served::Later`]. There is one of each request.
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
            self.link.socket.wake();
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
