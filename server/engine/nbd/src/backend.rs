//! What the server asks of an export.
//!
//! A request comes on the thread of its connection. A backend that can answer at once does so there, its pages written
//! straight into the reply; one that must wait takes a [`Ticket`] along and answers from a thread of its own, in any order.

/// The errors that NBD can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    Perm,
    Io,
    NoMemory,
    Invalid,
    NoSpace,
    Overflow,
    NotSupported,
    Shutdown,
}

/// What a client is told of an export when it opens it. Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    pub size: u64,
    pub description: String,
    pub read_only: bool,
    /// Writes of one connection are seen by the others once they are acknowledged, and one flush is for all.
    pub multi_conn: bool,
    /// Smallest length and alignment served without reading around it; a power of two.
    pub minimum_block: u32,
    pub preferred_block: u32,
}

/// One command, checked: it lies inside the export, and its length is within the limits.
#[derive(Clone, Copy, Debug)]
pub enum Request<'a> {
    Read {
        offset: u64,
        length: u32,
    },
    Write {
        offset: u64,
        data: &'a [u8],
        fua: bool,
    },
    Trim {
        offset: u64,
        length: u32,
    },
    WriteZeroes {
        offset: u64,
        length: u32,
        no_hole: bool,
        fast: bool,
    },
    Flush,
    /// Fetch soon what will be read: a hint.
    Cache {
        offset: u64,
        length: u32,
    },
    /// Extents of `base:allocation`; at most one if `one`.
    BlockStatus {
        offset: u64,
        length: u32,
        one: bool,
    },
}

/// A run of bytes of one kind, for block status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub length: u32,
    /// Nothing is stored there, and it reads as zeros.
    pub hole: bool,
}

/// How a backend left a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// Answered: what was read is in the reply.
    Now(Result<(), Errno>),
    /// A ticket was taken, and will be answered through.
    Later,
}
