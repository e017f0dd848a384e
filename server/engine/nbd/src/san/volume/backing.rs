//! The SAN: what the gateway exports, as a file or a block device; as another NBD export see `remote`.
//!
//! A completion is called once, from a thread of the backing, and must not wait.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread;

use rustix::fs::{FallocateFlags, FlockOperation, OFlags, fallocate, flock};
use rustix::io::Errno as Os;

use super::names;
use crate::protocol::Errno;

/// Bytes of zeros written at once where the backing cannot make holes.
const ZEROS: usize = 1 << 20;

pub type Read = Box<dyn FnOnce(Result<Vec<u8>, Errno>) + Send>;
pub type Changed = Box<dyn FnOnce(Result<(), Errno>) + Send>;
pub type Lost = Box<dyn Fn() + Send + Sync>;

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

    /// What it is called on this host, on whatever way it was opened; any two volumes with a name in common are one.
    fn names(&self) -> Vec<String> {
        Vec::new()
    }

    /// Keep others from using it as far as it lets: all of them, or those that write. An error where they do already.
    fn claim(&self, _exclusive: bool) -> io::Result<()> {
        Ok(())
    }

    /// What this host has counted of writes, after a word that changes where the count begins anew.
    fn witness(&self) -> Option<String> {
        None
    }

    /// Smallest length and alignment of what it is asked; a power of two.
    fn minimum_block(&self) -> u32 {
        1
    }

    /// Have `lost` called whenever the volume may have become another: before any command is carried out on what it is
    /// then. It may take its time.
    fn watch(&self, _lost: Lost) {}

    /// Why the SAN does not answer; None where it does, as far as is known.
    fn why_down(&self) -> Option<String> {
        None
    }
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
    /// A device is this process's until it is closed.
    claim: OnceLock<File>,
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
            claim: OnceLock::new(),
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

    fn claim_device(&self) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let exclusive = OFlags::EXCL.bits() as i32;
        match options.read(true).custom_flags(exclusive).open(&self.path) {
            Ok(file) => {
                let _ = self.claim.set(file);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                Err(busy("it is mounted, or another program holds it"))
            }
            Err(error) => Err(error),
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

fn busy(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::ResourceBusy, why)
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

    fn names(&self) -> Vec<String> {
        match self.shared.file.metadata() {
            Ok(found) if self.shared.device => names::of_device(&found),
            Ok(found) => names::of_file(&found),
            Err(_) => Vec::new(),
        }
    }

    /// A device's claim is the kernel's own, against mounts too and on all its nodes; a file's is a lock on its inode.
    fn claim(&self, exclusive: bool) -> io::Result<()> {
        let shared = &self.shared;
        let how = match exclusive {
            true if shared.device => return shared.claim_device(),
            false if shared.device => return Ok(()),
            true => FlockOperation::NonBlockingLockExclusive,
            false => FlockOperation::NonBlockingLockShared,
        };
        match flock(&shared.file, how) {
            Err(Os::WOULDBLOCK) => Err(busy("another gateway or program holds a lock on it")),
            _ => Ok(()), // there are file systems without locks
        }
    }

    fn witness(&self) -> Option<String> {
        let found = self.shared.file.metadata().ok()?;
        self.shared.device.then(|| names::writes(&found)).flatten()
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
