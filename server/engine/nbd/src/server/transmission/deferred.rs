//! Requests deferred until the backend can serve them, such as writes to a frozen export, while other requests go on.

use std::time::Duration;

use crate::backend::{Head, Hold, Request};
use crate::protocol::{RequestHeader, command, flag};

/// One request, with its data and the memory that was taken for it.
pub struct Deferred {
    header: RequestHeader,
    pub head: Head,
    data: Vec<u8>,
    pub hold: Option<Hold>,
}

impl Deferred {
    /// A request that came whole: a write with its data, or one that has none.
    pub fn new(header: &RequestHeader, head: Head, data: &[u8], hold: Hold) -> Deferred {
        Deferred {
            header: *header,
            head,
            data: data.to_vec(),
            hold: Some(hold),
        }
    }

    pub fn request(&self) -> Request<'_> {
        let (offset, data) = (self.header.offset, &self.data[..]);
        let fua = self.header.flags & flag::FUA != 0;
        match self.header.command {
            command::WRITE => Request::Write { offset, data, fua },
            _ => request_of(&self.header, &self.head),
        }
    }
}

/// Pauses between attempts of a request that the backend cannot carry out now.
pub struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff(Duration::from_micros(500))
    }
}

impl Backoff {
    pub fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(Duration::from_millis(20));
        pause
    }
}

/// A request that carries no data and is no read.
pub fn request_of<'a>(header: &RequestHeader, head: &Head) -> Request<'a> {
    let (offset, length) = (header.offset, header.length);
    let fua = header.flags & flag::FUA != 0;
    match header.command {
        command::FLUSH => Request::Flush,
        command::TRIM => Request::Trim {
            offset,
            length,
            fua,
        },
        command::CACHE => Request::Cache { offset, length },
        command::WRITE_ZEROES => Request::WriteZeroes {
            offset,
            length,
            fua,
            no_hole: header.flags & flag::NO_HOLE != 0,
            fast: header.flags & flag::FAST_ZERO != 0,
        },
        _ => Request::BlockStatus {
            offset,
            length,
            one: head.one,
            contexts: head.contexts,
        },
    }
}
