//! Scan of a pool's keys while it is in use: one cluster after another, in an order that no change moves.
//!
//! A shard's clusters are listed under its lock and sorted by key; the cursor is the key of the last one given. So every
//! page that is there from the first call to the last is given once, whatever happens to the others meanwhile.

use super::Target;
use crate::alloc::slot::Zhandle;
use crate::error::{Error, Result};
use crate::shard::{ObjectKey, Shard};
use crate::types::{CLUSTER, Oid};

/// Pages of one cluster of an object: index and stamp of each, as `flush_if` takes them.
pub struct ScannedCluster {
    pub oid: Oid,
    pub pages: Vec<(u32, u32)>,
}

/// How far a scan has come: shard, oid and cluster of what was given last. As bytes it is opaque to users.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ScanCursor {
    shard: u32,
    /// None: before the shard's first cluster.
    after: Option<(Oid, u32)>,
}

impl ScanCursor {
    pub const START: ScanCursor = ScanCursor {
        shard: 0,
        after: None,
    };

    pub fn to_bytes(self) -> Vec<u8> {
        let mut bytes = self.shard.to_le_bytes().to_vec();
        if let Some((oid, cluster)) = self.after {
            bytes.extend_from_slice(&oid.0);
            bytes.extend_from_slice(&cluster.to_le_bytes());
        }
        bytes
    }

    /// The cursor of `to_bytes`. Any bytes of the right length are one.
    pub fn from_bytes(bytes: &[u8]) -> Result<ScanCursor> {
        let number = |at: usize| bytes[at..at + 4].try_into().map(u32::from_le_bytes);
        let after = match bytes.len() {
            4 => None,
            32 => Some((
                Oid::from_bytes(&bytes[4..28])?,
                number(28).expect("4 bytes"),
            )),
            n => {
                return Err(Error::Invalid(format!(
                    "a scan cursor cannot be {n} bytes long"
                )));
            }
        };
        Ok(ScanCursor {
            shard: number(0).expect("4 bytes"),
            after,
        })
    }
}

impl Target<'_> {
    /// About `limit` pages after the cursor, and the next cursor, None at the end.
    pub fn scan(
        &self,
        cursor: ScanCursor,
        limit: usize,
    ) -> Result<(Vec<ScannedCluster>, Option<ScanCursor>)> {
        self.view()?;
        let (mut found, mut pages, mut at) = (Vec::new(), 0, cursor);
        while at.shard < self.arena.shards() {
            let mut clusters = self.with(at.shard, |shard, _| clusters_of(shard, self.id.slot))?;
            clusters.retain(|&cluster| at.after.is_none_or(|after| cluster > after));
            clusters.sort_unstable();
            for (oid, cluster) in clusters {
                if pages >= limit.max(1) {
                    return Ok((found, Some(at)));
                }
                at.after = Some((oid, cluster));
                let stamped = self.stamps(at.shard, &oid, cluster)?;
                pages += stamped.len();
                if !stamped.is_empty() {
                    found.push(ScannedCluster {
                        oid,
                        pages: stamped,
                    });
                }
            }
            at = ScanCursor {
                shard: at.shard + 1,
                after: None,
            };
        }
        Ok((found, None))
    }

    fn stamps(&self, shard: u32, oid: &Oid, cluster: u32) -> Result<Vec<(u32, u32)>> {
        let key = ObjectKey::new(self.arena, self.id.slot, oid);
        self.with(shard, |shard, _| {
            let Some(node) = shard.node(&key, cluster) else {
                return Vec::new();
            };
            let stamp = |page| {
                let place = Zhandle(shard.nodes.word(node, page)?);
                Some((
                    cluster * CLUSTER + page,
                    shard.frames.slot(place).header().seq,
                ))
            };
            (0..CLUSTER).filter_map(stamp).collect()
        })
    }
}

/// Every cluster of a pool in a shard.
fn clusters_of(shard: &Shard<'_>, pool: u32) -> Vec<(Oid, u32)> {
    let mut found = Vec::new();
    shard.nodes.each(|object, cluster| {
        if shard.objects.is_object_of(object, pool) {
            found.push((Oid::from_words(shard.objects.name(object).1), cluster));
        }
    });
    found
}
