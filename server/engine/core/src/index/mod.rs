//! The tmem index: (pool, oid, index) to a zpage's word, which it does not look into.
//!
//! `objects` turns (pool, oid) into a small number, `nodes` turns (object, cluster of 64 pages) into words, and both
//! hang on `buckets`, a hash that grows a bucket at a time, so no operation ever pays for a rehash. All of it is derived:
//! a rebuild makes it again from the slots and the object records.
//! Locking: runs under the shard lock; takes none of its own.

mod buckets;
mod nodes;
mod objects;

pub use nodes::{NodeCells, NodeId, Nodes};
pub use objects::{ObjectCells, Objects};

/// Fold two words into one, each bit of both counting.
#[inline(always)]
pub fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 ^ product as u64
}

/// The hash of a page's object; `seed` is the arena's own, so that nobody can make keys collide.
#[inline(always)]
pub fn object_hash(seed: u64, pool: u32, oid: [u64; 3]) -> u64 {
    let a = mix(oid[0] ^ seed, oid[1] ^ 0x9e37_79b9_7f4a_7c15);
    mix(
        a ^ oid[2],
        u64::from(pool) ^ seed.rotate_left(32) ^ 0xd6e8_feb8_6659_fd93,
    )
}

/// The hash of a cluster of an object: its upper bits choose the shard.
#[inline(always)]
pub fn cluster_hash(object: u64, cluster: u32) -> u64 {
    mix(
        object ^ 0xa076_1d64_78bd_642f,
        u64::from(cluster).wrapping_add(0xe703_7ed1_a0b4_28db),
    )
}
