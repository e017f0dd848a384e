//! What the server asks of an export.
//!
//! A request comes on the thread of its connection. A backend that can answer at once does so there, its pages written
//! straight into the reply; one that must wait takes a [`Ticket`] along and answers from a thread of its own, in any order.
//! A connection's requests come one after the other; several connections' come at once.

mod budget;
mod counts;
mod link;
mod lock_wait;
mod reply;
mod request;
mod snapshot;

pub use budget::Budget;
pub(crate) use budget::Hold;
pub(crate) use counts::Counts;
pub use counts::ExportCounters;
pub(crate) use link::Link;
pub use link::{Later, Ticket};
pub(crate) use lock_wait::briefly;
pub(crate) use reply::Head;
pub use reply::Reply;
pub use request::{Client, Context, Contexts, ExportInfo, Refusal, Request, Served};
pub(crate) use snapshot::Pages;
pub use snapshot::{Saving, Snapshot};

use std::sync::Arc;

use tmem_core::Pool;

/// An export. Calls come from many threads.
pub trait Backend: Send + Sync {
    /// Describes the export when a client opens it.
    fn info(&self) -> ExportInfo;

    /// The current size in bytes. Requests beyond it never reach `serve`.
    fn size(&self) -> u64;

    /// Serve one request. A read is answered through `reply`, whose chunks cover the request exactly once.
    fn serve(&self, request: Request<'_>, reply: &mut Reply<'_>, later: &Later<'_>) -> Served;

    /// A client is about to be admitted.
    fn attach(&self, _client: &Client) -> Result<(), Refusal> {
        Ok(())
    }

    /// An admitted client is gone; all its requests have been answered or their tickets dropped.
    fn detach(&self, _client: &Client) {}

    /// A snapshot of its blocks at one instant between requests. Blocks about to change are kept in `shadow`, an empty pool that
    /// is destroyed with the snapshot. New requests wait for those in flight meanwhile.
    fn snapshot(self: Arc<Self>, _shadow: Pool) -> Result<Saving, Refusal> {
        Err(Refusal::Invalid("this export has no snapshots".into()))
    }

    /// Change the size.
    fn resize(&self, _bytes: u64) -> Result<(), Refusal> {
        Err(Refusal::Invalid("this export cannot be resized".into()))
    }
}

/// Opens exports whose names are not known in advance: all those under a prefix.
pub trait Resolver: Send + Sync {
    /// The export of this name, prefix included. `probe`: the client only asks what it is, and gets no `attach`.
    fn open(&self, name: &str, client: &Client, probe: bool) -> Result<Arc<dyn Backend>, Refusal>;
}
