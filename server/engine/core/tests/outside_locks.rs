//! Fault 10. zcache compressed with locks held and interrupts off, so every put stopped the machine that long.
//!
//! Here a page is compressed from, and then decompressed into, memory that may not be touched: the thread that tries is held in the
//! fault's handler until another thread's gets have gone on, in the same shard. Were its lock held, they would not.
#![allow(unsafe_code)] // memory protection and its signal

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use support::{Fill, Finish, get, oid, page, persistent, put, store, stored};
use tmem_core::{Codec, Fetch, PoolSettings};

const PAGES: usize = 16;
const LEN: usize = PAGES * 4096;

static GETS: AtomicU64 = AtomicU64::new(0);
/// The memory that may not be touched, and what may be done with it once it was.
static GUARDED: AtomicUsize = AtomicUsize::new(0);
static WENT_ON: AtomicU64 = AtomicU64::new(0);

/// Wait for the gets of the other thread, and let this one go on.
extern "C" fn on_fault(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let guarded = GUARDED.load(SeqCst);
    // SAFETY: the kernel's own record of this fault.
    let at = unsafe { (*info).si_addr() } as usize;
    if !(guarded..guarded + 4096).contains(&at) {
        // SAFETY: async-signal-safe; a fault that is none of ours ends the test.
        unsafe { libc::abort() };
    }
    let (target, started) = (GETS.load(SeqCst) + 100, Instant::now());
    while GETS.load(SeqCst) < target && started.elapsed() < Duration::from_secs(60) {
        std::hint::spin_loop();
    }
    WENT_ON.fetch_add(u64::from(GETS.load(SeqCst) >= target), SeqCst);
    protect(guarded, libc::PROT_READ | libc::PROT_WRITE);
}

/// Change what may be done with a page of memory.
fn protect(at: usize, what: libc::c_int) {
    // SAFETY: a page of this test's own mapping.
    let failed = unsafe { libc::mprotect(at as *mut libc::c_void, 4096, what) };
    assert_eq!(failed, 0);
}

/// Forbid the last page of `memory`.
fn guard(memory: &[u8]) {
    let last = memory.as_ptr() as usize + LEN - 4096;
    GUARDED.store(last, SeqCst);
    protect(last, libc::PROT_NONE);
}

fn memory() -> &'static mut [u8] {
    // SAFETY: a fresh private mapping, for good; the handler is set before any of it is forbidden.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let at = libc::mmap(
            std::ptr::null_mut(),
            LEN,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            -1,
            0,
        );
        assert_ne!(at, libc::MAP_FAILED);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(
            libc::sigaction(libc::SIGSEGV, &raw const action, std::ptr::null_mut()),
            0
        );
        std::slice::from_raw_parts_mut(at.cast(), LEN)
    }
}

#[test]
fn fault_10_pages_are_compressed_and_decompressed_outside_the_locks() {
    let store = store(16 << 20, 1);
    let settings = PoolSettings {
        codec: Codec::Zstd { level: 19 },
        ..persistent()
    };
    let pool = store.pool("p", &settings).unwrap();
    assert!(stored(put(&pool, 2, 0, &page(Fill::Same, 1, 1, 4096))));
    let pages: Vec<u8> = (0..PAGES as u64)
        .flat_map(|i| page(Fill::Text, i, 1, 4096))
        .collect();
    let memory = memory();
    memory.copy_from_slice(&pages);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _over = Finish(&done);
        scope.spawn(|| {
            while !done.load(SeqCst) {
                assert!(get(&pool, 2, 0).is_some());
                GETS.fetch_add(1, SeqCst);
            }
        });
        guard(memory);
        assert!(
            pool.put_range(&oid(1), 0, memory)
                .unwrap()
                .into_iter()
                .all(stored)
        );
        assert_eq!(
            WENT_ON.load(SeqCst),
            1,
            "gets wait for another thread's compression"
        );
        memory.fill(0);
        guard(memory);
        assert_eq!(
            pool.get_range(&oid(1), 0, memory, false).unwrap(),
            [Fetch::Hit; PAGES]
        );
        assert_eq!(
            WENT_ON.load(SeqCst),
            2,
            "gets wait for another thread's decompression"
        );
    });
    assert_eq!(memory, pages);
}
