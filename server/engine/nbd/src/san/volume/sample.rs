//! What a volume holds, in brief: enough to know it again on another way, and to notice most of what was done to it.
//!
//! Read are blocks spread over the volume, and those where file systems, partitions and volume managers say that they were
//! used. Two volumes that hold the same have the same sample; two with one sample may differ elsewhere.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::mpsc;
use std::time::Duration;

use super::backing::Backing;

const SPREAD: u64 = 64;
const LENGTH: u64 = 4096;
/// Of ext4, XFS and LVM, of btrfs, and of these in a first partition.
const TELLING: [u64; 4] = [0, 64 << 10, 1 << 20, (1 << 20) + (64 << 10)];
/// For all that is read.
const PATIENCE: Duration = Duration::from_secs(30);

/// None where it cannot be read.
pub fn sample(backing: &dyn Backing) -> Option<String> {
    let size = backing.size();
    let length = LENGTH.max(backing.minimum_block().into()).min(size);
    let blocks = size.checked_div(length).unwrap_or(0);
    let spread =
        (0..SPREAD).map(|number| (blocks as u128 * number as u128 / SPREAD as u128) as u64);
    let telling = TELLING.iter().map(|offset| offset / length.max(1));
    let chosen: BTreeSet<u64> = spread
        .chain(telling)
        .chain(blocks.checked_sub(1))
        .filter(|&block| block < blocks)
        .collect();
    let (sender, receiver) = mpsc::channel();
    for &block in &chosen {
        let sender = sender.clone();
        let done = Box::new(move |read| drop(sender.send((block, read))));
        backing.read(block * length, length as usize, done);
    }
    let mut digests = Vec::new();
    for _ in &chosen {
        let (block, read) = receiver.recv_timeout(PATIENCE).ok()?;
        digests.push((block, digest(&read.ok()?)));
    }
    digests.sort_unstable();
    Some(format!("{:016x}", digest(&(size, digests))))
}

fn digest(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}
