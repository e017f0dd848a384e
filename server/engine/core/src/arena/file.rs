//! The arena's file: created whole or not at all, attached by any number of processes.
//!
//! A new arena is made without a name and linked to its path when it is ready, so that nobody ever sees half of one.
//! Attaching is serialised by an open-file-description lock on byte 0, and everyone attached holds byte 1 shared: who
//! can have byte 1 alone is the only one there. Only then may stale locks of an earlier boot be made anew.

use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::budget::Budget;
use super::layout::*;
use super::lock::Level;
use super::map::Map;
use super::table::Table;
use crate::error::{Error, Result};
use crate::types::{FRAME, MAX_POOLS, StoreOptions};

/// An attached arena.
pub struct Arena {
    map: Map,
    path: Option<PathBuf>,
    geometry: Geometry,
    shard_map: ShardMap,
}

/// How an arena was come by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attach {
    Created,
    /// Attached, and others may be.
    Shared,
    /// Attached by nobody else, in the boot it was last used in.
    Alone,
    /// Attached by nobody else, and the system was restarted since: nothing in it is known to be whole.
    AfterReboot,
}

impl Arena {
    /// A private arena, which goes with its last user.
    pub fn private(options: &StoreOptions) -> Result<Arena> {
        let path = PathBuf::from("(private)");
        let file = memfd().map_err(|e| io_error(&path, "cannot create", e))?;
        Arena::create(file, &path, None, options)
    }

    /// Create the arena at `path`, or attach it where it exists.
    pub fn open(path: &Path, options: &StoreOptions) -> Result<(Arena, Attach)> {
        match Arena::attach(path) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let parent = match path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_TMPFILE)
            .open(parent)
            .map_err(|e| io_error(path, "cannot create", e))?;
        let arena = Arena::create(file, path, Some(path.to_owned()), options)?;
        range_lock(arena.map.file(), 1, libc::F_RDLCK, true)
            .map_err(|e| io_error(path, "cannot lock", e))?;
        match link(arena.map.file(), path) {
            Ok(()) => Ok((arena, Attach::Created)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Arena::attach(path),
            Err(e) => Err(io_error(path, "cannot create", e)),
        }
    }

    fn create(
        file: File,
        path: &Path,
        name: Option<PathBuf>,
        options: &StoreOptions,
    ) -> Result<Arena> {
        let geometry = Geometry::plan(options.memory, options.shards);
        if let Some(why) = geometry.fault() {
            return Err(Error::Invalid(why));
        }
        let len = geometry.file_len();
        file.set_len(len)
            .map_err(|e| io_error(path, "cannot size", e))?;
        let map = Map::new(file, len).map_err(|e| io_error(path, "cannot map", e))?;
        let arena = Arena {
            map,
            path: name,
            geometry,
            shard_map: ShardMap::new(geometry.shard_capacity),
        };
        arena
            .format(options)
            .map_err(|e| io_error(path, "cannot initialise", e))?;
        Ok(arena)
    }

    /// Write the superblock and the shards' headers, the magic last.
    fn format(&self, options: &StoreOptions) -> io::Result<()> {
        let full = |_| io::Error::from_raw_os_error(libc::ENOSPC);
        let frame = FRAME as u64;
        self.map.populate(0, frame).map_err(full)?;
        let sb = self.superblock();
        sb.admin.init()?;
        sb.version.set(VERSION);
        sb.frame.set(FRAME as u32);
        sb.ceiling.set(self.geometry.ceiling);
        sb.shard_capacity.set(self.geometry.shard_capacity);
        sb.shards.set(self.geometry.shards);
        sb.geometry_crc.set(self.geometry.crc());
        sb.memory.set(options.memory);
        sb.accept_threshold.set(options.accept_threshold);
        sb.generation.set(1);
        sb.seed.set(RandomState::new().build_hasher().finish());
        sb.committed.set(frame);
        self.set_boot();
        for shard in 0..self.geometry.shards {
            self.map
                .populate(self.shard_at(shard), frame)
                .map_err(full)?;
            let head = self.shard(shard);
            head.lock.init()?;
            head.committed.set(frame);
        }
        sb.magic.set(MAGIC);
        Ok(())
    }

    /// Attach the arena at `path`.
    pub fn attach(path: &Path) -> Result<(Arena, Attach)> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|e| io_error(path, "cannot open", e))?;
        let refuse = |why: String| {
            Err(Error::Arena {
                path: path.display().to_string(),
                why,
            })
        };
        let meta = file
            .metadata()
            .map_err(|e| io_error(path, "cannot stat", e))?;
        if !meta.is_file() || meta.len() < FRAME as u64 {
            return refuse(format!("it is {} bytes long and no arena", meta.len()));
        }
        range_lock(&file, 0, libc::F_WRLCK, true).map_err(|e| io_error(path, "cannot lock", e))?;
        let geometry = match read_geometry(&file).map_err(|e| io_error(path, "cannot read", e))? {
            Ok(geometry) => geometry,
            Err(why) => return refuse(why),
        };
        if meta.len() != geometry.file_len() {
            let (is, should) = (meta.len(), geometry.file_len());
            return refuse(format!(
                "it is {is} bytes long and should be {should}: cut short or damaged"
            ));
        }
        let map = Map::new(file, meta.len()).map_err(|e| io_error(path, "cannot map", e))?;
        let shard_map = ShardMap::new(geometry.shard_capacity);
        let arena = Arena {
            map,
            path: Some(path.to_owned()),
            geometry,
            shard_map,
        };
        if let Some(why) = arena.fault() {
            return refuse(why);
        }
        let how = arena.join().map_err(|e| io_error(path, "cannot lock", e))?;
        range_lock(arena.map.file(), 0, libc::F_UNLCK, true)
            .map_err(|e| io_error(path, "cannot lock", e))?;
        Ok((arena, how))
    }

    /// What the mutable part of the superblock says that cannot be.
    fn fault(&self) -> Option<String> {
        let sb = self.superblock();
        let (memory, accept) = (sb.memory.get(), sb.accept_threshold.get());
        if memory < 1 << 20 || memory > self.geometry.ceiling {
            return Some(format!("damaged: its memory limit reads as {memory} bytes"));
        }
        let pool_frames = (MAX_POOLS * size_of::<PoolRecord>() / FRAME) as u64;
        let committed = sb.committed.get();
        if !committed.is_multiple_of(FRAME as u64)
            || !(1..=1 + pool_frames).contains(&(committed / FRAME as u64))
        {
            return Some(format!(
                "damaged: its pool table reads as {committed} bytes long"
            ));
        }
        if !(1..=100).contains(&accept) {
            return Some(format!("damaged: its accept threshold reads as {accept} %"));
        }
        None
    }

    /// Become one of those attached. Byte 0 is held.
    fn join(&self) -> io::Result<Attach> {
        let alone = range_lock(self.map.file(), 1, libc::F_WRLCK, false).is_ok();
        let mut how = Attach::Shared;
        if alone {
            how = Attach::Alone;
            let sb = self.superblock();
            sb.generation.add(1);
            if boot_id() != [sb.boot[0].get(), sb.boot[1].get()] {
                how = Attach::AfterReboot;
            }
            self.renew_locks(how)?;
        }
        range_lock(self.map.file(), 1, libc::F_RDLCK, true)?;
        Ok(how)
    }

    /// Nobody else is here, so whatever the locks say is of the past: `dirty` alone tells what was left unfinished.
    fn renew_locks(&self, how: Attach) -> io::Result<()> {
        self.superblock().admin.init()?;
        for shard in 0..self.geometry.shards {
            let head = self.shard(shard);
            head.lock.init()?;
            if how == Attach::AfterReboot || !self.is_plausible(head) {
                head.dirty.set(SUSPECT);
            }
        }
        self.set_boot();
        Ok(())
    }

    /// Whether a shard's totals can be true.
    fn is_plausible(&self, head: &ShardHeader) -> bool {
        let rooms = self.shard_map.tables.iter().map(|&(_, room)| room);
        let tables = head.tables.iter().zip(rooms).all(|(table, room)| {
            let committed = table.committed.get();
            table.len.get() <= committed && committed <= room && committed % FRAME as u64 == 0
        });
        tables && head.segments.get() <= self.shard_map.segments && head.dirty.get() <= SUSPECT
    }

    fn set_boot(&self) {
        let [a, b] = boot_id();
        self.superblock().boot[0].set(a);
        self.superblock().boot[1].set(b);
    }

    #[inline(always)]
    pub fn map(&self) -> &Map {
        &self.map
    }

    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// For messages.
    pub fn name(&self) -> String {
        self.path
            .as_ref()
            .map_or("(private)".into(), |p| p.display().to_string())
    }

    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    pub fn shards(&self) -> u32 {
        self.geometry.shards
    }

    #[inline(always)]
    pub fn shard_map(&self) -> &ShardMap {
        &self.shard_map
    }

    #[inline(always)]
    pub fn superblock(&self) -> &Superblock {
        self.map.view(0)
    }

    #[inline(always)]
    pub fn shard_at(&self, shard: u32) -> u64 {
        SHARDS_AT + u64::from(shard) * self.shard_map.stride
    }

    #[inline(always)]
    pub fn shard(&self, shard: u32) -> &ShardHeader {
        self.map.view(self.shard_at(shard))
    }

    /// A pool's record; its frame must be committed (see `commit_pool`).
    #[inline(always)]
    pub fn pool(&self, slot: u32) -> &PoolRecord {
        assert!((slot as usize) < MAX_POOLS);
        self.map
            .view(POOLS_AT + u64::from(slot) * size_of::<PoolRecord>() as u64)
    }

    /// Slots of the pool table that are committed.
    pub fn pool_slots(&self) -> u32 {
        let frames = (self.superblock().committed.get() / FRAME as u64).saturating_sub(1);
        (frames as usize * (FRAME / size_of::<PoolRecord>())).min(MAX_POOLS) as u32
    }

    /// Commit another frame of the pool table. The admin lock is held.
    pub fn grow_pools(&self) -> std::result::Result<(), super::map::NoSpace> {
        let committed = self.superblock().committed.get();
        self.map.populate(committed, FRAME as u64)?;
        self.superblock().committed.set(committed + FRAME as u64);
        Ok(())
    }

    /// A table of a shard.
    #[inline(always)]
    pub fn table<'a>(&'a self, shard: u32, id: usize, budget: Budget<'a>) -> Table<'a> {
        let (start, room) = self.shard_map.tables[id];
        let head = &self.shard(shard).tables[id];
        Table::new(self, budget, head, self.shard_at(shard) + start, room)
    }

    /// Bytes in use, everything counted.
    pub fn used(&self) -> u64 {
        let shards = (0..self.geometry.shards).map(|s| self.shard(s).committed.get_ordered());
        self.superblock().committed.get() + shards.sum::<u64>()
    }

    /// Bytes the file system has allocated to the file, to compare with `used`.
    pub fn allocated(&self) -> io::Result<u64> {
        Ok(self.map.file().metadata()?.blocks() * 512)
    }

    /// Run `body` under the admin lock; the pool table needs no rebuild, as each record is published by one store.
    pub fn with_admin<T>(&self, body: impl FnOnce() -> T) -> Result<T> {
        let lock = &self.superblock().admin;
        lock.acquire(Level::Admin).map_err(|e| Error::Arena {
            path: self.name(),
            why: format!("damaged: its admin lock is unusable ({e})"),
        })?;
        struct Release<'a>(&'a super::lock::LockWord);
        impl Drop for Release<'_> {
            fn drop(&mut self) {
                self.0.release(Level::Admin);
            }
        }
        let _held = Release(lock);
        Ok(body())
    }
}

fn io_error(path: &Path, what: &'static str, source: io::Error) -> Error {
    Error::Io {
        path: path.to_owned(),
        what,
        source,
    }
}

/// The geometry a file's superblock gives, or why it is none of ours. Read, not mapped: the file may be anything.
fn read_geometry(file: &File) -> io::Result<std::result::Result<Geometry, String>> {
    use std::os::unix::fs::FileExt;
    let mut bytes = [0; 40];
    file.read_exact_at(&mut bytes, 0)?;
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8"));
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4"));
    if u64_at(0) != MAGIC {
        return Ok(Err("it does not begin as an arena does".into()));
    }
    if u32_at(8) != VERSION {
        let found = u32_at(8);
        return Ok(Err(format!(
            "its layout is version {found}; this build reads version {VERSION}"
        )));
    }
    if u32_at(12) != FRAME as u32 {
        return Ok(Err(format!(
            "its frames are {} bytes; this build's are {FRAME}",
            u32_at(12)
        )));
    }
    let geometry = Geometry {
        ceiling: u64_at(16),
        shard_capacity: u64_at(24),
        shards: u32_at(32),
    };
    if geometry.crc() != u32_at(36) || geometry.fault().is_some() {
        return Ok(Err("damaged: its geometry fails its checksum".into()));
    }
    Ok(Ok(geometry))
}

#[allow(unsafe_code)]
pub(super) fn memfd() -> io::Result<File> {
    // SAFETY: a plain system call; the descriptor it returns is owned by nobody else.
    unsafe {
        match libc::memfd_create(c"tmem-arena".as_ptr(), libc::MFD_CLOEXEC) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(File::from_raw_fd(fd)),
        }
    }
}

/// Give an unnamed file its name; fails where the name is taken.
#[allow(unsafe_code)]
fn link(file: &File, path: &Path) -> io::Result<()> {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    let from = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let to = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: both are NUL-terminated strings that outlive the call.
    let done = unsafe {
        libc::linkat(
            libc::AT_FDCWD,
            from.as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            libc::AT_SYMLINK_FOLLOW,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Lock one byte of the file for its open file description.
#[allow(unsafe_code)]
fn range_lock(file: &File, byte: i64, kind: libc::c_int, wait: bool) -> io::Result<()> {
    let command = if wait {
        libc::F_OFD_SETLKW
    } else {
        libc::F_OFD_SETLK
    };
    // SAFETY: all-zero is a valid `flock`.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    (range.l_type, range.l_whence) = (kind as _, libc::SEEK_SET as _);
    (range.l_start, range.l_len) = (byte, 1);
    loop {
        // SAFETY: a plain system call; `range` outlives it.
        if unsafe { libc::fcntl(file.as_raw_fd(), command, &raw const range) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// The running system's boot id; zeros where there is none to read.
fn boot_id() -> [u64; 2] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let half = |range| {
        hex.get(range)
            .and_then(|h| u64::from_str_radix(h, 16).ok())
            .unwrap_or(0)
    };
    [half(0..16), half(16..32)]
}
