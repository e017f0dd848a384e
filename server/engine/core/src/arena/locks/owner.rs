//! Owners: each attachment has a number that is never reused, and its locks carry that number.
//!
//! While attached, an owner holds a file lock on the byte of its number (from `file_lock::OWNERS` on), so the kernel
//! knows whether it is alive; process ids, clocks and namespaces are not consulted. That lock belongs to an open file
//! description that is not mapped, because a mapping would keep it open in a forked child. A child drops its parent's
//! description and takes a number of its own before any of its other code runs, and is then an attachment like any
//! other. A child that cannot (without `/proc` or a free descriptor) has no number, and its calls are refused.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, RawFd};
use std::sync::Once;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::SeqCst};

use super::super::mapping::map::Map;
use super::super::mapping::registry::{self, Entry};
use super::file_lock::{self, ATTACHED, OWNERS};

/// The bits of a lock's word that are its owner's number.
pub const OWNER_MASK: u32 = (1 << 30) - 1;
/// Where the superblock counts owners.
pub const OWNERS_AT: u64 = 192;
/// Owners whose processes are noted, the latest of each remainder.
pub const KNOWN_OWNERS: u32 = 128;

/// Numbers tried until one is free: after a billion of them they come again.
const TRIES: u32 = 1024;

/// This process as one of those attached to a mapping.
pub struct Owner {
    entry: &'static Entry,
}

/// Another open file description of an open file.
pub fn open_again(file: &File) -> io::Result<File> {
    reopen(file.as_raw_fd())
}

fn reopen(file: RawFd) -> io::Result<File> {
    let mut name = [0u8; 32];
    let _ = write!(&mut name[..], "/proc/self/fd/{file}");
    let path = CStr::from_bytes_until_nul(&name).expect("shorter than its room");
    // SAFETY: a plain system call on a NUL-terminated string; the descriptor it returns is owned by nobody else.
    unsafe {
        match libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(File::from_raw_fd(fd)),
        }
    }
}

impl Owner {
    /// Hold byte 1 shared, and a number; `locks` is another open file description of what is mapped.
    pub fn new(map: &Map, locks: File) -> io::Result<Owner> {
        watch_forks()?;
        let owner = Owner { entry: map.entry() };
        file_lock::lock(locks.as_raw_fd(), ATTACHED, libc::F_RDLCK)?;
        registry::without_fork(|| owner.entry.locks.store(locks.into_raw_fd(), SeqCst));
        owner.entry.owner.store(number(owner.entry)?, SeqCst);
        Ok(owner)
    }

    /// The number; 0 in a child that could not get one.
    #[inline(always)]
    pub fn number(&self) -> u32 {
        self.entry.owner.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Whether another owner is there.
    pub fn is_alive(&self, number: u32) -> bool {
        file_lock::is_locked(self.entry.locks.load(SeqCst), OWNERS + i64::from(number))
    }

    /// The descriptor that holds the locks.
    pub fn locks(&self) -> RawFd {
        self.entry.locks.load(SeqCst)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        registry::without_fork(|| {
            let locks = self.entry.locks.swap(-1, SeqCst);
            if locks >= 0 {
                // SAFETY: the descriptor is this owner's, and nobody knows it any more.
                drop(unsafe { File::from_raw_fd(locks) });
            }
        });
    }
}

/// The process that an owner says it is, for messages alone: anybody may have written it.
pub fn process_of(map: &Map, number: u32) -> Option<u32> {
    let word = map
        .view::<super::super::mapping::cell::W64>(known_at(number))
        .get();
    (word >> 32 == u64::from(number)).then_some(word as u32)
}

fn known_at(number: u32) -> u64 {
    OWNERS_AT + 8 + u64::from(number % KNOWN_OWNERS) * 8
}

/// Take a number, and hold its byte by the entry's descriptor. Nothing is taken from the heap.
fn number(entry: &Entry) -> io::Result<u32> {
    let word = |at: u64| {
        let at = entry.base.load(SeqCst) + at as usize;
        // SAFETY: aligned words of the superblock, mapped as long as the entry has a base, and only ever used as atomics.
        unsafe { &*(at as *const AtomicU64) }
    };
    for _ in 0..TRIES {
        let number = word(OWNERS_AT).fetch_add(1, SeqCst) as u32 & OWNER_MASK;
        let byte = OWNERS + i64::from(number);
        if number != 0 && file_lock::lock(entry.locks.load(SeqCst), byte, libc::F_WRLCK).is_ok() {
            let known = u64::from(number) << 32 | u64::from(std::process::id());
            word(known_at(number)).store(known, SeqCst);
            return Ok(number);
        }
    }
    Err(io::Error::from_raw_os_error(libc::ENOLCK))
}

fn watch_forks() -> io::Result<()> {
    static ONCE: Once = Once::new();
    static FAILED: AtomicI32 = AtomicI32::new(0);
    ONCE.call_once(|| {
        // SAFETY: the handlers live as long as the program and take nothing from the heap.
        let failed = unsafe {
            libc::pthread_atfork(
                Some(before_fork),
                Some(after_in_parent),
                Some(after_in_child),
            )
        };
        FAILED.store(failed, SeqCst);
    });
    match FAILED.load(SeqCst) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

extern "C" fn before_fork() {
    registry::enter();
}

extern "C" fn after_in_parent() {
    registry::leave();
}

extern "C" fn after_in_child() {
    for entry in registry::entries().filter(|entry| entry.locks.load(SeqCst) >= 0) {
        let number = attach_again(entry).unwrap_or(0);
        entry.owner.store(number, SeqCst);
    }
    registry::leave();
}

/// Let go of the parent's description, and hold the bytes by one of this process's own. Byte 1 is held all the while.
fn attach_again(entry: &Entry) -> io::Result<u32> {
    let inherited = entry.locks.load(SeqCst);
    let own = reopen(entry.file.load(SeqCst)).and_then(|own| {
        file_lock::lock(own.as_raw_fd(), ATTACHED, libc::F_RDLCK)?;
        Ok(own)
    });
    let Ok(own) = own else {
        entry.locks.store(-1, SeqCst);
        // SAFETY: the descriptor is the entry's, and nobody knows it any more.
        drop(unsafe { File::from_raw_fd(inherited) });
        return own.map(|_| 0);
    };
    entry.locks.store(own.into_raw_fd(), SeqCst);
    // SAFETY: as above.
    drop(unsafe { File::from_raw_fd(inherited) });
    number(entry)
}
