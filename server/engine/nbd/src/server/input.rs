//! The receive buffer of a connection: many requests are received at once and parsed in place.

use std::io;
use std::time::{Duration, Instant};

use crate::tls::TlsSession;
use crate::wire::Socket;

/// What is received at once at most, and kept from request to request, in bytes.
const KEEP: usize = 512 << 10;

pub struct Input {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    pub fn new() -> Input {
        Input {
            bytes: vec![0; KEEP],
            start: 0,
            end: 0,
        }
    }

    /// Bytes received and not yet consumed.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    pub fn peek(&self, count: usize) -> Option<&[u8]> {
        self.bytes[self.start..self.end].get(..count)
    }

    pub fn consume(&mut self, count: usize) {
        self.start += count.min(self.len());
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.bytes.len() > KEEP {
                self.bytes.truncate(KEEP);
                self.bytes.shrink_to_fit();
            }
        }
    }

    /// Have room for `count` bytes in one piece.
    fn make_room(&mut self, count: usize) {
        if self.bytes.len() - self.start < count.max(self.len() + 1) {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.bytes.len() < count {
            self.bytes.resize(count, 0);
        }
    }

    /// Receive once, towards `count` bytes in all. None where nothing is there and it is not to wait; 0 at the end.
    pub fn receive(
        &mut self,
        socket: &Socket,
        count: usize,
        wait: bool,
    ) -> io::Result<Option<usize>> {
        self.make_room(count);
        // Of what follows something large nothing is taken, so that the room for it goes when it is consumed.
        let until = if count > KEEP {
            self.start + count
        } else {
            self.bytes.len()
        };
        let received = socket.receive(&mut self.bytes[self.end..until], wait)?;
        self.end += received.unwrap_or(0);
        Ok(received)
    }

    /// Receive until `count` bytes are there; false at the end of the stream. An error at the deadline.
    pub fn need(&mut self, socket: &Socket, count: usize, deadline: Instant) -> io::Result<bool> {
        while self.len() < count {
            match self.receive(socket, count, false)? {
                Some(0) => return Ok(false),
                Some(_) => {}
                None => wait(socket, false, deadline)?,
            }
        }
        Ok(true)
    }
}

/// Wait until the socket can be read, or written, or the deadline.
pub fn wait(socket: &Socket, write: bool, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left < Duration::from_millis(1) {
        return Err(io::ErrorKind::TimedOut.into());
    }
    socket.wait(write, !write, Some(left)).map(drop)
}

/// The handshake of TLS, of which the first bytes may be there; None at the end of the stream.
pub fn handshake_tls(
    socket: &Socket,
    mut session: TlsSession,
    mut records: Vec<u8>,
    deadline: Instant,
) -> io::Result<Option<TlsSession>> {
    loop {
        let fed = session.feed(&records);
        let sent = socket.send_handshake(&mut session)?;
        fed?;
        if sent && !session.is_handshaking() {
            return Ok(Some(session));
        }
        wait(socket, !sent, deadline)?;
        records.resize(16 << 10, 0);
        match socket.receive_raw(&mut records, false)? {
            Some(0) => return Ok(None),
            received => records.truncate(received.unwrap_or(0)),
        }
    }
}
