//! Requests that wait until the backend can carry them out, such as writes to a frozen export, while others of the connection go on.

use super::transmission::request_of;
use crate::backend::{Head, Hold, Request};
use crate::protocol::{RequestHeader, command, flag};

/// One request, with its data and the memory that was taken for it.
pub struct Parked {
    header: RequestHeader,
    pub head: Head,
    data: Vec<u8>,
    pub hold: Option<Hold>,
}

impl Parked {
    /// A request that came whole: a write with its data, or one that has none.
    pub fn new(header: &RequestHeader, head: Head, data: &[u8], hold: Hold) -> Parked {
        Parked {
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
