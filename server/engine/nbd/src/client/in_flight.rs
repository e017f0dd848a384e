//! The commands under way on a connection, by cookie, and the watch over their deadlines.
//!
//! The watcher looks when the earliest deadline passes, or sooner: as soon as one could pass of a command that is sent now
//! and has as long as those before. So it needs to be woken only by a command that has less time, or after a pause. A command
//! whose deadline passed stays until the server answers it, as its cookie is in use.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::command::{Answer, Done, Failure};

#[derive(Default)]
pub struct InFlight {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    waiting: HashMap<u64, Waiting>,
    next: u64,
    /// When the watcher looks by itself; None: when it is woken.
    look: Option<Instant>,
    /// The shortest time that a command had which was entered since it looked.
    shortest: Option<Duration>,
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

impl InFlight {
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
        let span = deadline.saturating_duration_since(Instant::now());
        state.shortest = Some(state.shortest.map_or(span, |shortest| shortest.min(span)));
        if state.look.is_none_or(|look| deadline < look) {
            state.look = Some(deadline);
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

    /// Fail what is late, until the connection is over; at most once in a `tick`.
    pub fn watch(&self, tick: Duration) {
        let mut state = self.state();
        while !state.closed {
            let now = Instant::now();
            if state.look.is_some_and(|look| look <= now) {
                let late = state.look(now, tick);
                drop(state);
                late.into_iter()
                    .for_each(|done| done(Err(Failure::TimedOut)));
                state = self.state();
                continue;
            }
            state = match state.look {
                Some(look) => {
                    let woken = self.wake.wait_timeout(state, look - now);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self
                    .wake
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

impl State {
    /// The completions of what is late, and when to look again.
    fn look(&mut self, now: Instant, tick: Duration) -> Vec<Done> {
        let late = self.waiting.values_mut();
        let late = late.filter(|waiting| waiting.deadline <= now);
        let late = late.filter_map(|waiting| waiting.done.take()).collect();
        let waiting = self.waiting.values();
        let waiting = waiting.filter(|waiting| waiting.done.is_some());
        let first = waiting.map(|waiting| waiting.deadline).min();
        let sent_now = self.shortest.take().map(|shortest| now + shortest);
        let next = first.into_iter().chain(sent_now).min();
        self.look = next.map(|next| next.max(now + tick));
        late
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, channel};

    fn send(table: &InFlight, within: Duration) -> (Instant, Receiver<Instant>) {
        let (sender, receiver) = channel();
        let deadline = Instant::now() + within;
        let done: Done = Box::new(move |_| {
            let _ = sender.send(Instant::now());
        });
        assert!(table.enter(0, 0, deadline, done).is_ok());
        (deadline, receiver)
    }

    #[test]
    fn each_command_fails_after_its_deadline_whatever_was_sent_before_it() {
        let table = InFlight::default();
        std::thread::scope(|scope| {
            scope.spawn(|| table.watch(Duration::from_millis(1)));
            let long = send(&table, Duration::from_secs(3600));
            for millis in [50, 5, 1, 5, 30, 0] {
                let (deadline, failed) = send(&table, Duration::from_millis(millis));
                let failed = failed.recv_timeout(Duration::from_secs(30)).unwrap();
                assert!(failed >= deadline);
            }
            assert!(long.1.try_recv().is_err());
            table.fail_all();
        });
    }

    #[test]
    fn commands_that_have_as_long_as_those_before_wake_nobody() {
        let (table, hour) = (InFlight::default(), Duration::from_secs(3600));
        let _first = send(&table, hour);
        let now = Instant::now();
        assert!(table.state().look(now, Duration::from_millis(1)).is_empty());
        let look = table.state().look;
        let _second = send(&table, hour);
        assert_eq!(table.state().look, look);
        let _short = send(&table, Duration::from_secs(1));
        assert!(table.state().look < look);
    }
}
