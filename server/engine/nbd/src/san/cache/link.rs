//! The way to the cache: sessions, what is owed, and the keeper that brings the cache back.
//!
//! The cache is **up** when a session may be read from and put to. It is not while there is none (dead, unreachable), or
//! while it rests because it is slower than the SAN, or was late with a flush. Then changes are *owed*: their pages are
//! remembered, and flushed before the cache is up again.
//!
//! - A session has two connections: one for reads, one on which all puts and flushes go, in order.
//! - A command of the second that fails or is not answered in time ends its session: what became of it is unknown. The
//!   next session has another name, upon which the server carries out nothing more of the old one.
//! - [`Link::forget`] answers when the flush is done in a session that is up, or owed while none is; both are decided
//!   under one lock with going up and down, so no session goes up without a flush that was owed before. A change waits no
//!   longer for its flush than a read for its pages: then the session rests, so that nobody reads the pages, and the flush
//!   is owed. It comes after those that are under way, on the same connection.
//! - Only the keeper brings a session up, and only when nothing is owed.
//! - When more is owed than is remembered, or the server's instance is another one, the object is given up for a new one.
//!
//! Locking: `state`, then `up`. No session is dropped or closed under them, for that runs completions.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::pending_flushes::Owed;
use super::presence::Seen;
use super::usefulness::Judge;
use crate::backends::cache_object::{CONTEXT, PREFIX};
use crate::client::{Client, ClientTls, Command, ConnectError, Done, Endpoint, Failure, Options};
use crate::san::bytes::{hex, random};
use crate::san::counters::Counters;

/// Between two tries to bring the cache up, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(3);
/// A session that was up for longer is tried again without a long pause.
const LASTING: Duration = Duration::from_secs(10);
/// Reads by which a cache at rest is tried.
const PROBES: u32 = 8;
/// Most bytes of one flush.
const FLUSHED_AT_ONCE: u64 = 1 << 30;
/// Reads under way beyond which the SAN is asked.
const MOST_READS: usize = 512;

/// Why a cache rests to which the SAN is preferred.
const SLOW: &str = "it is slower than the SAN";

/// Where the cache is, and how long to wait for it.
#[derive(Clone, Debug)]
pub struct CacheAddress {
    pub endpoint: Endpoint,
    pub tls: Option<ClientTls>,
    pub pool: String,
    /// Bytes of a page of the pool.
    pub page: u32,
    /// For connecting.
    pub connect: Duration,
    /// For a put or a flush; after it the session is over.
    pub patience: Duration,
}

/// The object in the pool that holds the volume's pages, and the server's instance it is known to be good at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    pub object: [u8; 24],
    pub instance: Option<String>,
}

/// Two connections to the object.
pub struct Session {
    object: [u8; 24],
    reads: Client,
    changes: Client,
}

struct State {
    generation: Generation,
    /// What the cache is waited for with: a session at rest.
    resting: Option<Arc<Session>>,
    owed: Owed,
    /// Of what was owed, some is being flushed.
    paying: bool,
    stopping: bool,
    next_try: Instant,
    pause: Duration,
    up_since: Instant,
    /// Why the cache is not up.
    why: String,
}

pub struct Link {
    address: CacheAddress,
    /// Content never changes, and all hosts name it alike: there are no sessions and no generations.
    shared: bool,
    up: RwLock<Option<Arc<Session>>>,
    state: Mutex<State>,
    wake: Condvar,
    counters: Arc<Counters>,
    judge: Arc<Judge>,
    seen: Arc<Seen>,
}

impl Session {
    pub fn close(&self) {
        self.reads.close();
        self.changes.close();
    }

    pub fn is_busy(&self) -> bool {
        self.reads.in_flight() >= MOST_READS
    }

    pub fn read(&self, offset: u64, length: u32, within: Duration, done: Done) {
        let deadline = Instant::now() + within;
        self.reads
            .send(Command::Read { offset, length }, deadline, done);
    }
}

impl Link {
    pub fn new(
        address: CacheAddress,
        shared: bool,
        generation: Generation,
        counters: Arc<Counters>,
        judge: Arc<Judge>,
        seen: Arc<Seen>,
    ) -> Link {
        Link {
            address,
            shared,
            up: RwLock::default(),
            state: Mutex::new(State {
                generation,
                resting: None,
                owed: Owed::default(),
                paying: false,
                stopping: false,
                next_try: Instant::now(),
                pause: FIRST_PAUSE,
                up_since: Instant::now(),
                why: "not yet connected".into(),
            }),
            wake: Condvar::new(),
            counters,
            judge,
            seen,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session that is up.
    pub fn session(&self) -> Option<Arc<Session>> {
        self.up
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Why the cache is not up; None while it is.
    pub fn why_down(&self) -> Option<String> {
        let state = self.state();
        self.session().is_none().then(|| state.why.clone())
    }

    /// Take a session down; false if it was not up. What is under way on it goes on.
    fn down(&self, state: &mut State, session: &Arc<Session>) -> bool {
        let mut up = self.up.write().unwrap_or_else(PoisonError::into_inner);
        if up.as_ref().is_none_or(|up| !Arc::ptr_eq(up, session)) {
            return false;
        }
        *up = None;
        if state.up_since.elapsed() > LASTING {
            state.pause = FIRST_PAUSE;
        }
        state.next_try = Instant::now() + state.pause;
        self.wake.notify_all();
        true
    }

    /// A session's connections are of no more use.
    pub fn lost(&self, session: &Arc<Session>, why: &str) {
        let mut state = self.state();
        if self.down(&mut state, session) {
            state.why = why.into();
            self.counters.sessions_lost.add(1);
        }
        if state
            .resting
            .as_ref()
            .is_some_and(|resting| Arc::ptr_eq(resting, session))
        {
            state.resting = None;
        }
        drop(state);
        session.close();
    }

    /// The cache is slower than the SAN: leave it alone, and try it now and then.
    pub fn rest(&self, session: &Arc<Session>) {
        drop(self.lay(session, SLOW));
    }

    /// Leave the cache alone, and keep its session. Gives what says when it is tried again, still locked.
    fn lay(&self, session: &Arc<Session>, why: &str) -> MutexGuard<'_, State> {
        let mut state = self.state();
        if self.down(&mut state, session) {
            state.resting = Some(session.clone());
            state.why = why.into();
            self.counters.rests.add(1);
        }
        state
    }

    /// A flush was late: leave the cache alone until it has answered what is owed.
    fn late(&self, session: &Arc<Session>) {
        self.counters.flushes_late.add(1);
        let mut state = self.lay(session, "a flush was late");
        state.next_try = Instant::now();
    }

    /// Put pages, each time from a first one on. Called under the locks of their stripes, so that the order of the locks is
    /// that of the commands; so what is called when a put is done must not take such a lock, nor lose the session.
    pub fn put<'d>(
        self: &Arc<Self>,
        session: &Arc<Session>,
        puts: impl Iterator<Item = (u64, &'d [u8], Done)>,
    ) {
        let deadline = Instant::now() + self.address.patience;
        let commands = puts.map(|(page, data, done)| {
            let command = Command::Write {
                offset: page * u64::from(self.address.page),
                data,
                fua: false,
            };
            (command, done)
        });
        session.changes.send_all(commands, deadline);
    }

    /// Have pages flushed, or owed where the cache is not up or does not answer within the longest delay; then call `done`.
    /// Called while their stripes are changing.
    pub fn forget(self: &Arc<Self>, pages: Range<u64>, done: Box<dyn FnOnce() + Send>) {
        self.forget_until(pages, Instant::now() + self.judge.most(), done);
    }

    fn forget_until(
        self: &Arc<Self>,
        pages: Range<u64>,
        deadline: Instant,
        done: Box<dyn FnOnce() + Send>,
    ) {
        if self.shared || !self.seen.any(&pages) {
            return done();
        }
        let session = {
            let mut state = self.state();
            let session = self.session();
            if session.is_none() {
                self.counters.flushes_owed.add(1);
                state.owed.add(pages.clone());
            }
            session
        };
        let Some(session) = session else {
            return done();
        };
        self.counters.flushes.add(1);
        self.flush(session, pages, deadline, done);
    }

    /// Flush the first piece of a range, then the rest; where that fails, begin anew without this session.
    fn flush(
        self: &Arc<Self>,
        session: Arc<Session>,
        pages: Range<u64>,
        deadline: Instant,
        done: Box<dyn FnOnce() + Send>,
    ) {
        let (piece, rest) = self.piece(&pages);
        let (link, on) = (self.clone(), session.clone());
        let after = Box::new(move |answer: Result<_, Failure>| {
            match answer {
                Ok(_) if rest.is_empty() => return done(),
                Ok(_) => return link.flush(on, rest, deadline, done),
                Err(Failure::TimedOut) => link.late(&on),
                Err(_) => link.lost(&on, "a flush was not answered"),
            }
            link.forget_until(pages, deadline, done);
        });
        session.changes.send(piece, deadline, after);
    }

    /// The flush of the first pages of a range, and what remains of it.
    fn piece(&self, pages: &Range<u64>) -> (Command<'static>, Range<u64>) {
        let page = u64::from(self.address.page);
        let most = FLUSHED_AT_ONCE / page;
        let end = pages.end.min(pages.start + most);
        let length = ((end - pages.start) * page) as u32;
        (
            Command::Trim {
                offset: pages.start * page,
                length,
            },
            end..pages.end,
        )
    }

    /// Whether the object is not the one it was begun with.
    pub fn is_renewed(&self) -> bool {
        self.counters.generations.get() > 0
    }

    /// Give all that is cached up, as the volume is not what it was.
    pub fn renew(&self, why: &str) {
        let session = self.session();
        let mut state = self.state();
        if let Some(session) = &session {
            self.down(&mut state, session);
        }
        let resting = state.resting.take();
        state.why = why.into();
        self.regenerate(&mut state);
        drop(state);
        drop(resting);
        if let Some(session) = session {
            session.close();
        }
    }

    /// A new object. Nothing is up.
    fn regenerate(&self, state: &mut State) {
        state.generation = Generation {
            object: random(),
            instance: None,
        };
        state.owed.clear();
        self.seen.clear();
        self.counters.generations.add(1);
    }

    /// End the keeper, and the session. The generation, if the cache holds nothing but what the volume has.
    pub fn stop(&self) -> Option<Generation> {
        let session = self.session();
        let mut state = self.state();
        state.stopping = true;
        self.wake.notify_all();
        let generation = state.generation.clone();
        let paid = state.owed.is_empty() && !state.paying;
        let clean = paid && generation.instance.is_some() && !self.shared;
        let resting = state.resting.take();
        drop(state);
        drop(resting);
        *self.up.write().unwrap_or_else(PoisonError::into_inner) = None;
        if let Some(session) = session {
            session.close();
        }
        clean.then_some(generation)
    }

    /// Wait until the cache is up.
    pub fn wait_up(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.session().is_none() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// The keeper's thread: bring the cache up, whenever it is down, until stopped. `tend` is called about once a second.
    pub fn keep(self: &Arc<Self>, tend: impl Fn()) {
        loop {
            let mut state = self.state();
            if state.stopping {
                return;
            }
            let now = Instant::now();
            let idle = match self.session() {
                Some(_) => Duration::from_secs(1),
                None => state
                    .next_try
                    .saturating_duration_since(now)
                    .min(Duration::from_secs(1)),
            };
            if !idle.is_zero() {
                let waited = self.wake.wait_timeout(state, idle);
                let (after, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                state = after;
                if timeout.timed_out() && !state.stopping {
                    drop(state);
                    tend();
                }
                continue;
            }
            drop(state);
            if let Err(why) = self.bring_up() {
                let mut state = self.state();
                state.why = why;
                state.pause = (state.pause * 2).min(LAST_PAUSE);
                state.next_try = Instant::now() + state.pause;
            }
        }
    }

    fn bring_up(self: &Arc<Self>) -> Result<(), String> {
        let resting = self.state().resting.clone();
        let at_rest = resting.is_some();
        let session = match resting {
            Some(session) => session,
            None => Arc::new(self.connect()?),
        };
        self.pay(&session)?;
        self.probe(&session, at_rest)?;
        loop {
            self.pay(&session)?;
            let mut state = self.state();
            if state.stopping {
                return Ok(());
            }
            if !state.owed.is_empty() {
                continue;
            }
            if state.generation.object != session.object {
                return Err("all that was cached has been given up in the meantime".into());
            }
            state.resting = None;
            state.up_since = Instant::now();
            state.pause = (state.pause * 2).min(LAST_PAUSE); // unless it lasts
            *self.up.write().unwrap_or_else(PoisonError::into_inner) = Some(session);
            return Ok(());
        }
    }

    fn connect(&self) -> Result<Session, String> {
        let mut state = self.state();
        if state.owed.is_everything() {
            self.regenerate(&mut state);
        }
        let generation = state.generation.clone();
        drop(state);
        let mut name = format!("{PREFIX}{}/{}", self.address.pool, hex(&generation.object));
        if !self.shared {
            name = format!("{name}/{}", hex(&random::<16>()));
        }
        let changes = self.open(&name)?;
        let instance = changes.opened().description.clone();
        if !self.shared
            && generation
                .instance
                .as_ref()
                .is_some_and(|known| *known != instance)
        {
            self.regenerate(&mut self.state());
            return Err("the server has another instance of the pool".into());
        }
        let mut state = self.state();
        if state.generation.object == generation.object {
            state.generation.instance = Some(instance);
        }
        drop(state);
        self.counters.sessions.add(1);
        let (object, reads) = (generation.object, self.open(&name)?);
        Ok(Session {
            object,
            reads,
            changes,
        })
    }

    fn open(&self, name: &str) -> Result<Client, String> {
        let options = Options {
            tls: self.address.tls.clone(),
            contexts: vec![CONTEXT.into()],
            connect: self.address.connect,
            patience: self.address.patience,
            tick: Duration::from_millis(1),
        };
        let endpoint = &self.address.endpoint;
        let client = Client::connect(endpoint, name, &options).map_err(|error| match error {
            ConnectError::Io(error) => format!("no connection to {endpoint}: {error}"),
            ConnectError::Tls(why) => format!("no connection to {endpoint}: {why}"),
            other => format!("{endpoint} refuses pool {:?}: {other}", self.address.pool),
        })?;
        let (opened, page) = (client.opened(), self.address.page);
        if opened.contexts.iter().all(|(_, name)| name != CONTEXT) {
            return Err(format!(
                "{endpoint} is not a tmemd: it does not offer {CONTEXT}"
            ));
        }
        if opened.minimum != page {
            return Err(format!(
                "pool {:?} has pages of {} bytes; the gateway was set up for {page}",
                self.address.pool, opened.minimum
            ));
        }
        Ok(client)
    }

    /// Flush what is owed. Nothing is put meanwhile, so a flush counts for all changes up to when the cache is up again.
    fn pay(&self, session: &Arc<Session>) -> Result<(), String> {
        loop {
            let mut state = self.state();
            if state.owed.is_everything() {
                state.resting = None;
                drop(state);
                session.close();
                return Err("more pages changed than can be remembered; all are given up".into());
            }
            let Some(range) = state.owed.pop() else {
                return Ok(());
            };
            state.paying = true;
            drop(state);
            let paid = self.flush_all(session, range.clone());
            let mut state = self.state();
            state.paying = false;
            if !paid {
                state.owed.add(range);
                state.resting = None;
                drop(state);
                session.close();
                return Err("it does not answer flushes".into());
            }
        }
    }

    fn flush_all(&self, session: &Session, mut pages: Range<u64>) -> bool {
        while !pages.is_empty() {
            let (piece, rest) = self.piece(&pages);
            if session.changes.call(piece, self.address.patience).is_err() {
                return false;
            }
            pages = rest;
        }
        true
    }

    /// Wait until a cache that is there has flushed what is owed, no longer than for one flush.
    pub fn wait_paid(&self) {
        let deadline = Instant::now() + self.address.patience;
        let owes =
            |state: &State| state.paying || (state.resting.is_some() && !state.owed.is_empty());
        while owes(&self.state()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Read a few pages, and see whether the cache is worth it. One that does not answer is given up.
    fn probe(&self, session: &Arc<Session>, at_rest: bool) -> Result<(), String> {
        let bound = self.judge.bound(self.address.page as usize);
        let begun = Instant::now();
        for number in 0..PROBES {
            let offset = u64::from(number) * u64::from(self.address.page);
            let read = Command::Read {
                offset,
                length: self.address.page,
            };
            if session
                .reads
                .call(read, self.address.patience.max(bound))
                .is_err()
            {
                self.state().resting = None;
                session.close();
                return Err("it does not answer reads".into());
            }
        }
        match self.judge.welcome(begun.elapsed() / PROBES) {
            true => Ok(()),
            false => {
                if !at_rest {
                    self.state().resting = Some(session.clone());
                }
                Err(SLOW.into())
            }
        }
    }
}
