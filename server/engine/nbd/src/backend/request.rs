//! Exports, requests and their results, as server and backends exchange them; and who the client is.

use crate::protocol::Errno;

/// What a client is told of an export when it opens it. Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    pub description: String,
    pub read_only: bool,
    /// Writes of one connection are seen by the others once they are acknowledged, and one flush is for all. An export
    /// without it has one connection at a time.
    pub multi_conn: bool,
    /// Smallest length and alignment served; a power of two. Other requests are refused as invalid.
    pub minimum_block: u32,
    pub preferred_block: u32,
    /// Longer reads and writes may be passed on in pieces of this size, so that the server holds no more of them; 0: whole.
    pub piece: u32,
    /// The name of a meta context beside `base:allocation`.
    pub private_context: Option<String>,
    /// Refuse clients that did not negotiate structured replies and the private context.
    pub context_required: bool,
}

impl Default for ExportInfo {
    fn default() -> Self {
        ExportInfo {
            description: String::new(),
            read_only: false,
            multi_conn: false,
            minimum_block: 1,
            preferred_block: 4096,
            piece: 0,
            private_context: None,
            context_required: false,
        }
    }
}

/// One command, checked: it lies inside the export, its length is above 0 and within the limits, and an export that is
/// read-only gets none that changes it.
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
        fua: bool,
    },
    WriteZeroes {
        offset: u64,
        length: u32,
        fua: bool,
        no_hole: bool,
        /// To be answered with `NotSupported` if it is not faster than a write.
        fast: bool,
    },
    Flush,
    /// A hint that this range will be read soon.
    Cache {
        offset: u64,
        length: u32,
    },
    /// For each of the contexts: [`super::Reply::begin`], then [`super::Reply::extent`] from `offset` on; at most one if `one`.
    BlockStatus {
        offset: u64,
        length: u32,
        one: bool,
        contexts: Contexts,
    },
}

/// A meta context of block status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// `base:allocation`: flags of [`crate::protocol::allocation`].
    Allocation,
    /// The export's own.
    Private,
}

/// The contexts a client chose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contexts {
    pub allocation: bool,
    pub private: bool,
}

impl Contexts {
    pub fn iter(self) -> impl Iterator<Item = Context> {
        let allocation = self.allocation.then_some(Context::Allocation);
        let private = self.private.then_some(Context::Private);
        allocation.into_iter().chain(private)
    }
}

/// The result of serving a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// Answered: what was read is in the reply. After an error the reply's content is dropped. After [`Errno::Again`] the
    /// request is retried from its beginning.
    Now(Result<(), Errno>),
    /// A ticket was taken and will deliver the answer.
    Later,
}

impl From<Result<(), Errno>> for Served {
    fn from(result: Result<(), Errno>) -> Served {
        Served::Now(result)
    }
}

/// The client of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Unique among the connections of this server.
    pub id: u64,
    /// `unix`, or address and port.
    pub address: String,
    /// It came over a Unix socket or from a loopback address.
    pub local: bool,
    pub tls: bool,
    /// The name in its certificate, where it showed one.
    pub identity: Option<String>,
}

impl Client {
    /// Its name for access rules: the one in its certificate, otherwise where it came from. No certificate may contain `local`
    /// or `network`.
    pub fn name(&self) -> &str {
        let place = if self.local { "local" } else { "network" };
        self.identity.as_deref().unwrap_or(place)
    }
}

/// Why a client is refused an export, in words for its user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("there is no export {0:?}")]
    Unknown(String),
    /// Not allowed, or not now.
    #[error("{0}")]
    Policy(String),
    #[error("{0}")]
    Invalid(String),
    /// The export or the server is shutting down.
    #[error("{0}")]
    Shutdown(String),
}
