//! The header of a file, read before the file is mapped: whether it is an arena, which layout it has, and how large it
//! is.
//!
//! An arena of the previous layout is migrated in place by a process that has it alone: its locks are reset, then the
//! version is written, then the checksum that covers it. After a kill in between, the version is new and the checksum
//! old, as in no other case; the next process to attach repeats the migration. Older builds refuse the arena once the
//! version is written.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::layout::{BEFORE, Geometry, MAGIC, Superblock, VERSION};
use super::locks::owner::OWNERS_AT;
use crate::types::FRAME;

/// What was read.
pub struct Header {
    pub geometry: Geometry,
    /// It is of the layout before, or its migration was cut short.
    pub older: bool,
}

/// The header of a file, or why it is none of ours. The file may be anything.
pub fn read(file: &File) -> io::Result<Result<Header, String>> {
    let mut bytes = [0; 40];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(parse(&bytes))
}

fn parse(bytes: &[u8; 40]) -> Result<Header, String> {
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8"));
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4"));
    if u64_at(0) != MAGIC {
        return Err("it does not start as an arena does".into());
    }
    let version = u32_at(8);
    if version > VERSION {
        return Err(format!(
            "its layout is version {version}, from a newer build; this build reads version {VERSION} and migrates version {BEFORE}"
        ));
    }
    if version < BEFORE {
        return Err(format!(
            "its layout is version {version}; this build reads version {VERSION} and migrates version {BEFORE}: attach it with a build in between first"
        ));
    }
    if u32_at(12) != FRAME as u32 {
        return Err(format!(
            "its frames are {} bytes; this build uses {FRAME}",
            u32_at(12)
        ));
    }
    let geometry = Geometry {
        ceiling: u64_at(16),
        shard_capacity: u64_at(24),
        shards: u32_at(32),
    };
    let older = u32_at(36) == geometry.crc(BEFORE);
    let current = version == VERSION && u32_at(36) == geometry.crc(VERSION);
    if !(older || current) || geometry.fault().is_some() {
        return Err("damaged: its geometry fails its checksum".into());
    }
    Ok(Header { geometry, older })
}

/// Make an arena of the layout before one of this. Nobody else is attached, and its locks have been made anew.
pub fn migrate(superblock: &Superblock, geometry: Geometry) {
    debug_assert_eq!(std::mem::offset_of!(Superblock, owners) as u64, OWNERS_AT);
    superblock.owners.set(0);
    superblock
        .processes
        .iter()
        .for_each(|process| process.set(0));
    superblock.version.publish(VERSION);
    superblock.geometry_crc.publish(geometry.crc(VERSION));
}
