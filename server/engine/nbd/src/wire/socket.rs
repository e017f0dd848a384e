//! A connected socket as the server uses it: it blocks only where it is told to, and has an event of its own to end its
//! wait.
//!
//! Once TLS is set up, everything goes through it. Locking: its lock is not held while waiting, except by a sender that
//! is told to wait.

use std::io::{self, IoSlice, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno as Os;
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, send, sendmsg, shutdown,
};

use crate::tls::TlsSession;
use crate::wire::SendBuffer;

/// Stretches of a buffer handed to the system at once.
const SLICES: usize = 64;
/// Bytes of one stretch handed over at once: while more are on their way it shows that some went.
const AT_ONCE: usize = 256 << 10;
/// Encrypted bytes received at once.
const RECORDS: usize = 64 << 10;

pub struct Socket {
    stream: OwnedFd,
    wake: OwnedFd,
    tls: OnceLock<Mutex<TlsSession>>,
    closed: AtomicBool,
    moved: AtomicU64,
}

/// Sends as a stream does, without waiting if the flags say so.
struct Sender<'s>(&'s OwnedFd, SendFlags);

impl Write for Sender<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(self.0, bytes, self.1)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn lock(tls: &Mutex<TlsSession>) -> MutexGuard<'_, TlsSession> {
    tls.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Socket {
    pub fn new(stream: impl Into<OwnedFd>) -> io::Result<Socket> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Socket {
            stream: stream.into(),
            wake,
            tls: OnceLock::new(),
            closed: AtomicBool::new(false),
            moved: AtomicU64::new(0),
        })
    }

    /// From now on everything goes through TLS.
    pub fn encrypt(&self, session: TlsSession) {
        let _ = self.tls.set(Mutex::new(session));
    }

    /// Receive some bytes; None where there are none and it is not to wait. 0 at the end.
    pub fn receive(&self, into: &mut [u8], wait: bool) -> io::Result<Option<usize>> {
        let Some(tls) = self.tls.get() else {
            return self.receive_raw(into, wait);
        };
        let mut records = [0; RECORDS];
        loop {
            let taken = lock(tls).take(into);
            if taken > 0 {
                return Ok(Some(taken));
            }
            match self.receive_raw(&mut records, wait)? {
                Some(count) if count > 0 => lock(tls).feed(&records[..count])?,
                ended => return Ok(ended),
            }
        }
    }

    /// The same, past TLS.
    pub fn receive_raw(&self, into: &mut [u8], wait: bool) -> io::Result<Option<usize>> {
        let flags = if wait {
            RecvFlags::empty()
        } else {
            RecvFlags::DONTWAIT
        };
        loop {
            match recv(&self.stream, &mut *into, flags) {
                Ok((count, _)) => {
                    self.moved.fetch_add(count as u64, Ordering::Relaxed);
                    return Ok(Some(count));
                }
                Err(Os::INTR) => {}
                Err(Os::AGAIN) if !wait => return Ok(None),
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn send_once(&self, out: &mut SendBuffer, flags: SendFlags) -> io::Result<()> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let count = out.slices(&mut slices);
        let flags = flags | SendFlags::NOSIGNAL;
        let sent = match (&slices[..count], self.tls.get()) {
            (slices, Some(tls)) => self.send_encrypted(slices, tls, flags)?,
            ([], None) => 0,
            ([one], None) => send(&self.stream, &one[..one.len().min(AT_ONCE)], flags)?,
            (all, None) => {
                let mut none = SendAncillaryBuffer::default();
                sendmsg(&self.stream, all, &mut none, flags)?
            }
        };
        self.moved.fetch_add(sent as u64, Ordering::Relaxed);
        out.advance(sent);
        Ok(())
    }

    /// Encrypt the first slice as far as there is room, or else send some of what is encrypted.
    fn send_encrypted(
        &self,
        slices: &[IoSlice<'_>],
        tls: &Mutex<TlsSession>,
        flags: SendFlags,
    ) -> io::Result<usize> {
        let mut tls = lock(tls);
        let taken = slices.first().map_or(Ok(0), |first| tls.encrypt(first))?;
        if taken == 0 && tls.has_unsent() {
            self.send_records(&mut tls, flags)?;
        }
        Ok(taken)
    }

    fn send_records(&self, tls: &mut TlsSession, flags: SendFlags) -> io::Result<()> {
        let sent = tls.send(&mut Sender(&self.stream, flags))?;
        self.moved.fetch_add(sent as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Send what TLS itself has to say, as far as that goes without waiting; false if some is left.
    pub fn send_handshake(&self, tls: &mut TlsSession) -> io::Result<bool> {
        while tls.has_unsent() {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match self.send_records(tls, flags) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    fn is_sent(&self, out: &SendBuffer) -> bool {
        out.is_empty() && self.tls.get().is_none_or(|tls| !lock(tls).has_unsent())
    }

    /// Send what can be sent without waiting; false if some is left. What can never be sent counts as sent.
    pub fn send_some(&self, out: &mut SendBuffer) -> bool {
        while !self.is_sent(out) {
            match self.send_once(out, SendFlags::DONTWAIT) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
                Err(_) => {
                    out.clear();
                    self.close();
                    return true;
                }
            }
        }
        true
    }

    /// Send everything, however long the other side takes.
    pub fn send_all(&self, out: &mut SendBuffer) -> io::Result<()> {
        while !self.is_sent(out) {
            match self.send_once(out, SendFlags::empty()) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                done => done?,
            }
        }
        Ok(())
    }

    /// Wait to be woken, and for bytes and for room to send if asked to.
    pub fn wait(&self, write: bool, read: bool, limit: Option<Duration>) -> io::Result<()> {
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::IN | PollFlags::RDHUP, read);
        interest.set(PollFlags::OUT, write);
        let mut fds = [
            PollFd::new(&self.wake, PollFlags::IN),
            PollFd::new(&self.stream, interest),
        ];
        // A peer that is gone would end every wait at once, also those for something else.
        let watched = if write || read { 2 } else { 1 };
        let limit = limit.map(|limit| Timespec {
            tv_sec: limit.as_secs() as i64,
            tv_nsec: limit.subsec_nanos().into(),
        });
        match poll(&mut fds[..watched], limit.as_ref()) {
            Ok(_) | Err(Os::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        if !fds[0].revents().is_empty() {
            let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        }
        Ok(())
    }

    /// End the wait of this socket's thread.
    pub fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Whether the other side has closed, or is gone.
    pub fn is_hung_up(&self) -> bool {
        Socket::any_hung_up([self])
    }

    /// The same of several at once.
    pub fn any_hung_up<'s>(sockets: impl IntoIterator<Item = &'s Socket>) -> bool {
        let watch = |socket: &'s Socket| PollFd::new(&socket.stream, PollFlags::RDHUP);
        let mut fds: Vec<_> = sockets.into_iter().map(watch).collect();
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..))
    }

    /// Changes whenever bytes come or go.
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Take no more bytes; replies still go out.
    pub fn stop_receiving(&self) {
        let _ = shutdown(&self.stream, Shutdown::Read);
        self.wake();
    }

    /// The last word to a client that ends well.
    pub fn farewell(&self) {
        if let Some(tls) = self.tls.get() {
            let mut tls = lock(tls);
            tls.farewell();
            let _ = self.send_handshake(&mut tls);
        }
    }

    /// Nothing comes or goes any more, and of what has come nothing more is begun.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let _ = shutdown(&self.stream, Shutdown::Both);
        self.wake();
    }
}
