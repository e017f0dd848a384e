//! Locks on bytes of the arena's file. They belong to an open file description and disappear with it, whoever dies.
//!
//! `docs/design.md`, 4.2, lists the bytes. Everything here may be called from the fork handler of a child.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

/// Held while attaching.
pub const ATTACHING: i64 = 0;
/// Held shared by all who are attached.
pub const ATTACHED: i64 = 1;
/// The byte of owner 0, who does not exist; each owner holds its own. Far from all others, of which some are counted in seconds.
pub const OWNERS: i64 = 1 << 32;

/// Longest pause between two tries.
const PAUSE: Duration = Duration::from_millis(20);

fn flock(kind: libc::c_int, byte: i64) -> libc::flock {
    // SAFETY: all-zero is a valid `flock`.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    (range.l_type, range.l_whence) = (kind as _, libc::SEEK_SET as _);
    (range.l_start, range.l_len) = (byte, 1);
    range
}

/// Lock a byte, or change or give up the lock that is held on it, if nobody is in the way.
pub fn lock(file: RawFd, byte: i64, kind: libc::c_int) -> io::Result<()> {
    let range = flock(kind, byte);
    loop {
        // SAFETY: a plain system call; `range` outlives it.
        if unsafe { libc::fcntl(file, libc::F_OFD_SETLK, &raw const range) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Lock a byte exclusively; whether it was to be had in time.
pub fn lock_within(file: RawFd, byte: i64, limit: Duration) -> io::Result<bool> {
    let begun = Instant::now();
    let mut pause = Duration::from_micros(200);
    loop {
        match lock(file, byte, libc::F_WRLCK) {
            Ok(()) => return Ok(true),
            Err(e) if !is_taken(&e) => return Err(e),
            Err(_) if begun.elapsed() >= limit => return Ok(false),
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(PAUSE);
    }
}

fn is_taken(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES))
}

/// Whether another open file description holds a byte.
pub fn is_locked(file: RawFd, byte: i64) -> bool {
    let mut range = flock(libc::F_WRLCK, byte);
    // SAFETY: a plain system call; `range` outlives it.
    let asked = unsafe { libc::fcntl(file, libc::F_OFD_GETLK, &raw mut range) };
    // Who cannot be asked about is taken to live: its lock is waited for, not taken away.
    asked != 0 || libc::c_int::from(range.l_type) != libc::F_UNLCK
}
