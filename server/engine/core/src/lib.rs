//! tmem-core: a crash-proof compressed page store in shared memory.
//!
//! The folder is the layer diagram, lower layers first:
//! `arena <- frames <- heap <- {zsmalloc, zbud}`, beside them `codec` and `index`, and `shard`, which binds them all under
//! one lock as zcache's host code did. `store` and `pool` are what the outside sees. It knows no socket and no Python.

#![deny(unsafe_code)]

mod arena;
mod backing;
mod batch;
mod check;
mod codec;
mod error;
mod evict;
mod frames;
mod heap;
mod index;
mod machine;
mod pool;
mod pools;
mod put;
mod recovery;
mod reserve;
mod shard;
mod slot;
mod stats;
mod store;
mod types;
mod zbud;
mod zsmalloc;

#[cfg(feature = "crash-points")]
pub use arena::{Crash, arm, disarm};
pub use arena::{waiting_at_least, waiting_at_most};
pub use batch::{Fetched, FetchedPage, LastPage, ScanCursor, ScannedCluster};
pub use codec::{Compressor, Encoded, Form, checksum, same_filled};
pub use error::{Error, Lock, Result};
pub use pool::Pool;
pub use stats::{ClassStats, PoolStats, StoreStats};
pub use store::{Compaction, Store, StoreInfo};
pub use types::*;
