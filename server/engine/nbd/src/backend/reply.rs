//! The reply to one request, built in the buffer from which it is sent.
//!
//! Where the client took structured replies, data and holes are chunks of their own; elsewhere, and where it forbade
//! fragments, a read's reply is one body in which holes are zeros. Backends need not know which.

use super::request::{Context, Contexts};
use crate::protocol::{Chunk, Errno, SimpleReply, chunk, command};
use crate::wire::{Mark, SendBuffer};

/// Bytes before a data chunk's data.
const DATA_HEADER: usize = Chunk::SIZE + 8;
/// Bytes of a whole hole chunk.
const HOLE_CHUNK: usize = Chunk::SIZE + 12;
/// Most extents of one context in a reply.
const MOST_EXTENTS: usize = 4096;

/// What building the reply needs to know of the request.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    pub cookie: u64,
    pub command: u16,
    pub offset: u64,
    pub length: u32,
    /// The client takes structured replies.
    pub structured: bool,
    /// A read's reply must not be fragmented.
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

/// Where a read's data, or the extents of block status, go.
pub struct Reply<'o> {
    out: &'o mut SendBuffer,
    head: Head,
    start: Mark,
    /// Where the last chunk's head is.
    last: Option<usize>,
    /// Bytes of a read that were answered.
    covered: u64,
    body: Body,
}

#[derive(Clone, Copy)]
enum Body {
    None,
    /// A read's only body starts here.
    Whole(usize),
    /// The last chunk holds the data of this offset on, from `at` to `end` of the buffer.
    Data {
        offset: u64,
        at: usize,
        end: usize,
    },
    /// The last chunk lists extents; so many bytes of the request are described.
    Extents {
        described: u64,
        count: usize,
    },
}

impl<'o> Reply<'o> {
    pub(crate) fn new(out: &'o mut SendBuffer, head: Head) -> Reply<'o> {
        Reply {
            start: out.mark(),
            out,
            head,
            last: None,
            covered: 0,
            body: Body::None,
        }
    }

    /// Whether holes reach the client as holes.
    pub fn has_holes(&self) -> bool {
        self.head.structured && !self.head.whole
    }

    /// `length` bytes of a read from `offset` on, to be filled by the caller; what is in them before is left over from
    /// other replies.
    pub fn data(&mut self, offset: u64, length: usize) -> &mut [u8] {
        self.covered += length as u64;
        let at = if self.has_holes() {
            let at = self.chunk(chunk::OFFSET_DATA, 8 + length) + Chunk::SIZE;
            self.out.set(at, &offset.to_be_bytes());
            let (at, end) = (at + 8, at + 8 + length);
            self.body = Body::Data { offset, at, end };
            at
        } else {
            self.whole() + (offset - self.head.offset) as usize
        };
        self.out.at(at..at + length)
    }

    /// Nothing is stored in `length` bytes from `offset` on.
    pub fn hole(&mut self, offset: u64, length: u32) {
        if !self.has_holes() {
            return self.data(offset, length as usize).fill(0);
        }
        self.covered += u64::from(length);
        let at = self.chunk(chunk::OFFSET_HOLE, 12) + Chunk::SIZE;
        self.out.set(at, &offset.to_be_bytes());
        self.out.set(at + 8, &length.to_be_bytes());
        self.body = Body::None;
    }

    /// Part of what the last `data` gave is a hole after all. Several go in ascending order. Very short ones are sent as
    /// zeros.
    pub fn punch(&mut self, offset: u64, length: usize) {
        match self.body {
            Body::Whole(body) => {
                let at = body + (offset - self.head.offset) as usize;
                self.out.at(at..at + length).fill(0);
            }
            Body::Data {
                offset: first,
                at,
                end,
            } => {
                let from = at + (offset - first) as usize;
                if length < DATA_HEADER + HOLE_CHUNK {
                    self.out.at(from..from + length).fill(0);
                } else {
                    self.split(offset, first, at..end, from..from + length);
                }
            }
            _ => debug_assert!(false, "punch without data before it"),
        }
    }

    /// Cut a hole out of the last data chunk: its chunk, and the head of what follows, are written where the hole was.
    fn split(
        &mut self,
        offset: u64,
        first: u64,
        data: std::ops::Range<usize>,
        hole: std::ops::Range<usize>,
    ) {
        let head = data.start - DATA_HEADER;
        let at = if hole.start == data.start {
            head
        } else {
            self.data_header(head, first, hole.start - data.start);
            hole.start
        };
        self.out
            .set(at, &self.chunk_head(chunk::OFFSET_HOLE, 12).bytes());
        self.out.set(at + Chunk::SIZE, &offset.to_be_bytes());
        let length = (hole.len() as u32).to_be_bytes();
        self.out.set(at + Chunk::SIZE + 8, &length);
        self.last = Some(at);
        if hole.end == data.end {
            self.out.skip(at + HOLE_CHUNK..hole.end);
            self.body = Body::None;
            return;
        }
        let next = hole.end - DATA_HEADER;
        self.out.skip(at + HOLE_CHUNK..next);
        let after = offset + hole.len() as u64;
        self.data_header(next, after, data.end - hole.end);
        self.last = Some(next);
        self.body = Body::Data {
            offset: after,
            at: hole.end,
            end: data.end,
        };
    }

    fn data_header(&mut self, at: usize, offset: u64, length: usize) {
        let head = self.chunk_head(chunk::OFFSET_DATA, 8 + length);
        self.out.set(at, &head.bytes());
        self.out.set(at + Chunk::SIZE, &offset.to_be_bytes());
    }

    /// Extents of `context` follow, from the request's offset on.
    pub fn begin(&mut self, context: Context) {
        let at = self.chunk(chunk::BLOCK_STATUS, 4);
        let id = Head::context_id(context);
        self.out.set(at + Chunk::SIZE, &id.to_be_bytes());
        self.body = Body::Extents {
            described: 0,
            count: 0,
        };
    }

    /// The next `length` bytes have these flags. Whether more extents are wanted.
    pub fn extent(&mut self, length: u64, flags: u32) -> bool {
        let (Body::Extents { described, count }, Some(at)) = (self.body, self.last) else {
            debug_assert!(false, "extent without begin");
            return false;
        };
        let room = u64::from(self.head.length) - described;
        let length = length.min(room);
        let most = if self.head.one { 1 } else { MOST_EXTENTS };
        let end = self.out.len();
        let previous = (count > 0).then(|| end - 8);
        let same = previous.is_some_and(|p| *self.out.at(p + 4..p + 8) == flags.to_be_bytes());
        if length == 0 || (!same && count == most) {
            return length > 0 && count < most;
        }
        if let (true, Some(p)) = (same, previous) {
            let before = u32::from_be_bytes(self.out.at(p..p + 4).try_into().expect("4 bytes"));
            self.out.set(p, &(before + length as u32).to_be_bytes());
        } else {
            self.out.push(&(length as u32).to_be_bytes());
            self.out.push(&flags.to_be_bytes());
            let bytes = (4 + 8 * (count + 1)) as u32;
            self.out.set(at + 16, &bytes.to_be_bytes());
        }
        self.body = Body::Extents {
            described: described + length,
            count: count + usize::from(!same),
        };
        length < room
    }

    /// The one body of a read's reply; where it starts.
    fn whole(&mut self) -> usize {
        if let Body::Whole(at) = self.body {
            return at;
        }
        let length = self.head.length as usize;
        let at = if self.head.structured {
            let at = self.chunk(chunk::OFFSET_DATA, 8 + length) + Chunk::SIZE;
            self.out.set(at, &self.head.offset.to_be_bytes());
            at + 8
        } else {
            let cookie = self.head.cookie;
            self.out.push(&SimpleReply { error: 0, cookie }.bytes());
            self.out.grow(length)
        };
        self.body = Body::Whole(at);
        at
    }

    fn chunk_head(&self, kind: u16, length: usize) -> Chunk {
        Chunk {
            flags: 0,
            kind,
            cookie: self.head.cookie,
            length: length as u32,
        }
    }

    /// A chunk with room for `length` bytes; where it starts.
    fn chunk(&mut self, kind: u16, length: usize) -> usize {
        let head = self.chunk_head(kind, length);
        let at = self.out.grow(Chunk::SIZE + length);
        self.out.set(at, &head.bytes());
        self.last = Some(at);
        at
    }

    /// Part of a read is answered; more pieces of it follow in other replies.
    pub(crate) fn finish_piece(self, result: Result<(), Errno>) -> Result<(), Errno> {
        let complete = self.covered == u64::from(self.head.length);
        let result = result.and(if complete { Ok(()) } else { Err(Errno::Io) });
        if result.is_err() {
            self.out.back_to(self.start);
        }
        result
    }

    /// Finish the reply with its content, or with an error instead; what the client is told.
    pub(crate) fn finish(mut self, result: Result<(), Errno>) -> Result<(), Errno> {
        let read = self.head.command == command::READ;
        let complete = !read || self.covered == u64::from(self.head.length);
        debug_assert!(complete || result.is_err(), "a read left bytes unanswered");
        let result = result.and(if complete { Ok(()) } else { Err(Errno::Io) });
        if let Err(errno) = result {
            self.out.back_to(self.start);
            self.fail(errno);
            return result;
        }
        match self.last {
            Some(at) => self.out.set(at + Chunk::FLAGS, &chunk::DONE.to_be_bytes()),
            None if matches!(self.body, Body::Whole(_)) => {}
            None => self.simple(0),
        }
        result
    }

    fn simple(&mut self, error: u32) {
        let cookie = self.head.cookie;
        self.out.push(&SimpleReply { error, cookie }.bytes());
    }

    fn fail(&mut self, errno: Errno) {
        let structured = matches!(self.head.command, command::READ | command::BLOCK_STATUS);
        if !(structured && self.head.structured) {
            return self.simple(errno.number());
        }
        let at = self.chunk(chunk::ERROR, 6);
        self.out.set(at + Chunk::FLAGS, &chunk::DONE.to_be_bytes());
        let number = errno.number().to_be_bytes();
        self.out.set(at + Chunk::SIZE, &number);
        self.out.set(at + Chunk::SIZE + 4, &[0; 2]);
    }
}
