//! An NBD client: one connection, many commands under way, each answered once.
//!
//! A command's completion is called exactly once: with the answer, with the server's error, when its deadline passed
//! ([`Failure::TimedOut`]; the answer that comes later is dropped), or when the connection broke ([`Failure::Broken`]).
//! It is called on the thread that reads the connection, the one that watches deadlines, or the one that closes it, with
//! no lock of the client held, and must not wait. The caller's own completion, and no other, may be called by `send`: when
//! the connection was broken before.
//! Commands are sent in the order of the calls. The caller bounds how many are under way: the server then always has
//! room to answer, and a call waits for the socket no longer than [`Options::patience`], after which the connection is
//! given up. A broken client stays broken; connecting again, and when, is the caller's.
//! What the server answers is checked: a read is complete when each of its bytes was covered once.
//! Locking: `sending`, then `table`.

mod channel;
mod command;
mod endpoint;
mod handshake;
mod in_flight;
mod receive;

pub use crate::tls::ClientTls;
pub use command::{Answer, Command, Done, Failure};
pub use endpoint::{Endpoint, Stream, Uri};
pub use handshake::{ConnectError, Opened};

use std::io::{self, IoSlice, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::protocol::{self, RequestHeader};
use channel::Channel;
use command::head;
use handshake::Secure;
use in_flight::InFlight;

/// Parts of what is sent that are handed to the system at once.
const MOST_PARTS: usize = 512;

#[derive(Clone, Debug)]
pub struct Options {
    /// Whether the connection is encrypted, and with what; a server that has no TLS is then refused.
    pub tls: Option<ClientTls>,
    /// Meta contexts to ask for.
    pub contexts: Vec<String>,
    /// For connecting and the whole handshake.
    pub connect: Duration,
    /// How long a command may wait for the socket to take it.
    pub patience: Duration,
    /// How often deadlines are looked at while commands are under way.
    pub tick: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            tls: None,
            contexts: Vec::new(),
            connect: Duration::from_secs(5),
            patience: Duration::from_secs(5),
            tick: Duration::from_millis(10),
        }
    }
}

/// A connection to one export. Safe to use from many threads; closed when dropped.
pub struct Client {
    opened: Opened,
    wire: Arc<Wire>,
}

/// What the caller's threads, the reader and the watcher share.
struct Wire {
    stream: Channel,
    structured: bool,
    sending: Mutex<()>,
    in_flight: InFlight,
    broken: AtomicBool,
    end: Mutex<End>,
}

/// Whether the connection has ended, and who wants to hear of it.
#[derive(Default)]
struct End {
    over: bool,
    hook: Option<Box<dyn FnOnce() + Send>>,
}

impl Client {
    pub fn connect(
        endpoint: &Endpoint,
        export: &str,
        options: &Options,
    ) -> Result<Client, ConnectError> {
        let deadline = Instant::now() + options.connect;
        let secure = options.tls.as_ref().map(|tls| Secure::new(tls, endpoint));
        let secure = secure.transpose()?;
        let stream = Channel::new(endpoint.connect(options.connect)?);
        let opened = bounded(&stream.socket, deadline, || {
            handshake::negotiate(&stream, secure, export, &options.contexts)
        })?;
        stream.socket.patience(options.patience)?;
        let wire = Arc::new(Wire {
            structured: opened.structured,
            stream,
            sending: Mutex::new(()),
            in_flight: InFlight::default(),
            broken: AtomicBool::new(false),
            end: Mutex::default(),
        });
        let (reader, watcher, tick) = (wire.clone(), wire.clone(), options.tick);
        let spawn = |name: &str| thread::Builder::new().name(name.into());
        spawn("nbd-read").spawn(move || reader.receive())?;
        spawn("nbd-watch").spawn(move || watcher.in_flight.watch(tick))?;
        Ok(Client { opened, wire })
    }

    pub fn opened(&self) -> &Opened {
        &self.opened
    }

    pub fn is_broken(&self) -> bool {
        self.wire.broken.load(Ordering::Acquire)
    }

    /// Have `hook` called when the connection has ended, also while nothing is under way; at once if it has.
    pub fn on_end(&self, hook: Box<dyn FnOnce() + Send>) {
        let mut end = self.wire.end();
        if !end.over {
            end.hook = Some(hook);
            return;
        }
        drop(end);
        hook();
    }

    /// Commands that are not answered yet; those whose deadline has passed count until the server answers.
    pub fn in_flight(&self) -> usize {
        self.wire.in_flight.len()
    }

    /// Send a command; `done` is called once.
    pub fn send(&self, command: Command<'_>, deadline: Instant, done: Done) {
        self.wire.send(command, deadline, done);
    }

    /// Send several at once, in their order; what is to be called for each is called once.
    pub fn send_all<'d>(
        &self,
        commands: impl Iterator<Item = (Command<'d>, Done)>,
        deadline: Instant,
    ) {
        self.wire.send_all(commands, deadline);
    }

    /// Send a command and wait for its answer.
    pub fn call(&self, command: Command<'_>, within: Duration) -> Result<Answer, Failure> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let done: Done = Box::new(move |answer| drop(sender.send(answer)));
        self.send(command, Instant::now() + within, done);
        receiver.recv().unwrap_or(Err(Failure::Broken))
    }

    /// Say good-bye and close. What is under way fails as broken.
    pub fn close(&self) {
        if !self.is_broken() {
            let header = head(protocol::command::DISC, 0, 0, 0, 0).bytes();
            let _guard = self.wire.sending.lock();
            let _ = (&self.wire.stream).write(&header);
        }
        self.wire.give_up();
    }
}

impl Client {
    /// Close at once, and take back what has not left yet. What is under way fails as broken.
    pub fn abort(&self) {
        self.wire.broken.store(true, Ordering::Release);
        self.wire.stream.socket.abort();
        self.wire.give_up();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.close();
    }
}

/// Run a handshake, and cut the connection if it takes longer than to the deadline.
fn bounded<T>(
    stream: &Stream,
    deadline: Instant,
    run: impl FnOnce() -> Result<T, ConnectError>,
) -> Result<T, ConnectError> {
    let watched = stream.try_clone()?;
    let (done, finished) = std::sync::mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            let left = deadline.saturating_duration_since(Instant::now());
            if finished.recv_timeout(left) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                watched.shut();
            }
        });
        let result = run();
        let late = Instant::now() >= deadline;
        drop(done);
        match result {
            Err(ConnectError::Io(_)) if late => {
                Err(ConnectError::Io(io::ErrorKind::TimedOut.into()))
            }
            Ok(_) if late => Err(ConnectError::Io(io::ErrorKind::TimedOut.into())),
            other => other,
        }
    })
}

impl Wire {
    fn send(&self, command: Command<'_>, deadline: Instant, done: Done) {
        let guard = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        match self.enter(&command, deadline, done) {
            Ok(header) => {
                let mut parts = [IoSlice::new(&header), IoSlice::new(command.payload())];
                self.write(&mut parts);
            }
            Err(done) => {
                drop(guard);
                done(Err(Failure::Broken));
            }
        }
    }

    fn send_all<'d>(&self, commands: impl Iterator<Item = (Command<'d>, Done)>, deadline: Instant) {
        let (mut entered, mut refused) = (Vec::new(), Vec::new());
        let guard = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        for (command, done) in commands {
            match self.enter(&command, deadline, done) {
                Ok(header) => entered.push((header, command)),
                Err(done) => refused.push(done),
            }
        }
        let parts = entered
            .iter()
            .flat_map(|(header, command)| [&header[..], command.payload()]);
        let mut parts: Vec<IoSlice<'_>> = parts.map(IoSlice::new).collect();
        self.write(&mut parts);
        drop(guard);
        refused
            .into_iter()
            .for_each(|done| done(Err(Failure::Broken)));
    }

    /// Enter a command, and make its header; its completion back if the connection is over.
    fn enter(
        &self,
        command: &Command<'_>,
        deadline: Instant,
        done: Done,
    ) -> Result<[u8; RequestHeader::SIZE], Done> {
        let (offset, expected) = match *command {
            Command::Read { offset, length } => (offset, length),
            _ => (0, 0),
        };
        let cookie = self.in_flight.enter(expected, offset, deadline, done)?;
        Ok(command.header(cookie).bytes())
    }

    /// Under the right to send.
    fn write(&self, parts: &mut [IoSlice<'_>]) {
        if write_all(&self.stream, parts).is_err() {
            self.broken.store(true, Ordering::Release);
            self.stream.socket.shut(); // the reader then fails what is under way
        }
    }

    fn end(&self) -> MutexGuard<'_, End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection is over: nothing more is sent, and all that is under way fails.
    fn give_up(&self) {
        self.broken.store(true, Ordering::Release);
        self.stream.socket.shut();
        self.in_flight.fail_all();
    }
}

fn write_all(mut stream: &Channel, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
    while !parts.is_empty() {
        match stream.write_vectored(&parts[..parts.len().min(MOST_PARTS)]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => IoSlice::advance_slices(&mut parts, count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
