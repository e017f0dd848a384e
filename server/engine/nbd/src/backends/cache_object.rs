//! The exports by which SAN gateways use the ephemeral pools of a store: `cache/POOL/OBJECT[/SESSION]`.
//!
//! OBJECT is an object id in 48 hex digits, SESSION 32 hex digits. A read is a get whose misses are **holes**: bytes
//! that came as data were put. A write is a put, answered `NoSpace` where a page of it was refused; no older page stays
//! then. A trim is a flush. Only clients that chose the meta context [`CONTEXT`] are let in: another would take misses
//! for zeros.
//!
//! No late landing: in a pool that is not shared a client names its session. The first connection of another session
//! than the last one waits for the commands under way and takes the object over; from then on every command of the
//! connections before fails with `Shutdown`, also if their session's name should come back. What a gateway sent and gave
//! up is so never carried out after its successor began. The content of objects in shared pools never changes, so
//! whatever lands there late is right.
//!
//! A pool that does not exist is made: inclusive for a client with a session, shared for one without.
//!
//! The description names the [`Caches::instance`]: while it stays the same, what was flushed stays away. A machine that
//! lost power may bring back flushed pages of an arena on disk, so a gateway takes a new object when it changes.
//! Locking: `guards`, then a guard, then the pool.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use tmem_core::{CLUSTER, Error, FRAME, Fetch, Kind, Oid, Outcome, Pool, PoolSettings, Store};

use crate::backend::{
    Backend, Client, Context, ExportInfo, Later, Refusal, Reply, Request, Resolver, Served, briefly,
};
use crate::protocol::{Errno, allocation};

/// The meta context that stands for holes being misses.
pub const CONTEXT: &str = "tmem:pages";
/// What the names of these exports begin with.
pub const PREFIX: &str = "cache/";
/// The flag of [`CONTEXT`] for pages that are not held.
pub const MISS: u32 = 1;
/// Pages flushed with one call into the pool.
const FLUSHED_AT_ONCE: usize = 4096;
/// Pages of one question about which are held.
const ASKED_AT_ONCE: u64 = 1 << 16;
/// A page is the least that is served at once, and NBD lets that be no larger.
const LARGEST_PAGE: u32 = 64 << 10;

/// Whether a client may use a pool, by its name and settings, or (last) have it made with these; the reason if not.
pub type Admission = dyn Fn(&Client, &str, &PoolSettings, bool) -> Result<(), String> + Send + Sync;

/// The objects of a store's ephemeral pools, as exports.
pub struct Caches {
    store: Store,
    admission: Box<Admission>,
    instance: String,
    guards: Mutex<HashMap<(u64, Oid), Weak<Guard>>>,
}

/// Whose an object is.
#[derive(Default)]
struct Guard {
    owner: RwLock<Owner>,
}

#[derive(Default)]
struct Owner {
    session: String,
    /// Counts the sessions that took the object over.
    turn: u64,
}

/// A name, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Name<'n> {
    pool: &'n str,
    object: Oid,
    session: Option<&'n str>,
}

impl<'n> Name<'n> {
    fn parse(name: &'n str) -> Option<Name<'n>> {
        let (before, last) = name.strip_prefix(PREFIX)?.rsplit_once('/')?;
        let (pool, object, session) = match last.len() {
            48 => (before, last, None),
            _ => {
                let (pool, object) = before.rsplit_once('/')?;
                (pool, object, Some(last))
            }
        };
        let sound = session.is_none_or(|session| hex::<16>(session).is_some());
        let object = Oid(hex::<24>(object)?);
        (sound && !pool.is_empty()).then_some(Name {
            pool,
            object,
            session,
        })
    }
}

/// The bytes of as many hex digits as they have.
pub(crate) fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}

impl Caches {
    pub fn new(store: Store, admission: Box<Admission>) -> Caches {
        Caches {
            instance: instance(&store),
            store,
            admission,
            guards: Mutex::default(),
        }
    }

    /// What stays the same for as long as flushed pages are sure to stay flushed.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    fn guard(&self, pool: &Pool, object: Oid) -> Arc<Guard> {
        let mut guards = self.guards.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (pool.id(), object);
        if let Some(guard) = guards.get(&key).and_then(Weak::upgrade) {
            return guard;
        }
        guards.retain(|_, guard| guard.strong_count() > 0);
        let guard = Arc::new(Guard::default());
        guards.insert(key, Arc::downgrade(&guard));
        guard
    }
}

/// The boot, and the arena: its file, or this very process.
fn instance(store: &Store) -> String {
    use std::os::unix::fs::MetadataExt;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let file = store.options().arena.and_then(|path| {
        let found = std::fs::metadata(path).ok()?;
        Some(format!("{:x}-{:x}", found.dev(), found.ino()))
    });
    let arena = file.unwrap_or_else(|| {
        let random = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
        format!("{}-{}", std::process::id(), random.trim())
    });
    format!("{}/{arena}", boot.trim())
}

impl Resolver for Caches {
    fn open(&self, name: &str, client: &Client, probe: bool) -> Result<Arc<dyn Backend>, Refusal> {
        let Some(parts) = Name::parse(name) else {
            return Err(Refusal::Invalid(format!(
                "{name:?} is not {PREFIX}POOL/OBJECT[/SESSION], OBJECT in 48 and SESSION in 32 hex digits"
            )));
        };
        let found = self.store.find_pool(parts.pool).map_err(refusal)?;
        let settings = found.as_ref().map(Pool::settings);
        let settings = settings.unwrap_or_else(|| made_for(parts.session.is_some(), client));
        (self.admission)(client, parts.pool, &settings, found.is_none())
            .map_err(Refusal::Policy)?;
        let pool = match found {
            Some(pool) => pool,
            None if probe => return Ok(Arc::new(Unmade)),
            None => self.store.pool(parts.pool, &settings).map_err(refusal)?,
        };
        suits(parts.pool, &settings, parts.session.is_some())?;
        let session = parts.session.filter(|_| !settings.shared);
        Ok(Arc::new(CacheExport {
            guard: session.map(|_| self.guard(&pool, parts.object)),
            session: session.unwrap_or_default().into(),
            turn: AtomicU64::new(0),
            description: format!("tmem cache; instance {}/{}", self.instance, pool.id()),
            page: pool.page_size() as u64,
            pool,
            object: parts.object,
        }))
    }
}

fn refusal(error: Error) -> Refusal {
    match error {
        Error::Invalid(_) | Error::Mismatch(_) | Error::Exhausted(_) => {
            Refusal::Policy(error.to_string())
        }
        other => Refusal::Shutdown(other.to_string()),
    }
}

/// The pool that a gateway gets which names one that does not exist.
fn made_for(session: bool, client: &Client) -> PoolSettings {
    PoolSettings {
        inclusive: session,
        shared: !session,
        owner: client.name().into(),
        ..PoolSettings::new(Kind::Ephemeral)
    }
}

/// Whether a gateway can use a pool.
fn suits(name: &str, settings: &PoolSettings, session: bool) -> Result<(), Refusal> {
    let why = if settings.kind != Kind::Ephemeral {
        "is persistent; a gateway needs an ephemeral pool"
    } else if settings.exclusive_get() {
        "is private: a read would remove the page; a gateway needs an inclusive or a shared pool"
    } else if settings.page_size > LARGEST_PAGE {
        "has pages of more than 65536 bytes, the maximum for a gateway"
    } else if !settings.shared && !session {
        "is not shared: the name must have a SESSION"
    } else {
        return Ok(());
    };
    Err(Refusal::Policy(format!("pool {name:?} {why}")))
}

/// One object of an ephemeral pool, as one connection has it.
struct CacheExport {
    pool: Pool,
    object: Oid,
    page: u64,
    guard: Option<Arc<Guard>>,
    session: String,
    turn: AtomicU64,
    description: String,
}

impl Backend for CacheExport {
    fn info(&self) -> ExportInfo {
        info(self.description.clone(), self.page as u32)
    }

    fn size(&self) -> u64 {
        self.page << 32
    }

    fn attach(&self, _client: &Client) -> Result<(), Refusal> {
        if let Some(guard) = &self.guard {
            let mut owner = guard.owner.write().unwrap_or_else(PoisonError::into_inner);
            if owner.session != self.session {
                owner.session.clone_from(&self.session);
                owner.turn += 1;
            }
            self.turn.store(owner.turn, Ordering::Relaxed);
        }
        Ok(())
    }

    fn serve(&self, request: Request<'_>, reply: &mut Reply<'_>, _later: &Later<'_>) -> Served {
        let owner = self.guard.as_ref().map(|guard| {
            let owner = guard.owner.read();
            owner.unwrap_or_else(PoisonError::into_inner)
        });
        let turn = self.turn.load(Ordering::Relaxed);
        if owner.as_ref().is_some_and(|owner| owner.turn != turn) {
            return Served::Now(Err(Errno::Shutdown));
        }
        Served::Now(briefly(|| self.carry_out(request, reply)))
    }
}

/// What a client is told of an object of a pool that will be made when it opens it.
struct Unmade;

impl Backend for Unmade {
    fn info(&self) -> ExportInfo {
        info(String::new(), FRAME as u32)
    }

    fn size(&self) -> u64 {
        (FRAME as u64) << 32
    }

    fn serve(&self, _: Request<'_>, _: &mut Reply<'_>, _: &Later<'_>) -> Served {
        Served::Now(Err(Errno::Shutdown))
    }
}

fn info(description: String, page: u32) -> ExportInfo {
    ExportInfo {
        description,
        multi_conn: true,
        minimum_block: page,
        preferred_block: page,
        piece: 256 << 10,
        private_context: Some(CONTEXT.into()),
        context_required: true,
        ..ExportInfo::default()
    }
}

impl CacheExport {
    fn carry_out(&self, request: Request<'_>, reply: &mut Reply<'_>) -> Result<(), Errno> {
        match request {
            Request::Read { offset, length } => self.read(offset, length, reply),
            Request::Write { offset, data, .. } => self.write(offset, data),
            Request::Trim { offset, length, .. } => self.trim(offset, length),
            Request::Flush | Request::Cache { .. } => Ok(()),
            Request::WriteZeroes { .. } => Err(Errno::NotSupported),
            Request::BlockStatus {
                offset,
                length,
                one,
                contexts,
            } => contexts.iter().try_for_each(|context| {
                reply.begin(context);
                self.status(offset, length, one, context, reply)
            }),
        }
    }

    fn index(&self, offset: u64) -> u32 {
        (offset / self.page) as u32
    }

    fn read(&self, offset: u64, length: u32, reply: &mut Reply<'_>) -> Result<(), Errno> {
        if !reply.has_holes() {
            return Err(Errno::NotSupported); // misses would read as zeros
        }
        let end = offset + u64::from(length);
        let cluster = self.page * u64::from(CLUSTER);
        let mut at = offset;
        while at < end {
            let next = (at / cluster + 1).saturating_mul(cluster).min(end);
            self.read_cluster(at, (next - at) as usize, reply)?;
            at = next;
        }
        Ok(())
    }

    fn read_cluster(&self, offset: u64, length: usize, reply: &mut Reply<'_>) -> Result<(), Errno> {
        let first = self.index(offset);
        let mut pages: Vec<&mut [u8]> = reply
            .data(offset, length)
            .chunks_mut(self.page as usize)
            .collect();
        let indices: Vec<u32> = (first..).take(pages.len()).collect();
        let fetched = self.pool.get(&self.object, &indices, &mut pages, false);
        let fetched = fetched.map_err(errno)?;
        let mut at = 0;
        while at < fetched.len() {
            let held = fetched[at] == Fetch::Hit;
            let same = fetched[at..]
                .iter()
                .take_while(|f| (**f == Fetch::Hit) == held);
            let count = same.count();
            if !held {
                let from = offset + at as u64 * self.page;
                reply.punch(from, count * self.page as usize);
            }
            at += count;
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let outcomes = self.pool.put_range(&self.object, self.index(offset), data);
        let stored = |outcome: &Outcome| matches!(outcome, Outcome::Stored { .. });
        match outcomes.map_err(errno)?.iter().all(stored) {
            true => Ok(()),
            false => Err(Errno::NoSpace),
        }
    }

    fn trim(&self, offset: u64, length: u32) -> Result<(), Errno> {
        let count = u64::from(length) / self.page;
        let indices: Vec<u32> = (self.index(offset)..=u32::MAX)
            .take(count as usize)
            .collect();
        indices.chunks(FLUSHED_AT_ONCE).try_for_each(|some| {
            let flushed = self.pool.flush(&self.object, some);
            flushed.map(|_| ()).map_err(errno)
        })
    }

    fn status(
        &self,
        offset: u64,
        length: u32,
        one: bool,
        context: Context,
        reply: &mut Reply<'_>,
    ) -> Result<(), Errno> {
        let missing = match context {
            Context::Allocation => allocation::HOLE,
            Context::Private => MISS,
        };
        let pages = u64::from(length) / self.page;
        let asked = if one { ASKED_AT_ONCE.min(pages) } else { pages };
        let held = self
            .pool
            .has(&self.object, self.index(offset), asked as u32);
        for held in held.map_err(errno)? {
            if !reply.extent(self.page, if held { 0 } else { missing }) {
                break;
            }
        }
        Ok(())
    }
}

fn errno(error: Error) -> Errno {
    match error {
        Error::Busy { .. } => Errno::Again,
        Error::UnknownPool(_) => Errno::Shutdown,
        Error::Invalid(_) => Errno::Invalid,
        Error::Exhausted(_) => Errno::NoSpace,
        _ => Errno::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_apart_from_its_end_as_pools_may_have_slashes() {
        let (object, session) = ("0".repeat(47) + "1", "a".repeat(32));
        let mut oid = [0; 24];
        oid[23] = 1;
        let name = format!("cache/fs/a/{object}/{session}");
        let parts = Name::parse(&name).unwrap();
        assert_eq!(
            parts,
            Name {
                pool: "fs/a",
                object: Oid(oid),
                session: Some(&session)
            }
        );
        let name = format!("cache/fs/{object}");
        assert_eq!(Name::parse(&name).unwrap().session, None);
        for name in [
            "cache/".into(),
            format!("cache/{object}"),
            format!("cache/fs/{object}/x"),
            format!("cache/fs/{}", &object[1..]),
            format!("cache/fs/{object}/{session}/"),
            format!("cache//{object}"),
            format!("cache/fs/{}+1", &object[2..]),
        ] {
            assert_eq!(Name::parse(&name), None, "{name}");
        }
    }
}
