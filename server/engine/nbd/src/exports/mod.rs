//! The table of exports: what is served under which name, and to whom.
//!
//! An export without multi-conn has one connection at a time. The next one gets in once the old connection's thread has
//! finished all that came over it, so nothing of it lands after what the new connection writes.
//!
//! A client with several connections, one of which breaks, sends what was not answered again over another. So before a
//! connection changes anything, those that were closed by then are cut off: what they began is done, the rest is dropped.
//! That a connection is broken is known when the system knows it: of TCP, when the end of the stream has arrived.
//! Locking: the table's lock is held for no I/O, and a backend is asked nothing but its `info` under it.

mod access;
mod table;

pub use access::{Access, Claim};
pub use table::ExportStatus;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::backend::{
    Backend, Client, Counts, ExportCounters, ExportInfo, Link, Refusal, Resolver,
};
use crate::protocol::{MAX_DATA, MAX_STRING};
use crate::wire::Socket;
use table::{Connection, Entry, Key, Prefix, Table, clients, status};

/// How long a client waits for a connection whose other end is gone to make way.
pub(crate) const HANDOVER: Duration = Duration::from_secs(2);

/// Why a change of the table was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    #[error("there is no export {0:?}")]
    Unknown(String),
    #[error("export {0:?} already exists")]
    Exists(String),
    #[error("{0}")]
    Invalid(String),
    #[error("export {name:?} is in use by {clients} connections")]
    InUse { name: String, clients: usize },
}

/// The exports of a process. Shared by its servers.
#[derive(Default)]
pub struct Exports {
    table: Mutex<Table>,
    /// A connection ended.
    freed: Condvar,
}

/// An export that a client has open. Dropped once all requests of the client are done.
pub struct Opened {
    pub backend: Arc<dyn Backend>,
    pub counts: Arc<Counts>,
    exports: Arc<Exports>,
    key: Key,
    client: Client,
    attached: bool,
    /// Where several connections may change the export: how often it was opened.
    openings: Option<Arc<AtomicU64>>,
}

impl Opened {
    /// The other connections, as the one of `own` sees them.
    pub fn others(&self, own: &Arc<Link>) -> Others {
        let watched = match (&self.key, &self.openings) {
            (Key::Named(name), Some(openings)) => Some((name.clone(), openings.clone())),
            _ => None,
        };
        Others {
            exports: self.exports.clone(),
            own: own.clone(),
            watched,
            seen: 0,
            links: Vec::new(),
        }
    }
}

/// The other connections of an export.
pub struct Others {
    exports: Arc<Exports>,
    own: Arc<Link>,
    watched: Option<(String, Arc<AtomicU64>)>,
    /// The count of openings for which `links` is current.
    seen: u64,
    links: Vec<Weak<Link>>,
}

impl Others {
    /// Wait until no request of a connection that has been closed is in progress; false if this connection is cut off.
    pub fn settle(&mut self) -> bool {
        let Some((name, openings)) = &self.watched else {
            return true;
        };
        let now = openings.load(Ordering::SeqCst);
        if self.seen != now {
            self.seen = now;
            self.links = self.exports.links(name, &self.own);
        }
        let links: Vec<_> = self.links.iter().filter_map(Weak::upgrade).collect();
        if !links.is_empty() && Socket::any_hung_up(links.iter().map(|link| link.socket())) {
            self.exports.wait_for_closed(name, &self.own);
        }
        !self.own.socket().is_closed()
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if self.attached {
            self.backend.detach(&self.client);
        }
        self.exports.leave(&self.key, self.client.id);
    }
}

impl Exports {
    pub fn new() -> Arc<Exports> {
        Arc::default()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serve `backend` as `name`; the empty name is what a client opens that names none.
    pub fn add(
        &self,
        name: &str,
        backend: Arc<dyn Backend>,
        access: Access,
    ) -> Result<(), ExportError> {
        check_name(name)?;
        check_info(&backend.info())?;
        let mut table = self.table();
        if table.named.contains_key(name) {
            return Err(ExportError::Exists(name.into()));
        }
        let entry = Entry {
            backend,
            access,
            draining: false,
            counts: Arc::default(),
            connections: Vec::new(),
            openings: Arc::default(),
        };
        table.named.insert(name.into(), entry);
        Ok(())
    }

    /// Have `resolver` open the exports whose names begin with `prefix`. They are not listed.
    pub fn add_prefix(&self, prefix: &str, resolver: Arc<dyn Resolver>) -> Result<(), ExportError> {
        check_name(prefix)?;
        let entry = Prefix {
            resolver,
            counts: Arc::default(),
            connections: Vec::new(),
        };
        match self.table().prefixes.insert(prefix.into(), entry) {
            None => Ok(()),
            Some(_) => Err(ExportError::Exists(prefix.into())),
        }
    }

    /// Stop serving `name`. Refused while it has clients; with `force` they are disconnected first, and their requests finished.
    pub fn remove(&self, name: &str, force: bool) -> Result<Arc<dyn Backend>, ExportError> {
        let mut table = self.table();
        loop {
            let entry = table
                .named
                .get_mut(name)
                .ok_or_else(|| ExportError::Unknown(name.into()))?;
            entry.draining |= force;
            let clients = entry.connections.len();
            if clients == 0 {
                let entry = table.named.remove(name).expect("found just now");
                return Ok(entry.backend);
            }
            if !force {
                let name = name.into();
                return Err(ExportError::InUse { name, clients });
            }
            entry
                .connections
                .iter()
                .for_each(|connection| connection.link.socket().close());
            table = self.wait(table, Duration::from_millis(100));
        }
    }

    fn wait<'t>(&self, table: MutexGuard<'t, Table>, limit: Duration) -> MutexGuard<'t, Table> {
        let waited = self.freed.wait_timeout(table, limit);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Change an export's size. Clients learn of it when they connect anew; beyond a new end they get errors at once.
    pub fn resize(&self, name: &str, bytes: u64) -> Result<(), ExportError> {
        let backend = self.backend(name)?;
        let resized = backend.resize(bytes);
        resized.map_err(|refusal| ExportError::Invalid(refusal.to_string()))
    }

    /// Stop or resume admitting new clients. Connected ones are not affected.
    pub fn drain(&self, name: &str, draining: bool) -> Result<(), ExportError> {
        let mut table = self.table();
        let entry = table.named.get_mut(name);
        let entry = entry.ok_or_else(|| ExportError::Unknown(name.into()))?;
        entry.draining = draining;
        Ok(())
    }

    /// Change who may open an export. When this returns, connections that are no longer allowed have ended: requests in
    /// progress are finished, the others dropped.
    pub fn allow(&self, name: &str, access: Access) -> Result<(), ExportError> {
        let mut table = self.table();
        let entry = table.named.get_mut(name);
        let entry = entry.ok_or_else(|| ExportError::Unknown(name.into()))?;
        entry.access = access;
        while let Some(entry) = table.named.get(name) {
            let mut strangers = entry.strangers().peekable();
            if strangers.peek().is_none() {
                break;
            }
            strangers.for_each(|connection| connection.link.socket().close());
            table = self.wait(table, Duration::from_millis(100));
        }
        Ok(())
    }

    /// Wait until an export has no client; false if the limit passes first.
    pub fn wait_idle(&self, name: &str, limit: Duration) -> Result<bool, ExportError> {
        let deadline = Instant::now() + limit;
        let mut table = self.table();
        loop {
            let entry = table.named.get(name);
            let entry = entry.ok_or_else(|| ExportError::Unknown(name.into()))?;
            if entry.connections.is_empty() {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            table = self.wait(table, left);
        }
    }

    pub fn backend(&self, name: &str) -> Result<Arc<dyn Backend>, ExportError> {
        let table = self.table();
        let entry = table.named.get(name);
        entry
            .map(|entry| entry.backend.clone())
            .ok_or_else(|| ExportError::Unknown(name.into()))
    }

    /// Every export by name, without those of resolvers.
    pub fn list(&self) -> Vec<ExportStatus> {
        let table = self.table();
        let named: Vec<_> = table.named.iter().map(status).collect();
        drop(table);
        named
            .into_iter()
            .map(|(mut status, backend)| {
                (status.info, status.size) = (backend.info(), backend.size());
                status
            })
            .collect()
    }

    /// The clients of all exports under a prefix, and their counters in sum.
    pub fn prefix_status(&self, prefix: &str) -> Option<(Vec<Client>, ExportCounters)> {
        let table = self.table();
        let found = table.prefixes.get(prefix)?;
        Some((clients(&found.connections), found.counts.read()))
    }

    /// The names a client may see.
    pub(crate) fn names(&self, client: &Client) -> Vec<String> {
        let table = self.table();
        let seen = table
            .named
            .iter()
            .filter(|(_, entry)| entry.access.admits(client));
        seen.map(|(name, _)| name.clone()).collect()
    }

    /// Look up an export without opening it. The empty name means the only export, if there is just one.
    pub(crate) fn probe(
        &self,
        name: &str,
        client: &Client,
    ) -> Result<(String, Arc<dyn Backend>), Refusal> {
        let table = self.table();
        let name = table.full_name(name, client);
        if let Some(entry) = table.named.get(&name) {
            entry.admit(&name, client)?;
            return Ok((name, entry.backend.clone()));
        }
        let (_, resolver) = table.resolver(&name)?;
        drop(table);
        let backend = resolver.open(&name, client, true)?;
        Ok((name, backend))
    }

    /// Open an export for a client.
    pub(crate) fn open(
        self: &Arc<Exports>,
        name: &str,
        client: &Client,
        link: &Arc<Link>,
    ) -> Result<Opened, Refusal> {
        let name = self.table().full_name(name, client);
        let known = self.table().named.contains_key(&name);
        let mut opened = if known {
            self.open_within_limits(name, client, link)?
        } else {
            self.resolve(&name, client, link)?
        };
        let attached = opened.backend.attach(client);
        opened.attached = attached.is_ok();
        let counts = &opened.counts;
        let counter = if opened.attached {
            &counts.attached
        } else {
            &counts.refused
        };
        counter.fetch_add(1, Ordering::Relaxed);
        attached.map(|()| opened)
    }

    /// How many connections must stay free for clients that exports name.
    pub(crate) fn claim(&self, opened: &str) -> Claim {
        let table = self.table();
        let own = table.named.get(opened).is_some_and(|one| one.kept() > 0);
        let others = table.named.iter().filter(|(name, _)| *name != opened);
        let others = others.map(|(_, entry)| entry.kept()).sum();
        Claim { own, others }
    }

    fn open_within_limits(
        self: &Arc<Exports>,
        name: String,
        client: &Client,
        link: &Arc<Link>,
    ) -> Result<Opened, Refusal> {
        let deadline = Instant::now() + HANDOVER;
        let mut table = self.table();
        loop {
            let entry = table.named.get_mut(&name);
            let entry = entry.ok_or_else(|| Refusal::Unknown(name.clone()))?;
            entry.admit(&name, client)?;
            let info = entry.backend.info();
            let closed = entry.cut_off_closed();
            let free = match info.multi_conn {
                true => closed == 0 || info.read_only,
                false => entry.connections.is_empty(),
            };
            if free {
                entry.connections.push(Connection {
                    client: client.clone(),
                    link: link.clone(),
                });
                entry.openings.fetch_add(1, Ordering::SeqCst);
                let watch = info.multi_conn && !info.read_only;
                return Ok(Opened {
                    backend: entry.backend.clone(),
                    counts: entry.counts.clone(),
                    exports: self.clone(),
                    openings: watch.then(|| entry.openings.clone()),
                    key: Key::Named(name),
                    client: client.clone(),
                    attached: false,
                });
            }
            let in_use = !info.multi_conn && closed < entry.connections.len();
            if in_use || Instant::now() >= deadline {
                entry.counts.refused.fetch_add(1, Ordering::Relaxed);
                return Err(entry.busy(&name, client, info.multi_conn));
            }
            table = self.wait(table, Duration::from_millis(100));
        }
    }

    fn resolve(
        self: &Arc<Exports>,
        name: &str,
        client: &Client,
        link: &Arc<Link>,
    ) -> Result<Opened, Refusal> {
        let (prefix, resolver) = self.table().resolver(name)?;
        let backend = resolver.open(name, client, false)?;
        let mut table = self.table();
        let entry = table.prefixes.get_mut(&prefix);
        let entry = entry.ok_or_else(|| Refusal::Unknown(name.into()))?;
        entry.connections.push(Connection {
            client: client.clone(),
            link: link.clone(),
        });
        Ok(Opened {
            backend,
            counts: entry.counts.clone(),
            exports: self.clone(),
            key: Key::Prefix(prefix),
            client: client.clone(),
            attached: false,
            openings: None,
        })
    }

    fn links(&self, name: &str, own: &Arc<Link>) -> Vec<Weak<Link>> {
        let table = self.table();
        let connections = table
            .named
            .get(name)
            .map_or(&[][..], |entry| &entry.connections);
        let others = connections
            .iter()
            .filter(|connection| !Arc::ptr_eq(&connection.link, own));
        others
            .map(|connection| Arc::downgrade(&connection.link))
            .collect()
    }

    /// Wait until the closed connections of an export are gone, or `own` is closed too.
    fn wait_for_closed(&self, name: &str, own: &Link) {
        let mut table = self.table();
        while let Some(entry) = table.named.get(name) {
            if entry.cut_off_closed() == 0 || own.socket().is_closed() {
                return;
            }
            table = self.wait(table, Duration::from_millis(100));
        }
    }

    fn leave(&self, key: &Key, client: u64) {
        if let Some(connections) = self.table().connections(key) {
            connections.retain(|connection| connection.client.id != client);
        }
        self.freed.notify_all();
    }
}

fn check_name(name: &str) -> Result<(), ExportError> {
    if name.len() > MAX_STRING {
        return Err(ExportError::Invalid(format!(
            "an export's name can have at most {MAX_STRING} bytes, not {}",
            name.len()
        )));
    }
    Ok(())
}

fn check_info(info: &ExportInfo) -> Result<(), ExportError> {
    let (least, liked) = (info.minimum_block, info.preferred_block);
    let good = least.is_power_of_two()
        && least <= 65536
        && liked.is_power_of_two()
        && liked >= least.max(512)
        && liked <= MAX_DATA
        && info.piece.is_multiple_of(liked);
    if good {
        return Ok(());
    }
    Err(ExportError::Invalid(format!(
        "an export cannot have blocks of {least} (least), {liked} (preferred) and pieces of {} bytes",
        info.piece
    )))
}
