//! tmem-nbd: pages as block devices.
//!
//! `server` speaks the NBD protocol to kernels, virtual machines and tools, and knows an export only as its backend.
//! It knows no Python; what it serves is chosen by who starts it.
//!
//! Layers, lower first: `{protocol, tls} <- wire <- backend <- {exports, backends} <- server`; `backends` know no server.
//! `client` is the other end of `protocol`, and knows `tls` and `wire` beside it; `san` is a gateway made of both ends.

#![deny(unsafe_code)]

mod backend;
pub mod backends;
pub mod client;
mod exports;
pub mod protocol;
pub mod san;
mod server;
pub mod stdio;
mod tls;
mod wire;

pub use backend::{
    Backend, Budget, Client, Context, Contexts, ExportCounters, ExportInfo, Later, Refusal, Reply,
    Request, Resolver, Saving, Served, Snapshot, Ticket,
};
pub use backends::pool_device::{PoolExport, PoolExportSettings};
pub use exports::{Access, ExportError, ExportStatus, Exports};
pub use protocol::Errno;
pub use server::{
    Limits, Listen, MetricsServer, Renewal, Reporter, Server, ServerCounters, Settings, is_loopback,
};
pub use tls::{Tls, TlsFiles, of_certificate as client_name};
