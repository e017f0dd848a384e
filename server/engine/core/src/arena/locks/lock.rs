//! Locks shared by processes. When an owner dies, the next taker gets the lock and learns of it; when an owner lives
//! but does not release the lock, the wait ends at its limit.
//!
//! A lock is one word: its owner's number (0 when free) and a bit that says that someone sleeps. It contains no
//! pointer, so a corrupted word can do no more than make its takers wait. Taking or releasing a free lock is one atomic
//! exchange and no system call. A taker that finds it held sleeps in slices, so a wake-up lost with a dead waiter
//! causes a delay and no hang, and checks after each slice whether the owner is alive (`owner`). The lock of a dead
//! owner is taken over by exchanging exactly that value: numbers are never reused, so a lock that has been passed on
//! since cannot be taken by mistake.
//! `Level` is the lock order: the admin lock before a shard's, and never two of a level. Debug builds assert it per
//! thread.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering::*};
use std::time::{Duration, Instant};

use super::super::mapping::map::Overlay;
use super::owner::{OWNER_MASK, Owner};

/// Somebody sleeps until the lock is released.
const SLEEPERS: u32 = 1 << 31;
/// Looks at a lock that is taken before the taker sleeps: most are held for a moment.
const LOOKS: u32 = 64;
/// How long a sleeper sleeps before it looks again by itself, at first and at most.
const FIRST_SLICE: Duration = Duration::from_millis(1);
const LONGEST_SLICE: Duration = Duration::from_millis(16);

/// A lock of the arena.
#[repr(C, align(64))]
pub struct LockWord {
    word: AtomicU32,
    _room: [AtomicU32; 15],
}

// SAFETY: made of atomics.
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
    /// Another held it, so that the taker waited.
    pub waited: bool,
}

/// Why a lock was not got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Missed {
    /// The owner of this number, who lives, held it all the while.
    Held(u32),
    /// The taker has no number of its own (see `owner`).
    Nobody,
}

impl LockWord {
    /// Make it a fresh, free lock. Nobody else may be using it.
    pub fn init(&self) {
        super::super::mapping::cell::crash_point();
        self._room.iter().for_each(|room| room.store(0, Relaxed));
        self.word.store(0, Release);
    }

    /// Take the lock, waiting no longer than `limit()`.
    #[inline]
    pub fn acquire(
        &self,
        owner: &Owner,
        level: Level,
        limit: impl FnOnce() -> Duration,
    ) -> Result<Acquired, Missed> {
        order::entering(level);
        let number = owner.number();
        let free = number != 0 && self.exchange(0, number);
        let acquired = if free {
            Acquired {
                owner_died: false,
                waited: false,
            }
        } else {
            self.wait(owner, limit())?
        };
        order::entered(level);
        Ok(acquired)
    }

    /// Release the lock, held by this thread.
    #[inline]
    pub fn release(&self, level: Level) {
        order::left(level);
        if self.word.swap(0, Release) & SLEEPERS != 0 {
            futex(&self.word, libc::FUTEX_WAKE, 1, None);
        }
    }

    /// Who holds it; 0 is nobody.
    pub fn holder(&self) -> u32 {
        self.word.load(Relaxed) & OWNER_MASK
    }

    #[inline(always)]
    fn exchange(&self, from: u32, to: u32) -> bool {
        self.word
            .compare_exchange(from, to, Acquire, Relaxed)
            .is_ok()
    }

    #[cold]
    fn wait(&self, owner: &Owner, limit: Duration) -> Result<Acquired, Missed> {
        let (begun, number) = (Instant::now(), owner.number());
        let (mut slice, mut slept, mut looks, mut doubted) = (FIRST_SLICE, false, 0, false);
        if number == 0 {
            return Err(Missed::Nobody);
        }
        // Who has slept does not know whether others do.
        let own = |slept| if slept { number | SLEEPERS } else { number };
        loop {
            let (word, left) = (
                self.word.load(Relaxed),
                limit.saturating_sub(begun.elapsed()),
            );
            let holder = word & OWNER_MASK;
            if holder == 0 {
                if self.exchange(word, own(slept) | word & SLEEPERS) {
                    return Ok(Acquired {
                        owner_died: false,
                        waited: true,
                    });
                }
                continue;
            }
            if looks < LOOKS {
                looks += 1;
                std::hint::spin_loop();
                continue;
            }
            // One's own number is another thread's of this process, which lives.
            if (doubted || left.is_zero()) && holder != number && !owner.is_alive(holder) {
                if self.exchange(word, own(true)) {
                    return Ok(Acquired {
                        owner_died: true,
                        waited: true,
                    });
                }
                continue;
            }
            if left.is_zero() {
                return Err(Missed::Held(holder));
            }
            if word & SLEEPERS != 0 || self.exchange(word, word | SLEEPERS) {
                doubted = !futex(
                    &self.word,
                    libc::FUTEX_WAIT,
                    word | SLEEPERS,
                    Some(slice.min(left)),
                );
                slept = true;
                slice = if doubted {
                    (slice * 2).min(LONGEST_SLICE)
                } else {
                    slice
                };
            }
        }
    }
}

/// Sleep while the word has a value, or wake so many who do; false where a sleeper's time ended.
fn futex(word: &AtomicU32, what: libc::c_int, value: u32, most: Option<Duration>) -> bool {
    let most = most.map(|most| libc::timespec {
        tv_sec: most.as_secs() as _,
        tv_nsec: most.subsec_nanos() as _,
    });
    let most = most.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the word is mapped, and the time outlives the call.
    let done = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), what, value, most) };
    done >= 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ETIMEDOUT)
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
    use crate::arena::mapping::map::Map;
    use crate::arena::{locks::owner, trust};

    const LONG: Duration = Duration::from_secs(60);

    /// A lock in memory that children share, as this process has it attached.
    struct Shared {
        owner: Owner,
        map: Map,
    }

    impl Shared {
        fn new() -> Shared {
            let file = trust::memfd().expect("a memory file");
            file.set_len(4096).expect("a frame");
            let locks = owner::open_again(&file).expect("its other description");
            let map = Map::new(file, 4096).expect("a mapping");
            let owner = Owner::new(&map, locks).expect("a number");
            Shared { owner, map }
        }

        fn lock(&self) -> &LockWord {
            self.map.view(2048)
        }

        fn acquire(&self, limit: Duration) -> Result<Acquired, Missed> {
            self.lock().acquire(&self.owner, Level::Shard, || limit)
        }

        /// Take and release the lock; whether its last owner died.
        fn owner_died(&self) -> bool {
            let acquired = self.acquire(LONG).expect("a free lock");
            self.lock().release(Level::Shard);
            acquired.owner_died
        }

        /// The lock's word is any.
        fn tamper(&self, word: u32) {
            self.lock().word.store(word, SeqCst);
        }
    }

    /// Run `body` in a forked child, `meanwhile` while that pauses, and then kill the child.
    fn in_a_child(body: impl FnOnce(), meanwhile: impl FnOnce()) {
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
            meanwhile();
            libc::kill(child, libc::SIGKILL);
            assert_eq!(libc::waitpid(child, std::ptr::null_mut(), 0), child);
            libc::close(ends[0]);
            libc::close(ends[1]);
        }
    }

    fn in_a_killed_child(body: impl FnOnce()) {
        in_a_child(body, || {});
    }

    #[test]
    fn a_killed_owner_is_reported_once_and_the_lock_goes_on() {
        let shared = Shared::new();
        for _ in 0..3 {
            assert!(!shared.owner_died());
            in_a_killed_child(|| _ = shared.acquire(LONG));
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
        in_a_killed_child(|| _ = shared.acquire(LONG));
        in_a_killed_child(|| _ = shared.acquire(LONG));
        assert!(shared.owner_died());
    }

    #[test]
    fn an_owner_that_lives_is_waited_for_and_no_longer_than_asked() {
        let shared = Shared::new();
        let meanwhile = || {
            let begun = Instant::now();
            let missed = shared.acquire(Duration::from_millis(40));
            assert!(begun.elapsed() >= Duration::from_millis(40));
            assert!(
                matches!(missed, Err(Missed::Held(holder)) if holder == shared.lock().holder())
            );
            assert!(matches!(
                shared.acquire(Duration::ZERO),
                Err(Missed::Held(_))
            ));
        };
        in_a_child(|| _ = shared.acquire(LONG), meanwhile);
        assert!(shared.owner_died());
    }

    /// The child holds nothing of its parent's: what the parent held when it died is recovered although the child lives.
    #[test]
    fn a_child_that_outlives_its_parent_does_not_keep_its_locks() {
        let shared = Shared::new();
        let numbers = Shared::new();
        let cell = |at: usize| &numbers.lock()._room[at];
        // SAFETY: the children make system calls only, and never return.
        let parent = unsafe {
            let parent = libc::fork();
            if parent == 0 {
                _ = shared.acquire(LONG);
                cell(0).store(shared.owner.number(), SeqCst);
                let child = libc::fork();
                if child == 0 {
                    libc::alarm(60); // it must not outlive a test that fails
                    cell(1).store(shared.owner.number(), SeqCst);
                    loop {
                        libc::pause();
                    }
                }
                cell(2).store(child as u32, SeqCst);
                while cell(1).load(SeqCst) == 0 {
                    libc::usleep(1000);
                }
                libc::_exit(0);
            }
            parent
        };
        // SAFETY: a child of this process.
        unsafe { assert_eq!(libc::waitpid(parent, std::ptr::null_mut(), 0), parent) };
        let (parent, child) = (cell(0).load(SeqCst), cell(1).load(SeqCst));
        assert!(parent != 0 && child != 0 && parent != child && child != shared.owner.number());
        assert!(shared.owner.is_alive(child) && !shared.owner.is_alive(parent));
        assert!(shared.owner_died());
        // SAFETY: the grandchild pauses for ever.
        unsafe { libc::kill(cell(2).load(SeqCst) as i32, libc::SIGKILL) };
    }

    #[test]
    fn an_owner_that_becomes_another_program_is_a_dead_owner() {
        let shared = Shared::new();
        // SAFETY: as above; the child becomes another program or exits.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                let _ = shared.acquire(LONG);
                let program = c"/bin/true".as_ptr();
                libc::execv(program, [program, std::ptr::null()].as_ptr());
                libc::_exit(1);
            }
            assert_eq!(libc::waitpid(child, std::ptr::null_mut(), 0), child);
        }
        assert!(shared.owner_died());
    }

    #[test]
    fn a_thread_waits_for_another_of_its_process_and_is_woken() {
        let shared = Shared::new();
        assert!(shared.acquire(LONG).is_ok());
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                let acquired = shared.acquire(LONG).expect("it is released");
                shared.lock().release(Level::Shard);
                acquired
            });
            while shared.lock().word.load(SeqCst) & SLEEPERS == 0 {
                std::thread::yield_now();
            }
            shared.lock().release(Level::Shard);
            let acquired = waits.join().expect("it does not panic");
            assert_eq!((acquired.owner_died, acquired.waited), (false, true));
        });
    }

    /// Whatever a neighbour wrote there is a lock that is free, a dead owner's, or waited for in vain.
    #[test]
    fn any_value_of_a_lock_is_a_lock() {
        let shared = Shared::new();
        let own = shared.owner.number();
        for word in [
            1 << 30,
            SLEEPERS,
            OWNER_MASK,
            own | SLEEPERS,
            own,
            1 << 30 | 77,
            u32::MAX,
        ] {
            shared.tamper(word);
            match shared.acquire(Duration::from_millis(2)) {
                Ok(_) => shared.lock().release(Level::Shard),
                Err(missed) => assert_eq!(missed, Missed::Held(own)),
            }
            shared.lock().init();
            assert!(!shared.owner_died(), "{word:x}");
        }
    }

    #[cfg(debug_assertions)]
    mod order_is_asserted {
        use super::*;

        impl Shared {
            fn take(&self, level: Level) {
                let acquired = self.lock().acquire(&self.owner, level, || LONG);
                assert!(acquired.is_ok());
            }
        }

        #[test]
        fn admin_then_shard_is_the_order() {
            let (admin, shard) = (Shared::new(), Shared::new());
            admin.take(Level::Admin);
            shard.take(Level::Shard);
            shard.lock().release(Level::Shard);
            admin.lock().release(Level::Admin);
        }

        #[test]
        #[should_panic(expected = "lock order: Admin taken while holding [Shard]")]
        fn admin_after_shard_is_not() {
            let (admin, shard) = (Shared::new(), Shared::new());
            shard.take(Level::Shard);
            admin.take(Level::Admin);
        }

        #[test]
        #[should_panic(expected = "lock order: Shard taken while holding [Shard]")]
        fn two_shards_are_not() {
            let (one, other) = (Shared::new(), Shared::new());
            one.take(Level::Shard);
            other.take(Level::Shard);
        }
    }
}
