//! The transmission phase: requests are served where they lie in the input, and all replies are sent before the next
//! wait.
//!
//! One receive takes as many requests as have arrived, and their replies are sent together. A connection holds at most
//! one piece of a read or write, or one whole request where the backend takes no pieces; large ones draw on the
//! server's budget.

mod check;
mod deferred;
mod polling;
mod sending;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::handshake::Session;
use super::input::Input;
use super::shared::Shared;
use crate::backend::{Backend, Head, Hold, Later, Link, Reply, Request, Served};
use crate::exports::Others;
use crate::protocol::{Errno, RequestHeader, command, disconnect, flag};
use crate::wire::SendBuffer;
use check::{Checks, is_write};
use deferred::{Backoff, Deferred, request_of};
use polling::Polling;

/// While the client has more bytes than this still to take, nothing more is served.
const HOLD_AT: usize = 1 << 20;
/// Bytes of a write handed over at once, at most: they are compressed while the next are on their way, and while the
/// processor's cache still has them.
const WRITTEN_AT_ONCE: u32 = 128 << 10;

/// Most deferred requests of a connection; one more blocks the requests behind it.
const MOST_DEFERRED: usize = 64;

/// How a transmission ends.
pub enum End {
    /// The client sent a disconnect.
    Farewell,
    /// The client closed the connection, or the server is stopping.
    Closed,
}

pub struct Transmission<'c> {
    shared: &'c Shared,
    link: &'c Arc<Link>,
    session: &'c Session,
    backend: &'c dyn Backend,
    checks: Checks,
    others: Others,
    /// Nothing has been received since the other connections were last checked.
    settled: bool,
    input: Input,
    out: SendBuffer,
    polling: Polling,
    /// A ticket has been taken: other threads may be sending.
    late: bool,
    /// In their order.
    deferred: VecDeque<Deferred>,
}

impl<'c> Transmission<'c> {
    pub fn new(
        shared: &'c Shared,
        link: &'c Arc<Link>,
        session: &'c Session,
        input: Input,
    ) -> Transmission<'c> {
        Transmission {
            shared,
            link,
            session,
            backend: &*session.opened.backend,
            checks: Checks::new(&session.info, session.structured, session.contexts),
            others: session.opened.others(link),
            settled: false,
            input,
            out: SendBuffer::default(),
            polling: Polling::new(shared.settings.poll),
            late: false,
            deferred: VecDeque::new(),
        }
    }

    /// Serve requests until the connection ends.
    pub fn run(&mut self) -> io::Result<End> {
        loop {
            if !self.need(RequestHeader::SIZE)? {
                let whole = self.input.len() == 0;
                return if whole {
                    Ok(End::Closed)
                } else {
                    Err(disconnect())
                };
            }
            let head = self.input.peek(RequestHeader::SIZE);
            let head = head.and_then(|head| RequestHeader::parse(head.try_into().ok()?));
            let header = head.ok_or_else(disconnect)?;
            self.input.consume(RequestHeader::SIZE);
            if header.command == command::DISC {
                return Ok(End::Farewell);
            }
            self.make_way()?;
            self.retry()?;
            self.request(&header)?;
            self.push()?;
        }
    }

    /// Send all replies, and wait for outstanding tickets.
    pub fn finish(&mut self) {
        let mut alive = self.flush().is_ok();
        self.link.wanted.store(true, Ordering::SeqCst);
        if !self.late {
            return;
        }
        loop {
            let drained = !alive || self.link.send(None);
            if drained && self.link.tickets.load(Ordering::SeqCst) == 0 {
                break;
            }
            alive &= self.link.socket().wait(!drained, false, None).is_ok();
        }
    }

    fn request(&mut self, header: &RequestHeader) -> io::Result<()> {
        let head = Head {
            cookie: header.cookie,
            command: header.command,
            offset: header.offset,
            length: header.length,
            structured: self.session.structured,
            whole: header.flags & flag::DF != 0,
            one: header.flags & flag::REQ_ONE != 0,
            contexts: self.session.contexts,
        };
        let checked = self.checks.check(header, self.backend.size());
        self.count(header);
        if is_write(header.command) && !self.settled {
            self.settled = true;
            if !self.others.settle() {
                return Err(disconnect());
            }
        }
        match (checked, header.command) {
            (Ok(()), command::WRITE) => self.write(header, head),
            (Ok(()), command::READ) => self.read(head),
            (Ok(()), command) => {
                let hold = self.hold(0)?;
                if is_write(command) && self.deferred.len() < MOST_DEFERRED {
                    self.deferred
                        .push_back(Deferred::new(header, head, &[], hold));
                    return self.retry();
                }
                self.serve(request_of(header, &head), head, hold, true)?;
                Ok(())
            }
            (Err(errno), command) => {
                // A client takes a reply to what it has not wholly sent for disconnect.
                if command == command::WRITE {
                    self.skip(header.length)?;
                }
                self.answer(head, Err(errno));
                Ok(())
            }
        }
    }

    /// The length of the next piece of a read or write from `offset` on, at most `most`.
    fn piece(&self, offset: u64, left: u32, most: u32) -> u32 {
        match self.session.info.piece.min(most) {
            0 => left,
            piece => left.min(piece - (offset % u64::from(piece)) as u32),
        }
    }

    fn write(&mut self, header: &RequestHeader, head: Head) -> io::Result<()> {
        let (mut offset, mut left, mut result) = (header.offset, header.length, Ok(()));
        loop {
            let block = self.session.info.preferred_block;
            let length = self.piece(offset, left, WRITTEN_AT_ONCE.max(block));
            let mut hold = self.hold(length)?;
            self.link.peer.expects.store(true, Ordering::SeqCst);
            let whole = self.need(length as usize);
            self.link.peer.expects.store(false, Ordering::SeqCst);
            if !whole? {
                return Err(disconnect());
            }
            let last = length == left;
            let mut backoff = Backoff::default();
            while result.is_ok() {
                let data = self.input.peek(length as usize).unwrap_or_default();
                let fua = header.flags & flag::FUA != 0;
                let request = Request::Write { offset, data, fua };
                let mut reply = Reply::new(&mut self.out, head);
                let later = Later::new(self.link, head, hold);
                match self.backend.serve(request, &mut reply, &later) {
                    Served::Now(Err(Errno::Again)) => {}
                    Served::Now(done) => {
                        result = done;
                        break;
                    }
                    Served::Later => {
                        self.late = true;
                        self.input.consume(length as usize);
                        return Ok(());
                    }
                }
                let _ = reply.finish_piece(Err(Errno::Again));
                hold = later.hold().ok_or_else(disconnect)?;
                if length == header.length && self.deferred.len() < MOST_DEFERRED {
                    self.deferred
                        .push_back(Deferred::new(header, head, data, hold));
                    self.input.consume(length as usize);
                    return Ok(());
                }
                self.pause(&mut backoff)?;
            }
            self.input.consume(length as usize);
            (offset, left) = (offset + u64::from(length), left - length);
            if last {
                self.answer(head, result);
                return Ok(());
            }
        }
    }

    fn read(&mut self, head: Head) -> io::Result<()> {
        let (mut offset, mut left) = (head.offset, head.length);
        let fragments = head.structured && !head.whole;
        loop {
            let length = if fragments {
                self.piece(offset, left, u32::MAX)
            } else {
                left
            };
            let part = Head {
                offset,
                length,
                ..head
            };
            let last = length == left;
            let hold = self.hold(length)?;
            let request = Request::Read { offset, length };
            let (done, hold) = self.serve(request, part, hold, last)?;
            if hold.is_some() && self.out.len() >= HOLD_AT {
                self.send_held()?;
            }
            drop(hold);
            if last || !done {
                return Ok(());
            }
            (offset, left) = (offset + u64::from(length), left - length);
            self.push()?;
        }
    }

    /// Serve a request or, unless it is the last, a part of one that has no reply of its own; false if it failed, which is
    /// answered. With what is held for it, unless a ticket has that.
    fn serve(
        &mut self,
        request: Request<'_>,
        head: Head,
        mut hold: Hold,
        last: bool,
    ) -> io::Result<(bool, Option<Hold>)> {
        let mut backoff = Backoff::default();
        loop {
            let mut reply = Reply::new(&mut self.out, head);
            let later = Later::new(self.link, head, hold);
            let served = self.backend.serve(request, &mut reply, &later);
            let done = match served {
                Served::Later => {
                    self.late = true;
                    true
                }
                Served::Now(Err(Errno::Again)) => {
                    let _ = reply.finish_piece(Err(Errno::Again));
                    hold = later.hold().ok_or_else(disconnect)?;
                    self.pause(&mut backoff)?;
                    continue;
                }
                Served::Now(result) if last => {
                    self.link.count_error(reply.finish(result));
                    result.is_ok()
                }
                Served::Now(result) => {
                    let result = reply.finish_piece(result);
                    if result.is_err() {
                        self.answer(head, result);
                    }
                    result.is_ok()
                }
            };
            return Ok((done, later.hold()));
        }
    }

    /// Retry deferred requests, in order, until the backend cannot serve one.
    fn retry(&mut self) -> io::Result<()> {
        while let Some(mut deferred) = self.deferred.pop_front() {
            if !self.others.settle() {
                return Err(disconnect());
            }
            let mut reply = Reply::new(&mut self.out, deferred.head);
            let hold = deferred.hold.take().ok_or_else(disconnect)?;
            let later = Later::new(self.link, deferred.head, hold);
            match self.backend.serve(deferred.request(), &mut reply, &later) {
                Served::Later => self.late = true,
                Served::Now(Err(Errno::Again)) => {
                    let _ = reply.finish_piece(Err(Errno::Again));
                    deferred.hold = later.hold();
                    self.deferred.push_front(deferred);
                    return Ok(());
                }
                Served::Now(result) => self.link.count_error(reply.finish(result)),
            }
        }
        Ok(())
    }

    /// The backend cannot serve a request now: send all replies, then wait a little; an error once the connection ends.
    fn pause(&mut self, backoff: &mut Backoff) -> io::Result<()> {
        self.flush()?;
        let socket = self.link.socket();
        if socket.is_closed() || socket.is_hung_up() || self.is_stopping() {
            return Err(disconnect());
        }
        let drained = !self.late || self.link.send(None);
        socket.wait(!drained, false, Some(backoff.next()))
    }

    fn answer(&mut self, head: Head, result: Result<(), Errno>) {
        let done = Reply::new(&mut self.out, head).finish(result);
        self.link.count_error(done);
    }

    fn count(&self, header: &RequestHeader) {
        let counts = &self.session.opened.counts;
        let (count, bytes) = match header.command {
            command::READ => (&counts.reads, Some(&counts.read_bytes)),
            command::WRITE => (&counts.writes, Some(&counts.written_bytes)),
            command if is_write(command) => (&counts.trims, Some(&counts.trimmed_bytes)),
            _ => (&counts.others, None),
        };
        count.fetch_add(1, Ordering::Relaxed);
        if let Some(bytes) = bytes {
            bytes.fetch_add(u64::from(header.length), Ordering::Relaxed);
        }
    }

    /// Discard the data of a refused write.
    fn skip(&mut self, length: u32) -> io::Result<()> {
        let mut left = length as usize;
        while left > 0 {
            if !self.need(1)? {
                return Err(disconnect());
            }
            let some = self.input.len().min(left);
            self.input.consume(some);
            left -= some;
        }
        Ok(())
    }

    /// Wait for `count` bytes of input; false at the end of the stream. All replies are sent before waiting.
    fn need(&mut self, count: usize) -> io::Result<bool> {
        if self.link.socket().is_closed() {
            return Ok(false);
        }
        while self.input.len() < count {
            self.flush()?;
            if self.is_stopping() && self.input.len() == 0 {
                return Ok(false);
            }
            if self.receive(count)? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn is_stopping(&self) -> bool {
        self.shared.stopping.load(Ordering::Relaxed)
    }

    /// Receive while requests are deferred, and retry those. When the connection ends they are dropped unanswered.
    fn receive_beside(&mut self, count: usize) -> io::Result<Option<usize>> {
        let mut backoff = Backoff::default();
        while !self.deferred.is_empty() {
            if let Some(received) = self.input.receive(self.link.socket(), count, false)? {
                return Ok(Some(received));
            }
            if self.is_stopping() {
                return Ok(Some(0));
            }
            self.retry()?;
            self.flush()?;
            let drained = !self.late || self.link.send(None);
            let pause = Some(backoff.next());
            self.link.socket().wait(!drained, true, pause)?;
        }
        Ok(None)
    }

    fn receive(&mut self, count: usize) -> io::Result<usize> {
        self.settled = false;
        if let Some(received) = self.receive_beside(count)? {
            return Ok(received);
        }
        let (link, input) = (self.link, &mut self.input);
        if !self.late {
            let mut receive = |wait| input.receive(link.socket(), count, wait);
            return self.polling.receive(&mut receive);
        }
        link.wanted.store(false, Ordering::SeqCst);
        loop {
            if let Some(received) = input.receive(link.socket(), count, false)? {
                return Ok(received);
            }
            let drained = link.send(None);
            link.socket().wait(!drained, true, None)?;
        }
    }
}
