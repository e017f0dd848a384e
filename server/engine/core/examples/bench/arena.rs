//! Arenas to measure on, none of which outlives the run.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use tmem_core::{Pool, PoolSettings, Store, StoreOptions};

use crate::Result;

/// A private arena.
pub fn private(memory: u64) -> Result<Store> {
    Ok(Store::open(&StoreOptions {
        memory,
        ..StoreOptions::default()
    })?)
}

pub fn persistent(store: &Store) -> Result<Pool> {
    Ok(store.pool("bench", &PoolSettings::new(tmem_core::Kind::Persistent))?)
}

/// A file on tmpfs whose name is gone: it goes with the last process that has it open, however that ends.
pub struct Nameless {
    file: File,
}

impl Nameless {
    pub fn create(memory: u64) -> Result<(Nameless, Store)> {
        let path = PathBuf::from(format!("/dev/shm/tmem-bench-{}", std::process::id()));
        let store = Store::open(&StoreOptions {
            memory,
            arena: Some(path.clone()),
            ..StoreOptions::default()
        });
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let _ = std::fs::remove_file(&path);
        Ok((Nameless { file: file? }, store?))
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where this and other processes can open it while this one lives.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }
}
