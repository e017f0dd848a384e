//! SIGBUS in an arena is an error, not the end of the process: mapped bytes are missing because the file was truncated,
//! or because its disk or memory failed.
//!
//! The handler replaces the whole mapping with zeros, so that operations in progress can finish, and marks the arena
//! broken, so that every operation returns an error. Nothing reaches the file from then on. A SIGBUS elsewhere is
//! passed to the previous handler. The handler only makes system calls and reads the registry.

#![allow(unsafe_code)]

use std::mem::{MaybeUninit, zeroed};
use std::ptr::null_mut;
use std::sync::Once;
use std::sync::atomic::Ordering::SeqCst;

use super::registry;
use crate::types::FRAME;

static mut EARLIER: MaybeUninit<libc::sigaction> = MaybeUninit::uninit();

/// Have SIGBUS handled, once for the process. Called before the first arena is mapped.
pub fn install() {
    static ONCE: Once = Once::new();
    // SAFETY: `EARLIER` is written here alone, before the handler can be called.
    ONCE.call_once(|| unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = handle as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGBUS, null_mut(), (&raw mut EARLIER).cast());
        libc::sigaction(libc::SIGBUS, &raw const action, null_mut());
    });
}

extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid `info`; only its own signals (a code above 0) have an address.
    let at = unsafe { ((*info).si_code > 0).then(|| (*info).si_addr() as usize) };
    if !at.is_some_and(cut_off) {
        // SAFETY: written before this handler was installed.
        unsafe { pass_on(signal, info, context) }
    }
}

/// Have zeros where the arena is that an address lies in; false where it lies in none, or the system refuses.
fn cut_off(at: usize) -> bool {
    let hit = registry::entries().find(|entry| {
        let base = entry.base.load(SeqCst);
        base != 0 && (base..base + entry.len.load(SeqCst)).contains(&at)
    });
    hit.is_some_and(|entry| {
        entry.broken.store(true, SeqCst);
        let frame = at / FRAME * FRAME;
        zeros(entry.base.load(SeqCst), entry.len.load(SeqCst)) || zeros(frame, FRAME)
    })
}

fn zeros(at: usize, len: usize) -> bool {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: the range is an arena's mapping, or a frame of it, of which any bytes are sound.
    unsafe { libc::mmap(at as *mut _, len, access, kind, -1, 0) != libc::MAP_FAILED }
}

/// Do as if there were no handler here.
unsafe fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    type Plain = extern "C" fn(libc::c_int);
    type Full = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
    // SAFETY: by this function's contract; what was a handler before is one.
    unsafe {
        let earlier = *(&raw const EARLIER).cast::<libc::sigaction>();
        match earlier.sa_sigaction {
            libc::SIG_IGN if (*info).si_code <= 0 => {}
            libc::SIG_DFL | libc::SIG_IGN => {
                let mut default: libc::sigaction = zeroed();
                default.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &raw const default, null_mut());
                if (*info).si_code <= 0 {
                    libc::raise(signal); // nothing will fault again by itself
                }
            }
            handler if earlier.sa_flags & libc::SA_SIGINFO != 0 => {
                std::mem::transmute::<usize, Full>(handler)(signal, info, context);
            }
            handler => std::mem::transmute::<usize, Plain>(handler)(signal),
        }
    }
}
