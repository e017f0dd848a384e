//! The SAN as another server's export, over connections that are made again when they break.
//!
//! All connections are one *session*. When one of them breaks, or does not answer a command for its whole patience, all are
//! given up, and what was under way waits for the next session. A command whose patience is over fails with EIO. What a
//! session leaves behind when it ends, and what is done about it:
//!
//! - *Pages that are kept of the volume.* It may have been changed by others meanwhile, or have lost what it had not made
//!   durable. Who watches is told before the next session begins, and gives up all that it keeps.
//! - *Changes that were acknowledged and not flushed.* A server that came back may have lost them. They are carried out
//!   again, in their order, one at a time, before anything else: see `unflushed`. Where that cannot be, the next flush fails.
//! - *Changes under way.* They were carried out, or not, or in part; they are sent again, as twice is the same as once. None
//!   of them was acknowledged, so none that overlap were in an order.
//! - *Commands that the server still carries out for connections that are no more.* A change of the old session must not
//!   land after one of the new. What had not left this machine is taken back by resetting the connections. A server that
//!   lets one connection in at a time waits for the old one itself; another gets [`SETTLE`] where changes were under way.
//!
//! Changes all go over the first connection. The export must stay of one size, and keep what it promised to be able to.
//! Locking: `state` is held for no I/O, and no client is closed or dropped under it, as that runs completions.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::backing::{Backing, Change, Changed, Lost, Read};
use super::names;
use super::unflushed::{Mark, Unflushed};
use crate::client::{Answer, Client, Command, Failure, Opened, Options, Uri};
use crate::protocol::{Errno, MAX_DATA, transmission};

/// Connections to a server that allows several.
const CONNECTIONS: usize = 4;
/// Between two tries to connect, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(2);
/// For connecting.
const CONNECT: Duration = Duration::from_secs(3);
/// How long a server may go on with commands of connections that have ended.
const SETTLE: Duration = Duration::from_secs(1);
/// A session that was up for longer is made again without a long pause.
const LASTING: Duration = Duration::from_secs(10);
/// For a change that is carried out again.
const AGAIN: Duration = Duration::from_secs(5);
/// Zeros written at once to a server that cannot make them.
const ZEROS: u32 = 1 << 20;
/// What can be lost between one session and the next without harm.
const CARELESS: u16 = transmission::ROTATIONAL | transmission::CAN_MULTI_CONN;

/// Another server's export.
pub struct NbdBacking(Arc<Remote>);

struct Remote {
    uri: Uri,
    options: Options,
    /// How long a command may take, with all that is tried.
    patience: Duration,
    size: u64,
    flags: u16,
    /// Smallest length and alignment of a command, and the longest of one that carries data.
    minimum_block: u32,
    longest: u32,
    numbers: AtomicU64,
    state: Mutex<State>,
    wake: Condvar,
}

struct State {
    session: Option<Arc<Session>>,
    /// Sessions that ended.
    ended: u64,
    /// By number.
    waiting: BTreeMap<u64, Job>,
    unflushed: Unflushed,
    watcher: Option<Arc<Lost>>,
    up_since: Instant,
    next_try: Instant,
    pause: Duration,
    why: String,
    closed: bool,
}

struct Session {
    number: u64,
    clients: Vec<Client>,
    /// Changes sent and not answered.
    changing: AtomicUsize,
}

/// A command, until it is answered.
struct Job {
    number: u64,
    deadline: Instant,
    what: What,
    /// Nobody hears what comes of it.
    silent: bool,
}

enum What {
    Read(u64, u32, Read),
    Change(Change, Changed),
}

impl Job {
    fn fail(self, errno: Errno) {
        match self.what {
            What::Read(_, _, done) => done(Err(errno)),
            What::Change(_, done) => done(Err(errno)),
        }
    }
}

impl State {
    /// Try again after a pause, which grows, or later.
    fn put_off(&mut self, least: Duration) {
        self.next_try = Instant::now() + self.pause.max(least);
        self.pause = (self.pause * 2).min(LAST_PAUSE);
    }
}

impl NbdBacking {
    /// Connect. Commands fail that are not answered within `patience`, however often they were tried.
    pub fn open(uri: &Uri, read_only: bool, patience: Duration) -> Result<NbdBacking, String> {
        let options = Options {
            connect: CONNECT,
            ..Options::default()
        };
        let clients = connect(uri, &options)?;
        let opened = clients[0].opened().clone();
        if !read_only && opened.can(transmission::READ_ONLY) {
            return Err(format!(
                "export {:?} of {} is read-only",
                uri.export, uri.endpoint
            ));
        }
        let session = Session::new(0, clients);
        let remote = Arc::new(Remote {
            uri: uri.clone(),
            options,
            patience,
            size: opened.size,
            flags: opened.flags,
            minimum_block: opened.minimum.max(1),
            longest: longest(&opened),
            numbers: AtomicU64::new(0),
            state: Mutex::new(State {
                session: Some(Arc::new(session)),
                ended: 0,
                waiting: BTreeMap::new(),
                unflushed: Unflushed::default(),
                watcher: None,
                up_since: Instant::now(),
                next_try: Instant::now(),
                pause: FIRST_PAUSE,
                why: String::new(),
                closed: false,
            }),
            wake: Condvar::new(),
        });
        let keeper = remote.clone();
        let builder = thread::Builder::new().name("san-session".into());
        builder
            .spawn(move || keeper.keep())
            .map_err(|e| e.to_string())?;
        remote.attend();
        Ok(NbdBacking(remote))
    }
}

impl Drop for NbdBacking {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.closed = true;
        let (session, waiting) = (state.session.take(), std::mem::take(&mut state.waiting));
        self.0.wake.notify_all();
        drop(state);
        if let Some(session) = session {
            session.clients.iter().for_each(Client::close);
        }
        waiting.into_values().for_each(|job| job.fail(Errno::Io));
    }
}

/// The connections of a session.
fn connect(uri: &Uri, options: &Options) -> Result<Vec<Client>, String> {
    let one = || {
        let client = Client::connect(&uri.endpoint, &uri.export, options);
        client.map_err(|error| format!("export {:?} of {}: {error}", uri.export, uri.endpoint))
    };
    let mut clients = vec![one()?];
    let several = clients[0].opened().can(transmission::CAN_MULTI_CONN);
    while several && clients.len() < CONNECTIONS {
        clients.push(one()?);
    }
    Ok(clients)
}

impl Session {
    fn new(number: u64, clients: Vec<Client>) -> Session {
        Session {
            number,
            clients,
            changing: 0.into(),
        }
    }

    fn abort(&self) {
        self.clients.iter().for_each(Client::abort);
    }
}

fn command(change: &Change) -> Command<'_> {
    match *change {
        Change::Write {
            offset,
            ref data,
            fua,
        } => Command::Write { offset, data, fua },
        Change::Trim { offset, length } => Command::Trim { offset, length },
        Change::Zero {
            offset,
            length,
            no_hole,
        } => Command::WriteZeroes {
            offset,
            length,
            no_hole,
        },
        Change::Flush => Command::Flush,
    }
}

impl Remote {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn can(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    fn begin(self: &Arc<Self>, what: What) {
        self.send(self.job(what));
    }

    fn job(&self, what: What) -> Job {
        Job {
            number: self.numbers.fetch_add(1, Ordering::Relaxed),
            deadline: Instant::now() + self.patience,
            what,
            silent: false,
        }
    }

    /// Send a command, or have it wait for the next session.
    fn send(self: &Arc<Self>, job: Job) {
        let mut state = self.state();
        let flush = !job.silent && matches!(job.what, What::Change(Change::Flush, _));
        let late = job.deadline <= Instant::now();
        if state.closed || late || (flush && state.unflushed.take_failure()) {
            drop(state);
            return job.fail(Errno::Io);
        }
        let mark = state.unflushed.mark();
        match state.session.clone() {
            None => drop(state.waiting.insert(job.number, job)),
            Some(session) => {
                drop(state);
                self.send_on(&session, job, mark);
            }
        }
    }

    fn send_on(self: &Arc<Self>, session: &Session, job: Job, mark: Mark) {
        let (back, number, deadline) = (self.clone(), session.number, job.deadline);
        match &job.what {
            &What::Read(offset, length, _) => {
                let done = Box::new(move |answer| back.answered(number, job, mark, answer));
                let idlest = session
                    .clients
                    .iter()
                    .min_by_key(|client| client.in_flight());
                let client = idlest.unwrap_or(&session.clients[0]);
                client.send(Command::Read { offset, length }, deadline, done);
            }
            What::Change(change, _) => {
                let change = change.clone();
                session.changing.fetch_add(1, Ordering::SeqCst);
                let done = Box::new(move |answer| back.answered(number, job, mark, answer));
                session.clients[0].send(command(&change), deadline, done);
            }
        }
    }

    fn answered(
        self: &Arc<Self>,
        session: u64,
        job: Job,
        mark: Mark,
        answer: Result<Answer, Failure>,
    ) {
        match answer {
            Ok(answer) => self.succeeded(session, job, mark, answer),
            Err(Failure::Broken | Failure::Errno(Errno::Shutdown)) => {
                self.lost(session, "the connection broke");
                self.send(job);
            }
            Err(Failure::TimedOut) => {
                self.lost(session, "a command was not answered");
                job.fail(Errno::Io);
            }
            Err(Failure::Errno(errno)) => {
                self.settled(session, &job);
                job.fail(errno);
            }
        }
    }

    /// A change of a session is no longer under way.
    fn settled(&self, session: u64, job: &Job) {
        let state = self.state();
        let same = state.session.as_ref().filter(|up| up.number == session);
        if let (Some(up), What::Change(..)) = (same, &job.what) {
            up.changing.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn succeeded(self: &Arc<Self>, session: u64, job: Job, mark: Mark, answer: Answer) {
        let (change, done) = match job.what {
            What::Read(_, _, done) => return done(Ok(answer.data)),
            What::Change(change, done) => (change, done),
        };
        let mut state = self.state();
        let up = state.session.as_ref().filter(|up| up.number == session);
        let Some(up) = up else {
            // Acknowledged by a session that has ended since: what is kept for the next one lacks it.
            drop(state);
            return self.send(Job {
                what: What::Change(change, done),
                ..job
            });
        };
        up.changing.fetch_sub(1, Ordering::SeqCst);
        let mut due = false;
        if let Change::Flush = change {
            state.unflushed.flushed(mark);
        } else if self.can(transmission::SEND_FLUSH) {
            state.unflushed.note(change);
            due = state.unflushed.is_due();
        }
        drop(state);
        done(Ok(()));
        if due {
            let back = Arc::downgrade(self);
            let done = Box::new(move |_| {
                if let Some(back) = back.upgrade() {
                    back.state().unflushed.asked();
                }
            });
            self.send(Job {
                silent: true,
                ..self.job(What::Change(Change::Flush, done))
            });
        }
    }

    /// Notice the end of the session's connections, also while nothing is asked: what is kept of the volume is then no more
    /// to be believed.
    fn attend(self: &Arc<Self>) {
        let Some(session) = self.state().session.clone() else {
            return;
        };
        for client in &session.clients {
            let (back, number) = (Arc::downgrade(self), session.number);
            client.on_end(Box::new(move || {
                if let Some(back) = back.upgrade() {
                    back.lost(number, "the connection broke");
                }
            }));
        }
    }

    /// A session is over.
    fn lost(&self, number: u64, why: &str) {
        let mut state = self.state();
        let Some(session) = state.session.take_if(|up| up.number == number) else {
            return;
        };
        state.ended += 1;
        state.unflushed.lost();
        state.why = why.into();
        let unsettled = session.changing.load(Ordering::SeqCst) > 0;
        let settle = unsettled && self.can(transmission::CAN_MULTI_CONN);
        if state.up_since.elapsed() > LASTING {
            state.pause = FIRST_PAUSE;
        }
        state.put_off(if settle { SETTLE } else { Duration::ZERO });
        self.wake.notify_all();
        drop(state);
        session.abort();
    }

    /// The keeper's thread: bring up a session when there is none, and fail what has waited too long.
    fn keep(self: &Arc<Self>) {
        let mut told = 0;
        loop {
            self.fail_late();
            let (state, now) = (self.state(), Instant::now());
            if state.closed {
                return;
            }
            if state.session.is_some() {
                drop(self.wake.wait(state));
                continue;
            }
            if told < state.ended {
                told = state.ended;
                let watcher = state.watcher.clone();
                drop(state);
                if let Some(watcher) = watcher {
                    watcher();
                }
                continue;
            }
            if now < state.next_try {
                let first = state.waiting.values().map(|job| job.deadline).min();
                let until = first.map_or(state.next_try, |first| first.min(state.next_try));
                drop(self.wake.wait_timeout(state, until - now));
                continue;
            }
            drop(state);
            if let Err(why) = self.bring_up(told) {
                let mut state = self.state();
                state.why = why;
                state.put_off(Duration::ZERO);
            }
        }
    }

    fn fail_late(&self) {
        let (mut state, now) = (self.state(), Instant::now());
        let late = state.waiting.iter().filter(|(_, job)| job.deadline <= now);
        let late: Vec<u64> = late.map(|(number, _)| *number).collect();
        let late = late.iter().map(|number| state.waiting.remove(number));
        let late: Vec<Job> = late.flatten().collect();
        drop(state);
        late.into_iter().for_each(|job| job.fail(Errno::Io));
    }

    fn bring_up(self: &Arc<Self>, number: u64) -> Result<(), String> {
        let clients = connect(&self.uri, &self.options)?;
        let opened = clients[0].opened();
        if opened.size != self.size {
            let (was, is) = (self.size, opened.size);
            return Err(format!("the export had {was} bytes, and has {is} now"));
        }
        if opened.minimum > self.minimum_block || longest(opened) < self.longest {
            return Err("the export's block sizes have changed".into());
        }
        if (opened.flags ^ self.flags) & !CARELESS != 0 {
            return Err("the export no longer supports all that it did".into());
        }
        let session = Arc::new(Session::new(number, clients));
        let mut done = 0;
        loop {
            let mut state = self.state();
            let Some(change) = state.unflushed.again(done) else {
                if state.closed {
                    return Ok(());
                }
                state.session = Some(session);
                state.up_since = Instant::now();
                let waiting = std::mem::take(&mut state.waiting);
                drop(state);
                self.attend();
                waiting.into_values().for_each(|job| self.send(job));
                return Ok(());
            };
            drop(state);
            self.fail_late();
            match session.clients[0].call(command(&change), AGAIN) {
                Ok(_) => {}
                Err(Failure::Errno(errno)) if errno != Errno::Shutdown => {
                    self.state().unflushed.fail();
                }
                Err(_) => {
                    session.abort();
                    return Err("it went away again".into());
                }
            }
            done += 1;
        }
    }
}

impl Backing for NbdBacking {
    fn size(&self) -> u64 {
        self.0.size
    }

    /// As the server has it: whole blocks, and no more at once than it takes.
    fn read(&self, offset: u64, length: usize, done: Read) {
        let block = u64::from(self.0.minimum_block);
        let start = offset / block * block;
        let end = (offset + length as u64).next_multiple_of(block);
        let end = end.min(self.0.size).max(offset + length as u64);
        if end - start <= u64::from(self.0.longest)
            && (start, end - start) == (offset, length as u64)
        {
            return self.0.begin(What::Read(offset, length as u32, done));
        }
        let skip = (offset - start) as usize;
        let cut = move |read: Result<Vec<u8>, Errno>| {
            done(read.map(|bytes| bytes[skip..skip + length].to_vec()))
        };
        read_pieces(self.0.clone(), start, end, Vec::new(), Box::new(cut));
    }

    fn change(&self, change: Change, done: Changed) {
        let able = match change {
            Change::Trim { .. } => self.0.can(transmission::SEND_TRIM),
            Change::Flush => self.0.can(transmission::SEND_FLUSH),
            _ => true,
        };
        if !able {
            return done(Ok(())); // a trim is advice; without flush, what is acknowledged is kept
        }
        match change {
            Change::Zero { offset, length, .. } if !self.0.can(transmission::SEND_WRITE_ZEROES) => {
                write_zeros(self.0.clone(), offset, length, done);
            }
            Change::Write { offset, data, fua } if data.len() > self.0.longest as usize => {
                write_pieces(self.0.clone(), offset, data, 0, fua, done);
            }
            change => self.0.begin(What::Change(change, done)),
        }
    }

    fn fingerprint(&self) -> Option<String> {
        None
    }

    fn names(&self) -> Vec<String> {
        names::of_export(&self.0.uri)
    }

    fn minimum_block(&self) -> u32 {
        self.0.minimum_block
    }

    fn watch(&self, lost: Lost) {
        let lost = Arc::new(lost);
        let mut state = self.0.state();
        state.watcher = Some(lost.clone());
        let late = state.ended > 0;
        drop(state);
        if late {
            lost();
        }
    }

    fn why_down(&self) -> Option<String> {
        let state = self.0.state();
        state.session.is_none().then(|| state.why.clone())
    }
}

/// What the server takes of data at once, in whole blocks.
fn longest(opened: &Opened) -> u32 {
    let most = if opened.maximum == 0 {
        MAX_DATA
    } else {
        opened.maximum
    };
    let block = opened.minimum.max(1);
    (most.min(MAX_DATA) / block * block).max(block)
}

/// Read piece by piece.
fn read_pieces(remote: Arc<Remote>, at: u64, end: u64, mut bytes: Vec<u8>, done: Read) {
    let piece = (end - at).min(remote.longest.into());
    let back = remote.clone();
    let next: Read = Box::new(move |read| match read {
        Ok(some) => {
            bytes.extend_from_slice(&some);
            match at + piece {
                next if next < end => read_pieces(back, next, end, bytes, done),
                _ => done(Ok(bytes)),
            }
        }
        failed => done(failed),
    });
    remote.begin(What::Read(at, piece as u32, next));
}

/// Write piece by piece, from byte `from` of the data on.
fn write_pieces(
    remote: Arc<Remote>,
    offset: u64,
    data: Arc<Vec<u8>>,
    from: usize,
    fua: bool,
    done: Changed,
) {
    let to = data.len().min(from + remote.longest as usize);
    let write = Change::Write {
        offset: offset + from as u64,
        data: Arc::new(data[from..to].to_vec()),
        fua,
    };
    let back = remote.clone();
    let next: Changed = Box::new(move |result| match result {
        Ok(()) if to < data.len() => write_pieces(back, offset, data, to, fua, done),
        result => done(result),
    });
    remote.begin(What::Change(write, next));
}

/// Write zeros piece by piece.
fn write_zeros(remote: Arc<Remote>, offset: u64, length: u32, done: Changed) {
    let piece = length.min(ZEROS).min(remote.longest);
    let write = Change::Write {
        offset,
        data: Arc::new(vec![0; piece as usize]),
        fua: false,
    };
    let back = remote.clone();
    let next: Changed = Box::new(move |result| match result {
        Ok(()) if length > piece => {
            write_zeros(back, offset + u64::from(piece), length - piece, done);
        }
        result => done(result),
    });
    remote.begin(What::Change(write, next));
}
