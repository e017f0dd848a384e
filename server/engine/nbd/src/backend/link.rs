//! What a connection and the tickets taken on it share: the socket, and the replies not yet sent.
//!
//! Whoever finishes a reply sends it, as far as the socket takes it; what is left over waits in the queue for the
//! connection's own thread. So no thread but that one ever waits for a slow client. Replies are never cut by others.
//! Locking: `queue` is the last lock taken.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::{Context, Contexts, Out, Reply};
use crate::counts::Counts;
use crate::protocol::Errno;
use crate::socket::Socket;

/// Buffers kept for replies of tickets.
const SPARE: usize = 32;

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
    queue: Mutex<Queue>,
    /// Tickets out.
    pub tickets: AtomicUsize,
    /// Bytes asked for by the requests of tickets that are out.
    pub ticket_bytes: AtomicUsize,
    /// The connection's thread wants to be woken when a ticket is answered.
    pub wanted: AtomicBool,
    /// Of the export that was opened.
    pub counts: OnceLock<Arc<Counts>>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Out>,
    spare: Vec<Out>,
}

impl Link {
    pub fn new(socket: Socket) -> Link {
        Link {
            socket,
            queue: Mutex::default(),
            tickets: AtomicUsize::new(0),
            ticket_bytes: AtomicUsize::new(0),
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
        let mut queue = self.queue();
        queue.waiting.extend(out);
        while let Some(first) = queue.waiting.front_mut() {
            if !self.socket.send_some(first) {
                return false;
            }
            let mut done = queue.waiting.pop_front().expect("it has a front");
            if queue.spare.len() < SPARE {
                done.clear();
                queue.spare.push(done);
            }
        }
        true
    }

    /// Count an answer, if it is an error.
    pub fn count_error(&self, answer: Result<(), Errno>) {
        if let (Err(errno), Some(counts)) = (answer, self.counts.get()) {
            counts.error(errno);
        }
    }

    fn answered(&self, head: &Head) {
        let bytes = head.length as usize;
        self.ticket_bytes.fetch_sub(bytes, Ordering::SeqCst);
        self.tickets.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The way to a ticket.
pub struct Later<'a> {
    link: &'a Arc<Link>,
    head: Head,
}

impl<'a> Later<'a> {
    pub(crate) fn new(link: &'a Arc<Link>, head: Head) -> Later<'a> {
        Later { link, head }
    }

    /// The duty to answer this request. Whoever takes it returns [`super::Served::Later`].
    pub fn take(&self) -> Ticket {
        self.link.tickets.fetch_add(1, Ordering::Relaxed);
        let bytes = self.head.length as usize;
        self.link.ticket_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ticket {
            link: self.link.clone(),
            head: self.head,
            answered: false,
        }
    }
}

/// The duty to answer a request, from any thread and in any order. Never waits for the client. Dropped unanswered, it
/// answers EIO.
pub struct Ticket {
    link: Arc<Link>,
    head: Head,
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
        let all = self.link.send(Some(out));
        self.link.answered(&self.head);
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
