//! A connected socket, in plain or through TLS. One thread reads, any may write.
//!
//! Locking: `outgoing`, then `session`. The latter is held for no wait, so that what the server sends is always taken up,
//! however slow it is to take what is sent.

use std::io::{self, IoSlice, Read, Write};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::endpoint::Stream;
use crate::tls::TlsSession;

/// Encrypted bytes received at once.
const RECORDS: usize = 16 << 10;

pub struct Channel {
    pub socket: Stream,
    tls: OnceLock<Encrypted>,
}

struct Encrypted {
    session: Mutex<TlsSession>,
    /// Encrypted bytes on their way, and the right to send.
    outgoing: Mutex<Vec<u8>>,
}

impl Channel {
    pub fn new(socket: Stream) -> Channel {
        Channel {
            socket,
            tls: OnceLock::new(),
        }
    }

    /// Go over to TLS.
    pub fn encrypt(&self, mut session: TlsSession) -> io::Result<()> {
        let (mut outgoing, mut records) = (Vec::new(), [0; RECORDS]);
        let mut fed = Ok(());
        loop {
            while session.has_unsent() {
                session.send(&mut outgoing)?;
            }
            let sent = (&self.socket).write_all(&outgoing);
            fed?; // once the other end was told
            sent?;
            if !session.is_handshaking() {
                break;
            }
            outgoing.clear();
            fed = match (&self.socket).read(&mut records)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => session.feed(&records[..count]),
            };
        }
        let encrypted = Encrypted {
            session: Mutex::new(session),
            outgoing: Mutex::new(outgoing),
        };
        let _ = self.tls.set(encrypted);
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Encrypted {
    fn send(&self, socket: &Stream, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut outgoing = lock(&self.outgoing);
        outgoing.clear();
        let mut session = lock(&self.session);
        let mut taken = 0;
        for part in parts {
            let count = session.encrypt(part)?;
            taken += count;
            if count < part.len() {
                break;
            }
        }
        while session.has_unsent() {
            session.send(&mut *outgoing)?;
        }
        drop(session);
        let mut socket = socket;
        socket.write_all(&outgoing)?;
        Ok(taken)
    }

    fn receive(&self, mut socket: &Stream, into: &mut [u8]) -> io::Result<usize> {
        let mut records = [0; RECORDS];
        loop {
            let taken = lock(&self.session).take(into);
            if taken > 0 {
                return Ok(taken);
            }
            match socket.read(&mut records)? {
                0 => return Ok(0),
                count => lock(&self.session).feed(&records[..count])?,
            }
        }
    }
}

impl Read for &Channel {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.tls.get() {
            Some(tls) => tls.receive(&self.socket, into),
            None => (&self.socket).read(into),
        }
    }
}

impl Write for &Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.tls.get() {
            Some(tls) => tls.send(&self.socket, &[IoSlice::new(bytes)]),
            None => (&self.socket).write(bytes),
        }
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.tls.get() {
            Some(tls) => tls.send(&self.socket, parts),
            None => (&self.socket).write_vectored(parts),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
