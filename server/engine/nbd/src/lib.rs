//! tmem-nbd: pages as block devices.
//!
//! `server` speaks the NBD protocol to kernels, virtual machines and tools, and knows an export only as its backend.
//! It knows no Python; what it serves is chosen by who starts it.
//!
//! Layers, lower first: `protocol <- backend <- exports <- server`, with `tls <- socket` under `backend`; `pool` is a backend and knows no server, `snapshot` what it keeps of blocks that change, `span` which pages a request is of.
//! `cache` opens ephemeral pools as exports; `client` is the other end of `protocol`, and knows `tls` beside it.

#![deny(unsafe_code)]

mod backend;
pub mod cache;
pub mod client;
mod counts;
mod exports;
mod pool;
pub mod protocol;
pub mod san;
mod server;
mod snapshot;
mod socket;
mod span;
pub mod streams;
mod tcp;
mod tls;

pub use backend::{
    Backend, Budget, Client, Context, Contexts, ExportInfo, Later, Refusal, Reply, Request,
    Resolver, Served, Ticket,
};
pub use counts::ExportCounters;
pub use exports::{Access, ExportError, ExportStatus, Exports};
pub use pool::{PoolExport, PoolExportSettings};
pub use protocol::Errno;
pub use server::{
    Limits, Listen, Renewal, Reporter, Scrapes, Server, ServerCounters, Settings, is_loopback,
};
pub use snapshot::{Saving, Snapshot};
pub use tls::{Tls, TlsFiles, of_certificate as client_name};
