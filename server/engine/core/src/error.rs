//! One tree of errors. A miss, a refusal and an eviction are outcomes, never errors.

use std::io;
use std::path::PathBuf;

pub type Result<T> = std::result::Result<T, Error>;

/// A call that makes no sense, or a store that cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller's argument is wrong; nothing was touched.
    #[error("{0}")]
    Invalid(String),
    /// The pool exists with other settings, or the arena does.
    #[error("{0}")]
    Mismatch(String),
    /// No pool of that name, or the handle's pool was destroyed.
    #[error("pool {0:?} does not exist")]
    UnknownPool(String),
    /// A fixed table of the arena is full.
    #[error("{0}")]
    Exhausted(String),
    /// The file is not an arena, is another version, or is damaged.
    #[error("arena {path}: {why}")]
    Arena { path: String, why: String },
    /// The operating system refused.
    #[error("arena {}: {what}: {source}", path.display())]
    Io {
        path: PathBuf,
        what: &'static str,
        source: io::Error,
    },
    /// A shard of the arena is damaged beyond what its slots can rebuild.
    #[error("shard {shard} of the arena is damaged: {why}")]
    Damaged { shard: u32, why: String },
}
