//! A connected socket as the server uses it: it waits only where it is told to, and a signal of its own wakes its waiter.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno as Os;
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, send, sendmsg, shutdown,
};

use crate::backend::Out;

/// Stretches of a buffer handed to the system at once.
const SLICES: usize = 64;

pub struct Socket {
    stream: OwnedFd,
    wake: OwnedFd,
}

impl Socket {
    pub fn new(stream: impl Into<OwnedFd>) -> io::Result<Socket> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Socket {
            stream: stream.into(),
            wake,
        })
    }

    /// Receive some bytes; None where there are none and it is not to wait. 0 at the end.
    pub fn receive(&self, into: &mut [u8], wait: bool) -> io::Result<Option<usize>> {
        let flags = if wait {
            RecvFlags::empty()
        } else {
            RecvFlags::DONTWAIT
        };
        loop {
            match recv(&self.stream, &mut *into, flags) {
                Ok((count, _)) => return Ok(Some(count)),
                Err(Os::INTR) => {}
                Err(Os::AGAIN) if !wait => return Ok(None),
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn send_once(&self, out: &mut Out, flags: SendFlags) -> Result<(), Os> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let count = out.slices(&mut slices);
        let flags = flags | SendFlags::NOSIGNAL;
        let sent = match &slices[..count] {
            [] => 0,
            [one] => send(&self.stream, one, flags)?,
            all => {
                let mut none = SendAncillaryBuffer::default();
                sendmsg(&self.stream, all, &mut none, flags)?
            }
        };
        out.advance(sent);
        Ok(())
    }

    /// Send what can be sent without waiting; false if some is left. What can never be sent counts as sent.
    pub fn send_some(&self, out: &mut Out) -> bool {
        while !out.is_empty() {
            match self.send_once(out, SendFlags::DONTWAIT) {
                Ok(()) | Err(Os::INTR) => {}
                Err(Os::AGAIN) => return false,
                Err(_) => {
                    out.clear();
                    self.close();
                }
            }
        }
        true
    }

    /// Send everything, however long the other side takes.
    pub fn send_all(&self, out: &mut Out) -> io::Result<()> {
        while !out.is_empty() {
            match self.send_once(out, SendFlags::empty()) {
                Ok(()) | Err(Os::INTR) => {}
                Err(e) => return Err(e.into()),
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
        let mut fds = [PollFd::new(&self.stream, PollFlags::RDHUP)];
        let now = Timespec::default();
        poll(&mut fds, Some(&now)).is_ok() && !fds[0].revents().is_empty()
    }

    /// Take no more bytes; replies still go out.
    pub fn stop_receiving(&self) {
        let _ = shutdown(&self.stream, Shutdown::Read);
        self.wake();
    }

    /// Nothing comes or goes any more.
    pub fn close(&self) {
        let _ = shutdown(&self.stream, Shutdown::Both);
        self.wake();
    }
}
