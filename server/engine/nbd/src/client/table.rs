//! The commands under way on a connection, by cookie, and the watch over their deadlines.
//!
//! The watcher sleeps while nothing is under way, and for a while after that stays awake, so that a command sent alone
//! need not wake it. A command whose deadline passed stays until the server answers it, as its cookie is in use.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Answer, Done, Failure};

/// Looks without anything under way after which the watcher sleeps.
const IDLE_LOOKS: u32 = 100;

#[derive(Default)]
pub struct Table {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    waiting: HashMap<u64, Waiting>,
    next: u64,
    /// The watcher looks now and then by itself.
    awake: bool,
    closed: bool,
}

/// A command under way.
struct Waiting {
    /// Taken when it was called.
    done: Option<Done>,
    deadline: Instant,
    /// Taken while the reader works on it.
    gathered: Gathered,
}

/// What has come of the answer to a command.
#[derive(Default)]
pub struct Gathered {
    /// Of a read.
    pub offset: u64,
    pub length: u32,
    pub answer: Answer,
    /// Of a read: the bytes that came, start and length.
    pub covered: Vec<(u32, u32)>,
    pub failure: Option<Failure>,
}

impl Gathered {
    /// Whether each byte of a read was covered once, or it failed.
    pub fn complete(&mut self) -> bool {
        self.covered.sort_unstable();
        let end = self.covered.iter().try_fold(0, |at, &(start, length)| {
            (start == at).then_some(start + length)
        });
        self.failure.is_some() || end == Some(self.length)
    }

    fn result(self) -> Result<Answer, Failure> {
        self.failure.map_or(Ok(self.answer), Err)
    }
}

impl Table {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn len(&self) -> usize {
        self.state().waiting.len()
    }

    /// A cookie for a command; its completion back if the connection is over.
    pub fn enter(
        &self,
        length: u32,
        offset: u64,
        deadline: Instant,
        done: Done,
    ) -> Result<u64, Done> {
        let mut state = self.state();
        if state.closed {
            return Err(done);
        }
        state.next += 1;
        let cookie = state.next;
        let waiting = Waiting {
            done: Some(done),
            deadline,
            gathered: Gathered {
                offset,
                length,
                ..Gathered::default()
            },
        };
        state.waiting.insert(cookie, waiting);
        if !state.awake {
            state.awake = true;
            self.wake.notify_one();
        }
        Ok(cookie)
    }

    /// What has come of a command so far, to be given back by `put_back` or `finish`; None if there is none of this cookie.
    pub fn take(&self, cookie: u64) -> Option<Gathered> {
        let mut state = self.state();
        let waiting = state.waiting.get_mut(&cookie)?;
        Some(std::mem::take(&mut waiting.gathered))
    }

    pub fn put_back(&self, cookie: u64, gathered: Gathered) {
        if let Some(waiting) = self.state().waiting.get_mut(&cookie) {
            waiting.gathered = gathered;
        }
    }

    /// The command is answered.
    pub fn finish(&self, cookie: u64, gathered: Gathered) {
        let waiting = self.state().waiting.remove(&cookie);
        if let Some(done) = waiting.and_then(|waiting| waiting.done) {
            done(gathered.result());
        }
    }

    pub fn fail_all(&self) {
        let all: Vec<Waiting> = {
            let mut state = self.state();
            state.closed = true;
            self.wake.notify_one();
            state.waiting.drain().map(|(_, waiting)| waiting).collect()
        };
        for mut waiting in all {
            if let Some(done) = waiting.done.take() {
                done(Err(Failure::Broken));
            }
        }
    }

    /// Fail what is late, until the connection is over.
    pub fn watch(&self, tick: Duration) {
        let mut idle = 0;
        loop {
            let late = {
                let mut state = self.state();
                idle = if state.waiting.is_empty() {
                    idle + 1
                } else {
                    0
                };
                if idle > IDLE_LOOKS && !state.closed {
                    state.awake = false;
                    while !state.awake && !state.closed {
                        state = self
                            .wake
                            .wait(state)
                            .unwrap_or_else(PoisonError::into_inner);
                    }
                    idle = 0;
                }
                if state.closed {
                    return;
                }
                let now = Instant::now();
                let waiting = state.waiting.values_mut();
                let late = waiting.filter(|waiting| waiting.deadline <= now);
                late.filter_map(|waiting| waiting.done.take())
                    .collect::<Vec<Done>>()
            };
            late.into_iter()
                .for_each(|done| done(Err(Failure::TimedOut)));
            std::thread::sleep(tick);
        }
    }
}
