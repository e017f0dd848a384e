//! The arena's file: created whole or not at all, attached by any number of processes.
//!
//! A new arena is made without a name and linked to its path when it is ready, so that nobody ever sees half of one.
//! Attaching is serialised by an open-file-description lock on byte 0, and everyone attached holds byte 1 shared: who
//! can have byte 1 alone is the only one there. Only then may stale locks of an earlier boot be made anew.

use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::header::{self, Header};
use super::layout::*;
use super::locks::file_lock::{self, ATTACHED, ATTACHING};
use super::locks::lock::{Acquired, Level, LockWord, Missed};
use super::locks::owner::{self, Owner};
use super::locks::wait_limits::WaitLimits;
use super::mapping::map::Map;
use super::trust::{self, io_error, refusal};
use crate::error::{Error, Lock, Result};
use crate::types::{FRAME, MAX_POOLS, StoreOptions};

/// An attached arena.
pub struct Arena {
    owner: Owner, // gone before what it is mapped in
    wait_limits: WaitLimits,
    map: Map,
    path: Option<PathBuf>,
    geometry: Geometry,
    shard_map: ShardMap,
}

/// How an arena was obtained.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attach {
    Created,
    /// Attached, and others may be.
    Shared,
    /// Attached by nobody else, in the boot it was last used in.
    Alone,
    /// Attached by nobody else, and the system has restarted: its content is not known to be intact.
    AfterReboot,
}

impl Arena {
    /// A private arena, which disappears with its last user.
    pub fn private(options: &StoreOptions) -> Result<Arena> {
        let path = PathBuf::from("(private)");
        let file = trust::memfd().map_err(|e| io_error(&path, "cannot create", e))?;
        Arena::create(file, &path, None, options)
    }

    /// Create the arena at `path`, or attach it where it exists.
    pub fn open(path: &Path, options: &StoreOptions) -> Result<(Arena, Attach)> {
        if trust::is_descriptor(path) {
            Arena::fill(path, options)?;
        }
        match Arena::attach(path, options.lock_wait) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let arena = Arena::create(trust::unnamed(path)?, path, Some(path.to_owned()), options)?;
        match trust::link(arena.map.file(), path) {
            Ok(()) => Ok((arena, Attach::Created)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                Arena::attach(path, options.lock_wait)
            }
            Err(e) => Err(io_error(path, "cannot create", e)),
        }
    }

    /// Make an arena of memory that was handed to this process, unless it is one: attached by someone, or with a magic number.
    fn fill(path: &Path, options: &StoreOptions) -> Result<()> {
        let file = trust::open(path)?;
        let locks = owner::open_again(&file).map_err(|e| io_error(path, "cannot open", e))?;
        lock_attaching(&locks, path, options.lock_wait)?;
        let mut magic = [0; 8];
        let read = std::os::unix::fs::FileExt::read_at(&file, &mut magic, 0);
        read.map_err(|e| io_error(path, "cannot read", e))?;
        let alone = file_lock::lock(locks.as_raw_fd(), ATTACHED, libc::F_WRLCK).is_ok();
        if magic != [0; 8] || !alone {
            return Ok(());
        }
        let _ = file_lock::lock(locks.as_raw_fd(), ATTACHED, libc::F_UNLCK);
        Arena::create(file, path, None, options).map(drop)
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
        trust::seal(&file);
        let locks = owner::open_again(&file).map_err(|e| io_error(path, "cannot open", e))?;
        let map = Map::new(file, len).map_err(|e| io_error(path, "cannot map", e))?;
        format(&map, geometry, options).map_err(|e| io_error(path, "cannot initialise", e))?;
        let owner = Owner::new(&map, locks).map_err(|e| io_error(path, "cannot lock", e))?;
        Ok(Arena::of(owner, map, name, geometry, options.lock_wait))
    }

    fn of(
        owner: Owner,
        map: Map,
        path: Option<PathBuf>,
        geometry: Geometry,
        limit: Duration,
    ) -> Arena {
        Arena {
            owner,
            wait_limits: WaitLimits::new(limit, geometry.shards as usize + 1),
            map,
            path,
            geometry,
            shard_map: ShardMap::new(geometry.shard_capacity),
        }
    }

    /// Attach the arena at `path`.
    pub fn attach(path: &Path, limit: Duration) -> Result<(Arena, Attach)> {
        let file = trust::open(path)?;
        let refuse = |why: String| Err(refusal(path, why));
        let meta = file
            .metadata()
            .map_err(|e| io_error(path, "cannot stat", e))?;
        if meta.len() < FRAME as u64 {
            return refuse(format!(
                "it is {} bytes long, too short for an arena",
                meta.len()
            ));
        }
        let locks = owner::open_again(&file).map_err(|e| io_error(path, "cannot open", e))?;
        lock_attaching(&locks, path, limit)?;
        let header = match header::read(&file).map_err(|e| io_error(path, "cannot read", e))? {
            Ok(header) => header,
            Err(why) => return refuse(why),
        };
        let geometry = header.geometry;
        if meta.len() != geometry.file_len() {
            let (is, should) = (meta.len(), geometry.file_len());
            return refuse(format!(
                "it is {is} bytes long and should be {should}: truncated or damaged"
            ));
        }
        let map = Map::new(file, meta.len()).map_err(|e| io_error(path, "cannot map", e))?;
        if let Some(why) = fault(map.view(0), geometry) {
            return refuse(why);
        }
        let alone = file_lock::lock(locks.as_raw_fd(), ATTACHED, libc::F_WRLCK).is_ok();
        if header.older && !alone {
            return refuse(
                "its layout is one version older than this build's, and a process of an earlier build has it attached: once that has ended, the next process to attach it migrates it"
                    .into(),
            );
        }
        let how = if alone {
            renew(&map, &header)
        } else {
            Attach::Shared
        };
        let owner = Owner::new(&map, locks).map_err(|e| io_error(path, "cannot lock", e))?;
        file_lock::lock(owner.locks(), ATTACHING, libc::F_UNLCK)
            .map_err(|e| io_error(path, "cannot lock", e))?;
        let arena = Arena::of(owner, map, Some(path.to_owned()), geometry, limit);
        arena.whole()?;
        Ok((arena, how))
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

    /// A pool's record; its frame must be committed (see `grow_pools`).
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
    pub fn grow_pools(&self) -> std::result::Result<(), super::mapping::map::NoSpace> {
        let committed = self.superblock().committed.get();
        self.map.populate(committed, FRAME as u64)?;
        self.superblock().committed.set(committed + FRAME as u64);
        Ok(())
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
        struct Release<'a>(&'a LockWord);
        impl Drop for Release<'_> {
            fn drop(&mut self) {
                self.0.release(Level::Admin);
            }
        }
        self.take(Lock::Admin)?;
        let held = Release(&self.superblock().admin);
        let done = body();
        drop(held);
        self.whole().map(|()| done)
    }

    /// Take a lock, or say who has it.
    #[inline]
    pub fn take(&self, lock: Lock) -> Result<Acquired> {
        self.whole()?;
        let (word, level, number) = self.lock(lock);
        let limit = || self.wait_limits.limit(number);
        match word.acquire(&self.owner, level, limit) {
            Ok(acquired) => {
                if acquired.waited {
                    self.wait_limits.got(number);
                }
                Ok(acquired)
            }
            Err(missed) => Err(self.missed(lock, missed)),
        }
    }

    fn lock(&self, lock: Lock) -> (&LockWord, Level, usize) {
        match lock {
            Lock::Shard(shard) => (&self.shard(shard).lock, Level::Shard, shard as usize + 1),
            _ => (&self.superblock().admin, Level::Admin, 0),
        }
    }

    #[cold]
    fn missed(&self, lock: Lock, missed: Missed) -> Error {
        match missed {
            Missed::Held(holder) => Error::Busy {
                lock,
                holder: owner::process_of(&self.map, holder),
                waited: self.wait_limits.missed(self.lock(lock).2, holder),
            },
            Missed::Nobody => Error::Arena {
                path: self.name(),
                why: "this process was forked and could not attach the arena itself (that needs /proc and a free descriptor)"
                    .into(),
            },
        }
    }

    /// Locks for which this process waited in vain and whose owners still hold them, each with its owner's process.
    pub fn stuck(&self) -> Vec<(Lock, Option<u32>)> {
        let shards = (0..self.geometry.shards).map(Lock::Shard);
        let stuck = |lock: &Lock| {
            let (word, _, number) = self.lock(*lock);
            let holder = self.wait_limits.stuck(number)?;
            if word.holder() != holder || !self.owner.is_alive(holder) {
                self.wait_limits.got(number);
                return None;
            }
            Some((*lock, owner::process_of(&self.map, holder)))
        };
        [Lock::Admin]
            .into_iter()
            .chain(shards)
            .filter_map(|lock| stuck(&lock))
            .collect()
    }

    /// Like `whole`, but checks the file's length too: the missing bytes may not have been touched yet.
    pub fn look(&self) -> Result<()> {
        self.map.look();
        self.whole()
    }

    /// An error if bytes of the arena could not be read.
    #[inline(always)]
    pub fn whole(&self) -> Result<()> {
        if self.map.is_broken() {
            return Err(self.broken());
        }
        Ok(())
    }

    #[cold]
    fn broken(&self) -> Error {
        Error::Arena {
            path: self.name(),
            why: "part of it cannot be read: its file was truncated, or its disk or memory failed; it cannot be used until it is attached again"
                .into(),
        }
    }
}

fn lock_attaching(locks: &File, path: &Path, limit: Duration) -> Result<()> {
    match file_lock::lock_within(locks.as_raw_fd(), ATTACHING, limit) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::Busy {
            lock: Lock::Attaching,
            holder: None,
            waited: true,
        }),
        Err(e) => Err(io_error(path, "cannot lock", e)),
    }
}

fn shard_head<'m>(map: &'m Map, shard_map: &ShardMap, shard: u32) -> &'m ShardHeader {
    map.view(SHARDS_AT + u64::from(shard) * shard_map.stride)
}

/// Write the superblock and the shards' headers, the magic last.
fn format(map: &Map, geometry: Geometry, options: &StoreOptions) -> io::Result<()> {
    let full = |_| io::Error::from_raw_os_error(libc::ENOSPC);
    let (frame, shard_map) = (FRAME as u64, ShardMap::new(geometry.shard_capacity));
    map.populate(0, frame).map_err(full)?;
    let sb: &Superblock = map.view(0);
    sb.admin.init();
    sb.version.set(VERSION);
    sb.frame.set(FRAME as u32);
    sb.ceiling.set(geometry.ceiling);
    sb.shard_capacity.set(geometry.shard_capacity);
    sb.shards.set(geometry.shards);
    sb.geometry_crc.set(geometry.crc(VERSION));
    sb.memory.set(options.memory);
    sb.accept_threshold.set(options.accept_threshold);
    sb.generation.set(1);
    sb.seed.set(RandomState::new().build_hasher().finish());
    sb.committed.set(frame);
    set_boot(sb);
    for shard in 0..geometry.shards {
        let at = SHARDS_AT + u64::from(shard) * shard_map.stride;
        map.populate(at, frame).map_err(full)?;
        let head = shard_head(map, &shard_map, shard);
        head.lock.init();
        head.committed.set(frame);
    }
    sb.magic.set(MAGIC);
    Ok(())
}

/// Impossible values in the mutable part of the superblock.
fn fault(sb: &Superblock, geometry: Geometry) -> Option<String> {
    let (memory, accept) = (sb.memory.get(), sb.accept_threshold.get());
    if memory < 1 << 20 || memory > geometry.ceiling {
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

/// Nobody else is attached, so the locks' state is stale: `dirty` alone tells what was left unfinished. Bytes 0 and 1 are
/// held.
fn renew(map: &Map, header: &Header) -> Attach {
    let (sb, geometry): (&Superblock, _) = (map.view(0), header.geometry);
    sb.generation.add(1);
    let how = match boot_id() == [sb.boot[0].get(), sb.boot[1].get()] {
        true => Attach::Alone,
        false => Attach::AfterReboot,
    };
    sb.admin.init();
    let shard_map = ShardMap::new(geometry.shard_capacity);
    for shard in 0..geometry.shards {
        let head = shard_head(map, &shard_map, shard);
        head.lock.init();
        if how == Attach::AfterReboot || !is_plausible(&shard_map, head) {
            head.dirty.set(SUSPECT);
        }
    }
    set_boot(sb);
    if header.older {
        header::migrate(sb, geometry);
    }
    how
}

/// Whether a shard's totals are plausible.
fn is_plausible(shard_map: &ShardMap, head: &ShardHeader) -> bool {
    let rooms = shard_map.tables.iter().map(|&(_, room)| room);
    let tables = head.tables.iter().zip(rooms).all(|(table, room)| {
        let committed = table.committed.get();
        table.len.get() <= committed && committed <= room && committed % FRAME as u64 == 0
    });
    tables && head.segments.get() <= shard_map.segments && head.dirty.get() <= SUSPECT
}

fn set_boot(sb: &Superblock) {
    let [a, b] = boot_id();
    sb.boot[0].set(a);
    sb.boot[1].set(b);
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
