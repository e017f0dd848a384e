//! Process-shared robust locks: when an owner dies, the next taker gets the lock and the news.
//!
//! These are the C library's robust mutexes, in the arena. The order in which locks may be taken is `Level`'s:
//! the admin lock before a shard's, and never two of a level. Debug builds assert it for every thread.

#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::io;

use super::map::Overlay;

/// Room for a `pthread_mutex_t` of any 64-bit Linux.
#[repr(C, align(64))]
pub struct LockWord {
    mutex: UnsafeCell<libc::pthread_mutex_t>,
}

// SAFETY: a pthread mutex is made to be shared between threads and, being process-shared, between processes.
unsafe impl Sync for LockWord {}
// SAFETY: as above; any bytes are tolerated by the C library as a (perhaps broken) mutex.
unsafe impl Overlay for LockWord {}

const _: () = assert!(size_of::<LockWord>() == 64);

/// Where a lock stands in the lock order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    Admin,
    Shard,
}

/// How a lock was got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Acquired {
    /// Its last owner died holding it.
    pub owner_died: bool,
    /// Another held it, so that the taker slept.
    pub waited: bool,
}

impl LockWord {
    /// Make it a fresh, free lock. Nobody else may be using it.
    pub fn init(&self) -> io::Result<()> {
        // SAFETY: the attribute is initialised before use and destroyed after; the mutex memory is exclusively ours
        // by this function's contract.
        unsafe {
            let mut attr = std::mem::MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
            check(libc::pthread_mutexattr_init(attr.as_mut_ptr()))?;
            let attr = attr.as_mut_ptr();
            check(libc::pthread_mutexattr_setpshared(
                attr,
                libc::PTHREAD_PROCESS_SHARED,
            ))?;
            check(libc::pthread_mutexattr_setrobust(
                attr,
                libc::PTHREAD_MUTEX_ROBUST,
            ))?;
            check(libc::pthread_mutex_init(self.mutex.get(), attr))?;
            libc::pthread_mutexattr_destroy(attr);
        }
        Ok(())
    }

    /// Take the lock; `Err` only where the memory is not a usable lock.
    pub fn acquire(&self, level: Level) -> io::Result<Acquired> {
        order::entering(level);
        // SAFETY: the mutex lives in the mapping, which outlives `self`.
        let (mut code, mut waited) = (
            unsafe { libc::pthread_mutex_trylock(self.mutex.get()) },
            false,
        );
        if code == libc::EBUSY {
            waited = true;
            // SAFETY: as above.
            code = unsafe { libc::pthread_mutex_lock(self.mutex.get()) };
        }
        if code == libc::EOWNERDEAD {
            // SAFETY: this thread now owns the mutex, whose owner died.
            code = unsafe { libc::pthread_mutex_consistent(self.mutex.get()) };
            check(code)?;
            order::entered(level);
            return Ok(Acquired {
                owner_died: true,
                waited,
            });
        }
        check(code)?;
        order::entered(level);
        Ok(Acquired {
            owner_died: false,
            waited,
        })
    }

    /// Release the lock, held by this thread.
    pub fn release(&self, level: Level) {
        order::left(level);
        // SAFETY: the calling thread owns the mutex.
        let code = unsafe { libc::pthread_mutex_unlock(self.mutex.get()) };
        debug_assert_eq!(code, 0, "released a lock this thread does not hold");
    }
}

fn check(code: libc::c_int) -> io::Result<()> {
    if code == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(code))
    }
}

#[cfg(debug_assertions)]
mod order {
    use super::Level;
    use std::cell::RefCell;

    thread_local! {
        static HELD: RefCell<Vec<Level>> = const { RefCell::new(Vec::new()) };
    }

    pub fn entering(level: Level) {
        HELD.with_borrow(|held| {
            assert!(
                held.iter().all(|&h| h < level),
                "lock order: {level:?} taken while holding {held:?}"
            );
        });
    }

    pub fn entered(level: Level) {
        HELD.with_borrow_mut(|held| held.push(level));
    }

    pub fn left(level: Level) {
        HELD.with_borrow_mut(|held| {
            let at = held
                .iter()
                .rposition(|&h| h == level)
                .expect("lock order: released a lock not held");
            held.remove(at);
        });
    }
}

#[cfg(not(debug_assertions))]
mod order {
    use super::Level;

    pub fn entering(_: Level) {}
    pub fn entered(_: Level) {}
    pub fn left(_: Level) {}
}
