//! Cells: the words of shared memory, and the only way to store into them one at a time.
//!
//! A cell is written under its shard's lock and may be read without it where a torn *set* of words does no harm
//! (statistics). `publish` is the store that makes what was written before it count: it is never reordered before
//! those, by the compiler or the machine.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, compiler_fence};

/// A 32-bit cell.
#[repr(transparent)]
#[derive(Debug)]
pub struct W32(AtomicU32);

/// A 64-bit cell.
#[repr(transparent)]
#[derive(Debug)]
pub struct W64(AtomicU64);

impl W32 {
    #[inline(always)]
    pub fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    #[inline(always)]
    pub fn set(&self, value: u32) {
        crash_point();
        self.0.store(value, Ordering::Relaxed);
    }

    /// Store after everything written so far, and before everything written from now on. A process may be killed between
    /// any two stores, so it is the compiler that must keep them in order; what the machine has executed will be seen.
    #[inline(always)]
    pub fn publish(&self, value: u32) {
        crash_point();
        compiler_fence(Ordering::SeqCst);
        self.0.store(value, Ordering::Release);
        compiler_fence(Ordering::SeqCst);
    }

    #[inline(always)]
    pub fn add(&self, n: u32) {
        self.set(self.get().wrapping_add(n));
    }

    #[inline(always)]
    pub fn sub(&self, n: u32) {
        self.set(self.get().wrapping_sub(n));
    }
}

impl W64 {
    #[inline(always)]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    #[inline(always)]
    pub fn set(&self, value: u64) {
        crash_point();
        self.0.store(value, Ordering::Relaxed);
    }

    /// Store after everything written so far, and before everything written from now on.
    pub fn publish(&self, value: u64) {
        crash_point();
        compiler_fence(Ordering::SeqCst);
        self.0.store(value, Ordering::Release);
        compiler_fence(Ordering::SeqCst);
    }

    /// Add under the owner's lock (not atomic as a whole).
    #[inline(always)]
    pub fn add(&self, n: u64) {
        self.set(self.get().wrapping_add(n));
    }

    #[inline(always)]
    pub fn sub(&self, n: u64) {
        self.set(self.get().wrapping_sub(n));
    }

    /// Add atomically, for cells that have no lock; ordered with every other such call and `get_ordered`.
    pub fn fetch_add(&self, n: u64) -> u64 {
        crash_point();
        self.0.fetch_add(n, Ordering::SeqCst)
    }

    pub fn fetch_sub(&self, n: u64) -> u64 {
        crash_point();
        self.0.fetch_sub(n, Ordering::SeqCst)
    }

    pub fn get_ordered(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub(crate) fn crash_point() {}

#[cfg(feature = "crash-points")]
pub use crash::{Crash, arm, crash_point, disarm};

/// Stopping the world before the n-th store, to see what a process killed there leaves behind.
#[cfg(feature = "crash-points")]
mod crash {
    use std::cell::Cell;

    thread_local! {
        static LEFT: Cell<u64> = const { Cell::new(u64::MAX) };
    }

    /// The panic's payload at a crash point.
    #[derive(Debug)]
    pub struct Crash;

    /// Panic with `Crash` before the `n`-th store of this thread from now on (0 is the next).
    pub fn arm(n: u64) {
        LEFT.set(n);
    }

    /// Never mind; true if the crash had not come to pass.
    pub fn disarm() -> bool {
        LEFT.replace(u64::MAX) != u64::MAX
    }

    #[inline]
    pub fn crash_point() {
        match LEFT.get() {
            u64::MAX => {}
            0 => {
                LEFT.set(u64::MAX);
                std::panic::resume_unwind(Box::new(Crash));
            }
            n => LEFT.set(n - 1),
        }
    }
}
