//! The SAN: what the gateway exports, as a file, a block device or another NBD export.
//!
//! A completion is called once, from a thread of the backing, and must not wait.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};

use crate::client::{Client, Command, Failure, Options, Uri};
use crate::protocol::{Errno, transmission};

/// Bytes of zeros written at once where the backing cannot make holes.
const ZEROS: usize = 1 << 20;
/// A SAN that does not answer for so long has failed the command.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries to connect to a SAN that went away.
const RETRY: Duration = Duration::from_millis(200);
/// Connections to a SAN that allows several.
const CONNECTIONS: usize = 4;

pub type Read = Box<dyn FnOnce(Result<Vec<u8>, Errno>) + Send>;
pub type Changed = Box<dyn FnOnce(Result<(), Errno>) + Send>;

/// A change of the volume's bytes, or the wish that they be durable.
#[derive(Clone, Debug)]
pub enum Change {
    Write {
        offset: u64,
        data: Arc<Vec<u8>>,
        fua: bool,
    },
    Trim {
        offset: u64,
        length: u32,
    },
    Zero {
        offset: u64,
        length: u32,
        no_hole: bool,
    },
    Flush,
}

pub trait Backing: Send + Sync {
    /// Bytes, as they are now.
    fn size(&self) -> u64;
    fn read(&self, offset: u64, length: usize, done: Read);
    fn change(&self, change: Change, done: Changed);
    /// What differs after any change by another; None where nothing tells.
    fn fingerprint(&self) -> Option<String>;
}

enum Job {
    Read(u64, usize, Read),
    Change(Change, Changed),
}

/// A file or a block device, with threads that wait for it.
pub struct FileBacking {
    shared: Arc<Shared>,
}

struct Shared {
    file: File,
    path: PathBuf,
    device: bool,
    queue: Mutex<Queue>,
    work: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    idle: usize,
    closed: bool,
}

impl FileBacking {
    /// `threads` bounds the commands that the SAN gets at once.
    pub fn open(path: &Path, read_only: bool, threads: usize) -> io::Result<FileBacking> {
        let file = OpenOptions::new().read(true).write(!read_only).open(path)?;
        let kind = file.metadata()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let why = "it is neither a file nor a block device";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let shared = Arc::new(Shared {
            file,
            path: path.into(),
            device: kind.is_block_device(),
            queue: Mutex::default(),
            work: Condvar::new(),
        });
        for _ in 0..threads {
            let shared = shared.clone();
            let builder = thread::Builder::new().name("san-io".into());
            builder.spawn(move || shared.work())?;
        }
        Ok(FileBacking { shared })
    }
}

impl Drop for FileBacking {
    fn drop(&mut self) {
        self.shared.queue().closed = true;
        self.shared.work.notify_all();
    }
}

impl Shared {
    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, job: Job) {
        let mut queue = self.queue();
        queue.jobs.push_back(job);
        if queue.idle > 0 {
            self.work.notify_one();
        }
    }

    fn work(&self) {
        loop {
            let mut queue = self.queue();
            let job = loop {
                match queue.jobs.pop_front() {
                    Some(job) => break job,
                    None if queue.closed => return,
                    None => {
                        queue.idle += 1;
                        let woken = self.work.wait(queue);
                        queue = woken.unwrap_or_else(PoisonError::into_inner);
                        queue.idle -= 1;
                    }
                }
            };
            drop(queue);
            match job {
                Job::Read(offset, length, done) => {
                    let mut data = vec![0; length];
                    let read = self.file.read_exact_at(&mut data, offset);
                    done(read.map(|()| data).map_err(errno));
                }
                Job::Change(change, done) => done(self.change(&change).map_err(errno)),
            }
        }
    }

    fn change(&self, change: &Change) -> io::Result<()> {
        match *change {
            Change::Write {
                offset,
                ref data,
                fua,
            } => {
                self.file.write_all_at(data, offset)?;
                if fua { self.file.sync_data() } else { Ok(()) }
            }
            Change::Trim { offset, length } => {
                let _ = self.punch(offset, length); // advice
                Ok(())
            }
            Change::Zero {
                offset,
                length,
                no_hole,
            } => self.zero(offset, length, no_hole),
            Change::Flush => self.file.sync_data(),
        }
    }

    fn punch(&self, offset: u64, length: u32) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(&self.file, flags, offset, length.into())?)
    }

    fn zero(&self, offset: u64, length: u32, no_hole: bool) -> io::Result<()> {
        if !no_hole && self.punch(offset, length).is_ok() {
            return Ok(());
        }
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        if fallocate(&self.file, flags, offset, length.into()).is_ok() {
            return Ok(());
        }
        let zeros = vec![0; ZEROS.min(length as usize)];
        let (mut at, end) = (offset, offset + u64::from(length));
        while at < end {
            let some = zeros.len().min((end - at) as usize);
            self.file.write_all_at(&zeros[..some], at)?;
            at += some as u64;
        }
        Ok(())
    }
}

fn errno(error: io::Error) -> Errno {
    let known = error.raw_os_error().map(|number| number as u32);
    match known.and_then(Errno::from_number) {
        Some(errno @ (Errno::NoSpace | Errno::Perm | Errno::NotSupported)) => errno,
        _ => Errno::Io,
    }
}

impl Backing for FileBacking {
    fn size(&self) -> u64 {
        let mut file = &self.shared.file;
        match self.shared.device {
            true => file.seek(SeekFrom::End(0)).unwrap_or(0),
            false => file.metadata().map_or(0, |found| found.len()),
        }
    }

    fn read(&self, offset: u64, length: usize, done: Read) {
        self.shared.push(Job::Read(offset, length, done));
    }

    fn change(&self, change: Change, done: Changed) {
        self.shared.push(Job::Change(change, done));
    }

    /// Of a file: any change of its bytes gives it a new ctime, once that lies a tick of the clock back. What is at the
    /// path must still be the file that was opened.
    fn fingerprint(&self) -> Option<String> {
        let found = self.shared.file.metadata().ok()?;
        let named = std::fs::metadata(&self.shared.path).ok()?;
        let same = (found.dev(), found.ino()) == (named.dev(), named.ino());
        (same && !self.shared.device).then(|| {
            let (mtime, ctime) = (found.mtime_nsec(), found.ctime_nsec());
            let (dev, ino, size) = (found.dev(), found.ino(), found.len());
            format!(
                "{dev:x} {ino} {size} {}.{mtime} {}.{ctime}",
                found.mtime(),
                found.ctime()
            )
        })
    }
}

/// Another server's export. Its connections are made again when they break: what was under way then is an error, as
/// whether it was carried out cannot be known.
pub struct NbdBacking {
    uri: Uri,
    options: Options,
    size: u64,
    lines: Vec<Mutex<Line>>,
    next: std::sync::atomic::AtomicUsize,
}

struct Line {
    client: Arc<Client>,
    tried: Instant,
}

impl NbdBacking {
    pub fn open(uri: &Uri, read_only: bool) -> Result<NbdBacking, String> {
        let options = Options::default();
        let connect = || {
            let client = Client::connect(&uri.endpoint, &uri.export, &options);
            client.map_err(|error| format!("export {:?} of {}: {error}", uri.export, uri.endpoint))
        };
        let first = connect()?;
        if !read_only && first.opened().can(transmission::READ_ONLY) {
            return Err(format!(
                "export {:?} of {} is read-only",
                uri.export, uri.endpoint
            ));
        }
        let (size, several) = (
            first.opened().size,
            first.opened().can(transmission::CAN_MULTI_CONN),
        );
        let mut clients = vec![first];
        while several && clients.len() < CONNECTIONS {
            clients.push(connect()?);
        }
        let line = |client| {
            let client = Arc::new(client);
            Mutex::new(Line {
                client,
                tried: Instant::now(),
            })
        };
        Ok(NbdBacking {
            uri: uri.clone(),
            size,
            lines: clients.into_iter().map(line).collect(),
            next: 0.into(),
            options,
        })
    }

    /// A connection, made again if it is broken and the last try is some time ago.
    fn client(&self, line: usize) -> Arc<Client> {
        let line = self.lines[line].lock();
        let mut line = line.unwrap_or_else(PoisonError::into_inner);
        if line.client.is_broken() && line.tried.elapsed() > RETRY {
            let made = Client::connect(&self.uri.endpoint, &self.uri.export, &self.options);
            if let Some(client) = made.ok().filter(|client| client.opened().size == self.size) {
                line.client = Arc::new(client);
            }
            line.tried = Instant::now();
        }
        line.client.clone()
    }

    fn send(&self, line: usize, command: Command<'_>, done: crate::client::Done) {
        self.client(line)
            .send(command, Instant::now() + PATIENCE, done);
    }
}

fn failure(failure: Failure) -> Errno {
    match failure {
        Failure::Errno(errno) => errno,
        Failure::TimedOut | Failure::Broken => Errno::Io,
    }
}

impl Backing for NbdBacking {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, length: usize, done: Read) {
        let next = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let length = length as u32;
        let done = Box::new(move |answer: Result<crate::client::Answer, Failure>| {
            done(answer.map(|answer| answer.data).map_err(failure));
        });
        self.send(
            next % self.lines.len(),
            Command::Read { offset, length },
            done,
        );
    }

    /// On one connection, so that no change of a connection that was given up lands after another's.
    fn change(&self, change: Change, done: Changed) {
        let command = match &change {
            Change::Write { offset, data, fua } => Command::Write {
                offset: *offset,
                data,
                fua: *fua,
            },
            Change::Trim { offset, length } => Command::Trim {
                offset: *offset,
                length: *length,
            },
            Change::Zero {
                offset,
                length,
                no_hole,
            } => Command::WriteZeroes {
                offset: *offset,
                length: *length,
                no_hole: *no_hole,
            },
            Change::Flush => Command::Flush,
        };
        let client = self.client(0);
        let able = match change {
            Change::Trim { .. } => client.opened().can(transmission::SEND_TRIM),
            Change::Flush => client.opened().can(transmission::SEND_FLUSH),
            _ => true,
        };
        if !able {
            return done(Ok(())); // a trim is advice; without flush, what is acknowledged is kept
        }
        if let (Change::Zero { offset, length, .. }, false) = (
            &change,
            client.opened().can(transmission::SEND_WRITE_ZEROES),
        ) {
            let data = Arc::new(vec![0; *length as usize]);
            return self.change(
                Change::Write {
                    offset: *offset,
                    data,
                    fua: false,
                },
                done,
            );
        }
        let done = Box::new(move |answer: Result<_, Failure>| {
            done(answer.map(|_| ()).map_err(failure));
        });
        client.send(command, Instant::now() + PATIENCE, done);
    }

    fn fingerprint(&self) -> Option<String> {
        None
    }
}
