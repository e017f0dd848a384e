//! tmem-core: a crash-proof compressed page store in shared memory.
//!
//! The folders are the layers, lower ones first: `arena <- alloc`, beside them `codec` and `index`; `shard` binds these
//! under one lock, as zcache's host code did; `batch` applies it to many pages; `store` is the public interface. The
//! crate knows no socket and no Python.

#![deny(unsafe_code)]

mod alloc;
mod arena;
mod batch;
mod codec;
mod error;
mod index;
mod outcome;
mod pool_table;
mod shard;
mod store;
mod types;

#[cfg(feature = "crash-points")]
pub use arena::{Crash, arm, disarm};
pub use arena::{waiting_at_least, waiting_at_most};
pub use batch::{Fetched, FetchedPage, LastPage, ScanCursor, ScannedCluster};
pub use codec::{Compressor, Encoded, Form, checksum, same_filled};
pub use error::{Error, Lock, Result};
pub use outcome::{Cause, Fetch, Outcome, Reason};
pub use store::pool::Pool;
pub use store::stats::{ClassStats, PoolStats, StoreStats};
pub use store::{Compaction, Store, StoreInfo};
pub use types::*;
