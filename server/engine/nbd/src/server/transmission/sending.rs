//! Sending replies, and waiting for memory. Before anything here waits, finished replies are sent.

use std::io;
use std::sync::atomic::Ordering;

use super::{HOLD_AT, Transmission};
use crate::backend::{Hold, Link};
use crate::protocol::disconnect;
use crate::wire::SendBuffer;

/// Replies larger than this in all start being sent before the next request is served.
const SEND_AT: usize = 64 << 10;

impl Transmission<'_> {
    /// Take memory for so many bytes, queueing for it when the server has no more.
    pub fn hold(&mut self, bytes: u32) -> io::Result<Hold> {
        let (link, bytes) = (self.link, bytes as usize);
        if let Some(hold) = link.peer.budget.try_take(&link.peer, bytes) {
            return Ok(hold);
        }
        self.flush()?;
        let place = link.peer.budget.queue(&link.peer, bytes);
        loop {
            if let Some(hold) = place.granted() {
                return Ok(hold);
            }
            if link.socket().is_closed() {
                return Err(disconnect());
            }
            let drained = !self.late || link.send(None);
            let limit = Some(link.peer.budget.interval());
            link.socket().wait(!drained, false, limit)?;
            for address in link.peer.budget.cut_off_stalled() {
                let why =
                    "it holds memory that others are waiting for, and neither sends nor receives";
                self.shared.report(&address, why);
            }
        }
    }

    /// Send a reply that holds memory, so that every byte the client takes is noticed.
    pub fn send_held(&mut self) -> io::Result<()> {
        if self.late {
            return self.flush();
        }
        self.link.peer.expects.store(true, Ordering::SeqCst);
        let mut sent = Ok(());
        while sent.is_ok() && !self.link.socket().send_some(&mut self.out) {
            sent = self.link.socket().wait(true, false, None);
        }
        self.link.peer.expects.store(false, Ordering::SeqCst);
        self.out.clear();
        sent
    }

    /// Send some of the replies, if there are many bytes of them, before serving more.
    pub fn push(&mut self) -> io::Result<()> {
        if self.out.len() < SEND_AT {
            return Ok(());
        }
        if self.late || self.out.len() >= HOLD_AT {
            return self.flush();
        }
        if self.link.socket().send_some(&mut self.out) {
            self.out.clear();
        }
        Ok(())
    }

    /// Send all replies, waiting for a slow client.
    pub fn flush(&mut self) -> io::Result<()> {
        if !self.late {
            self.link.socket().send_all(&mut self.out)?;
            self.out.clear();
            return Ok(());
        }
        if !self.out.is_empty() {
            let out = std::mem::replace(&mut self.out, self.link.spare());
            self.drain(Some(out))?;
        }
        Ok(())
    }

    pub fn drain(&self, mut out: Option<SendBuffer>) -> io::Result<()> {
        while !self.link.send(out.take()) {
            self.link.socket().wait(true, false, None)?;
        }
        Ok(())
    }

    /// Wait until the limits allow another request to wait for the backend.
    pub fn make_way(&mut self) -> io::Result<()> {
        let settings = &self.shared.settings;
        let crowded = |link: &Link| {
            link.tickets.load(Ordering::SeqCst) >= settings.max_waiting
                || link.peer.held() >= settings.max_waiting_bytes
        };
        if !self.late || !crowded(self.link) {
            return Ok(());
        }
        self.flush()?;
        self.link.wanted.store(true, Ordering::SeqCst);
        loop {
            // What is sent here makes way too, and nobody wakes for it.
            let drained = self.link.send(None);
            if !crowded(self.link) {
                break;
            }
            self.link.socket().wait(!drained, false, None)?;
        }
        self.link.wanted.store(false, Ordering::SeqCst);
        Ok(())
    }
}
