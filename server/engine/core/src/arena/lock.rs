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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::map::Map;

    /// A lock in memory that children share.
    struct Shared(Map);

    impl Shared {
        fn new() -> Shared {
            let file = crate::arena::file::memfd().expect("a memory file");
            file.set_len(4096).expect("a frame");
            let shared = Shared(Map::new(file, 4096).expect("a mapping"));
            shared.lock().init().expect("a fresh lock");
            shared
        }

        fn lock(&self) -> &LockWord {
            self.0.view(0)
        }

        /// Take and release the lock; whether its last owner died.
        fn owner_died(&self) -> bool {
            let acquired = self.lock().acquire(Level::Shard).expect("a usable lock");
            self.lock().release(Level::Shard);
            acquired.owner_died
        }
    }

    /// Run `body` in a forked child, and then kill it.
    fn in_a_killed_child(body: impl FnOnce()) {
        // SAFETY: the child makes system calls and takes locks of its own only, and never returns.
        unsafe {
            let mut ends = [0; 2];
            assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
            let child = libc::fork();
            if child == 0 {
                body();
                libc::write(ends[1], [1u8].as_ptr().cast(), 1);
                loop {
                    libc::pause();
                }
            }
            let mut byte = 0u8;
            assert_eq!(libc::read(ends[0], (&raw mut byte).cast(), 1), 1);
            libc::kill(child, libc::SIGKILL);
            assert_eq!(libc::waitpid(child, std::ptr::null_mut(), 0), child);
            libc::close(ends[0]);
            libc::close(ends[1]);
        }
    }

    #[test]
    fn a_killed_owner_is_reported_once_and_the_lock_goes_on() {
        let shared = Shared::new();
        for _ in 0..3 {
            assert!(!shared.owner_died());
            in_a_killed_child(|| drop(shared.lock().acquire(Level::Shard)));
            assert!(shared.owner_died());
        }
    }

    #[test]
    fn a_killed_process_that_had_released_is_no_dead_owner() {
        let shared = Shared::new();
        in_a_killed_child(|| assert!(!shared.owner_died()));
        assert!(!shared.owner_died());
    }

    /// The heir dies too, between the news and its own release.
    #[test]
    fn an_heir_that_is_killed_leaves_the_same_news() {
        let shared = Shared::new();
        in_a_killed_child(|| drop(shared.lock().acquire(Level::Shard)));
        in_a_killed_child(|| drop(shared.lock().acquire(Level::Shard)));
        assert!(shared.owner_died());
    }

    #[test]
    fn an_owner_that_becomes_another_program_is_a_dead_owner() {
        let shared = Shared::new();
        // SAFETY: as above; the child becomes another program or exits.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                let _ = shared.lock().acquire(Level::Shard);
                let program = c"/bin/true".as_ptr();
                libc::execv(program, [program, std::ptr::null()].as_ptr());
                libc::_exit(1);
            }
            assert_eq!(libc::waitpid(child, std::ptr::null_mut(), 0), child);
        }
        assert!(shared.owner_died());
    }

    #[test]
    fn a_thread_that_ends_with_the_lock_is_a_dead_owner() {
        let shared = Shared::new();
        std::thread::scope(|scope| {
            scope.spawn(|| drop(shared.lock().acquire(Level::Shard)));
        });
        assert!(shared.owner_died());
    }

    #[test]
    fn memory_that_is_no_lock_is_an_error_and_can_be_made_one() {
        let shared = Shared::new();
        shared.0.copy_in(0, &[0xee; 64]);
        assert!(shared.lock().acquire(Level::Shard).is_err());
        shared.lock().init().expect("a fresh lock");
        assert!(!shared.owner_died());
    }

    #[cfg(debug_assertions)]
    mod order_is_asserted {
        use super::*;

        #[test]
        fn admin_then_shard_is_the_order() {
            let (admin, shard) = (Shared::new(), Shared::new());
            admin.lock().acquire(Level::Admin).expect("a usable lock");
            shard.lock().acquire(Level::Shard).expect("a usable lock");
            shard.lock().release(Level::Shard);
            admin.lock().release(Level::Admin);
        }

        #[test]
        #[should_panic(expected = "lock order: Admin taken while holding [Shard]")]
        fn admin_after_shard_is_not() {
            let (admin, shard) = (Shared::new(), Shared::new());
            shard.lock().acquire(Level::Shard).expect("a usable lock");
            let _ = admin.lock().acquire(Level::Admin);
        }

        #[test]
        #[should_panic(expected = "lock order: Shard taken while holding [Shard]")]
        fn two_shards_are_not() {
            let (one, other) = (Shared::new(), Shared::new());
            one.lock().acquire(Level::Shard).expect("a usable lock");
            let _ = other.lock().acquire(Level::Shard);
        }
    }
}
