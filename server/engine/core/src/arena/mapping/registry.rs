//! All arenas that this process has mapped, in a fixed table that can be read without the heap.
//!
//! Its readers are the SIGBUS handler (`sigbus`) and the fork handlers (`owner`), so every field of an entry is atomic.
//! A mapping is listed before it is first touched and for as long as it is mapped.
//!
//! `SECTION` keeps forks apart from the opening and closing of an entry's descriptors, so that a child finds every
//! descriptor that it must close. It is held for a few system calls and never while waiting.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicUsize, Ordering::SeqCst};

/// Arenas that a process can have mapped at once.
const MOST: usize = 1024;

/// One mapping, and what its process is known by to the others.
pub struct Entry {
    taken: AtomicBool,
    /// Where it is mapped; 0 while it is not.
    pub base: AtomicUsize,
    pub len: AtomicUsize,
    /// The descriptor that is mapped.
    pub file: AtomicI32,
    /// Another open file description of the same file, which holds the locks; -1 while there is none.
    pub locks: AtomicI32,
    /// The number that stands in the locks this process holds; 0 where it has none.
    pub owner: AtomicU32,
    /// Bytes of the mapping could not be had: it is cut off from its file.
    pub broken: AtomicBool,
}

static ENTRIES: [Entry; MOST] = [const {
    Entry {
        taken: AtomicBool::new(false),
        base: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        file: AtomicI32::new(-1),
        locks: AtomicI32::new(-1),
        owner: AtomicU32::new(0),
        broken: AtomicBool::new(false),
    }
}; MOST];

static SECTION: AtomicBool = AtomicBool::new(false);

/// All entries that are in use.
pub fn entries() -> impl Iterator<Item = &'static Entry> {
    ENTRIES.iter().filter(|entry| entry.taken.load(SeqCst))
}

impl Entry {
    /// A free entry.
    pub fn claim() -> io::Result<&'static Entry> {
        let free = |entry: &&Entry| {
            let taken = &entry.taken;
            taken.compare_exchange(false, true, SeqCst, SeqCst).is_ok()
        };
        let entry = ENTRIES.iter().find(free);
        let entry = entry.ok_or_else(|| {
            io::Error::other(format!(
                "this process already has {MOST} arenas open, the maximum"
            ))
        })?;
        entry.broken.store(false, SeqCst);
        Ok(entry)
    }

    /// What is mapped is unmapped; the entry is free.
    pub fn free(&self) {
        self.file.store(-1, SeqCst);
        self.owner.store(0, SeqCst);
        self.taken.store(false, SeqCst);
    }

    #[inline(always)]
    pub fn is_broken(&self) -> bool {
        self.broken.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// Run `body` while no fork happens.
pub fn without_fork<T>(body: impl FnOnce() -> T) -> T {
    enter();
    let done = body();
    leave();
    done
}

pub fn enter() {
    while SECTION
        .compare_exchange_weak(false, true, SeqCst, SeqCst)
        .is_err()
    {
        std::thread::yield_now();
    }
}

pub fn leave() {
    SECTION.store(false, SeqCst);
}
