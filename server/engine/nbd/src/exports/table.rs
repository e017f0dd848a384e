//! The table of a process's exports, and the connections of each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::access::Access;
use crate::backend::{
    Backend, Client, Counts, ExportCounters, ExportInfo, Link, Refusal, Resolver,
};

/// Connections reserved for the clients that an export with multi-conn names.
const KEPT_MULTI: usize = 4;

/// An export as it is now.
#[derive(Clone, Debug)]
pub struct ExportStatus {
    pub name: String,
    pub info: ExportInfo,
    pub size: u64,
    /// No new client is let in.
    pub draining: bool,
    pub clients: Vec<Client>,
    pub counters: ExportCounters,
}

#[derive(Default)]
pub struct Table {
    pub named: BTreeMap<String, Entry>,
    /// Exports under a prefix come and go with their clients; what is counted is counted together.
    pub prefixes: BTreeMap<String, Prefix>,
}

pub struct Entry {
    pub backend: Arc<dyn Backend>,
    pub access: Access,
    pub draining: bool,
    pub counts: Arc<Counts>,
    pub connections: Vec<Connection>,
    /// How often it was opened.
    pub openings: Arc<AtomicU64>,
}

pub struct Prefix {
    pub resolver: Arc<dyn Resolver>,
    pub counts: Arc<Counts>,
    pub connections: Vec<Connection>,
}

pub struct Connection {
    pub client: Client,
    pub link: Arc<Link>,
}

/// Where a connection is listed.
#[derive(Clone)]
pub enum Key {
    Named(String),
    Prefix(String),
}

impl Table {
    pub fn connections(&mut self, key: &Key) -> Option<&mut Vec<Connection>> {
        match key {
            Key::Named(name) => self.named.get_mut(name).map(|entry| &mut entry.connections),
            Key::Prefix(prefix) => self
                .prefixes
                .get_mut(prefix)
                .map(|found| &mut found.connections),
        }
    }

    pub fn full_name(&self, name: &str, client: &Client) -> String {
        let mut seen = self.named.iter().filter(|(_, e)| e.access.admits(client));
        match (name, seen.next(), seen.next()) {
            ("", Some((only, _)), None) => only.clone(),
            _ => name.into(),
        }
    }

    pub fn resolver(&self, name: &str) -> Result<(String, Arc<dyn Resolver>), Refusal> {
        let found = self
            .prefixes
            .iter()
            .rfind(|(prefix, _)| name.starts_with(*prefix));
        found
            .map(|(prefix, entry)| (prefix.clone(), entry.resolver.clone()))
            .ok_or_else(|| Refusal::Unknown(name.into()))
    }
}

impl Entry {
    /// Close this side of connections that their clients have closed, so that no more of their requests start; their number.
    pub fn cut_off_closed(&self) -> usize {
        let closed = self
            .connections
            .iter()
            .filter(|s| s.link.socket().is_hung_up());
        closed
            .map(|connection| connection.link.socket().close())
            .count()
    }

    pub fn busy(&self, name: &str, client: &Client, multi_conn: bool) -> Refusal {
        // Where others are is not told.
        let holder = &self.connections[0].client;
        let holder = match holder.name() == client.name() {
            true => &holder.address,
            false => "another client",
        };
        Refusal::Policy(match multi_conn {
            true => format!("export {name:?} is still busy with requests of a closed connection"),
            false => format!(
                "export {name:?} is in use by {holder}, and allows one connection at a time"
            ),
        })
    }

    /// Connections still reserved for its clients.
    pub fn kept(&self) -> usize {
        let most = match self.access {
            Access::Everybody => 0,
            Access::Identities(_) if self.backend.info().multi_conn => KEPT_MULTI,
            Access::Identities(_) => 1,
        };
        most.saturating_sub(self.connections.len())
    }

    /// Connections of clients that may not have it open.
    pub fn strangers(&self) -> impl Iterator<Item = &Connection> {
        let connections = self.connections.iter();
        connections.filter(|connection| !self.access.admits(&connection.client))
    }

    pub fn admit(&self, name: &str, client: &Client) -> Result<(), Refusal> {
        if !self.access.admits(client) {
            return Err(Refusal::Unknown(name.into()));
        }
        if self.draining {
            return Err(Refusal::Shutdown(format!(
                "export {name:?} is being drained and accepts no new clients"
            )));
        }
        Ok(())
    }
}

pub fn clients(connections: &[Connection]) -> Vec<Client> {
    connections
        .iter()
        .map(|connection| connection.client.clone())
        .collect()
}

/// What the table knows of an export; the backend is asked for the rest after the table's lock is released.
pub fn status((name, entry): (&String, &Entry)) -> (ExportStatus, Arc<dyn Backend>) {
    let status = ExportStatus {
        name: name.clone(),
        info: ExportInfo::default(),
        size: 0,
        draining: entry.draining,
        clients: clients(&entry.connections),
        counters: entry.counts.read(),
    };
    (status, entry.backend.clone())
}
