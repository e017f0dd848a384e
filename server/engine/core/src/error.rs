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
    /// Another process holds a lock and did not release it in time. Nothing was changed under this lock.
    #[error("{}", busy(lock, holder))]
    Busy {
        lock: Lock,
        /// The process that claims to hold it.
        holder: Option<u32>,
        /// The full limit was waited for, and not a shorter one of the thread's own.
        waited: bool,
    },
    /// A shard of the arena is damaged beyond what its slots can rebuild.
    #[error("shard {shard} of the arena is damaged: {why}")]
    Damaged { shard: u32, why: String },
}

/// Turns `Busy` into None, for callers that can do without.
pub fn unless_busy<T>(done: Result<T>) -> Result<Option<T>> {
    match done {
        Err(Error::Busy { .. }) => Ok(None),
        done => done.map(Some),
    }
}

/// A lock of the arena.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lock {
    /// Of the file, held while attaching.
    Attaching,
    Admin,
    Shard(u32),
}

fn busy(lock: &Lock, holder: &Option<u32>) -> String {
    let who = match holder {
        Some(process) => format!("process {process} is holding"),
        None => "another process is holding".into(),
    };
    let what = match lock {
        Lock::Attaching => "the attach lock".into(),
        Lock::Admin => "the lock of the pool table".into(),
        Lock::Shard(shard) => format!("the lock of shard {shard}"),
    };
    format!("{who} {what} of the arena and has not released it")
}
