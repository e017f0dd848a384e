//! The counters of an export.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::protocol::Errno;

/// What passed through an export since it was added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExportCounters {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub written_bytes: u64,
    /// Trims and zeroes.
    pub trims: u64,
    pub trimmed_bytes: u64,
    /// Flushes, hints and questions.
    pub others: u64,
    /// Replies with an error.
    pub errors: u64,
    /// Of these, writes for which there was no room.
    pub no_space: u64,
    /// Of these, pages that were corrupt and other failures of the backend.
    pub io_errors: u64,
    /// Connections let in, and refused because of the one that was there.
    pub attached: u64,
    pub refused: u64,
}

/// The same, while they are counted.
#[derive(Default)]
pub struct Counts {
    pub reads: AtomicU64,
    pub read_bytes: AtomicU64,
    pub writes: AtomicU64,
    pub written_bytes: AtomicU64,
    pub trims: AtomicU64,
    pub trimmed_bytes: AtomicU64,
    pub others: AtomicU64,
    pub errors: AtomicU64,
    pub no_space: AtomicU64,
    pub io_errors: AtomicU64,
    pub attached: AtomicU64,
    pub refused: AtomicU64,
}

impl Counts {
    pub fn error(&self, errno: Errno) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        match errno {
            Errno::NoSpace => self.no_space.fetch_add(1, Ordering::Relaxed),
            Errno::Io => self.io_errors.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
    }

    pub fn read(&self) -> ExportCounters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ExportCounters {
            reads: get(&self.reads),
            read_bytes: get(&self.read_bytes),
            writes: get(&self.writes),
            written_bytes: get(&self.written_bytes),
            trims: get(&self.trims),
            trimmed_bytes: get(&self.trimmed_bytes),
            others: get(&self.others),
            errors: get(&self.errors),
            no_space: get(&self.no_space),
            io_errors: get(&self.io_errors),
            attached: get(&self.attached),
            refused: get(&self.refused),
        }
    }
}
