//! The vocabulary of the engine's interface: object ids, settings, limits.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};

/// How long a lock is waited for that another process holds, by default.
pub const LOCK_WAIT: Duration = Duration::from_secs(3);
/// Bytes in a frame, the unit in which the arena grows and shrinks.
pub const FRAME: usize = 4096;
/// Largest page a pool may have, in bytes.
pub const MAX_PAGE: usize = 256 << 10;
/// Pages whose handles share a shard, a lock and an index node: `index >> 6`.
pub const CLUSTER: u32 = 64;
/// Longest pool or owner name, in bytes of UTF-8.
pub const MAX_NAME: usize = 64;
/// Most pools an arena can hold.
pub const MAX_POOLS: usize = 1024;

/// A 192-bit object id, as 24 bytes (a number is big-endian, a shorter string is zero-padded at its end).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Oid(pub [u8; 24]);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Persistent,
    Ephemeral,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AllocatorKind {
    Zsmalloc,
    Zbud,
}

/// How a pool compresses. Same-filled pages are found whatever the codec.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Codec {
    /// LZ4 block format; `acceleration` 1 to 65537.
    Lz4 { acceleration: u32 },
    /// LZ4 block format, searched for the best matches; `level` 3 to 12.
    Lz4hc { level: i32 },
    /// zstd, `level` -7 to 19.
    Zstd { level: i32 },
    /// Pages are kept as they are.
    Raw,
}

/// How an arena is created. `memory` is the hard limit on its use, metadata included.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Bytes; at least 1 MiB.
    pub memory: u64,
    /// None: a private arena that goes with the process.
    pub arena: Option<PathBuf>,
    /// None: chosen from `memory`. A power of two.
    pub shards: Option<u32>,
    /// Keep the arena from being swapped out.
    pub mlock: bool,
    /// Ask for transparent huge pages.
    pub huge_pages: bool,
    /// Per cent of `memory` below which a store that was full takes new pages again; 100 turns the hysteresis off.
    pub accept_threshold: u32,
    /// How long a lock is waited for that another process holds.
    pub lock_wait: Duration,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolSettings {
    pub kind: Kind,
    pub codec: Codec,
    pub allocator: AllocatorKind,
    /// 4096, 8192, 16384, 32768, 65536, 131072 or 262144.
    pub page_size: u32,
    /// Bytes of footprint; 0 is no quota.
    pub quota: u64,
    /// Share of the memory relative to other ephemeral pools; at least 1.
    pub weight: u32,
    /// An ephemeral pool shared by many clients keeps a page on get.
    pub shared: bool,
    /// A private ephemeral pool that keeps a page on get.
    pub inclusive: bool,
    /// Refuse pages that compress to more than this many bytes; 0 refuses none.
    pub max_zpage: u32,
    /// The client the pool belongs to.
    pub owner: String,
}

impl Oid {
    /// From up to 24 bytes, zero-padded at the end.
    pub fn from_bytes(bytes: &[u8]) -> Result<Oid> {
        let mut oid = [0; 24];
        let room = oid.get_mut(..bytes.len()).ok_or_else(|| {
            Error::Invalid(format!("oid is {} bytes long; at most 24", bytes.len()))
        })?;
        room.copy_from_slice(bytes);
        Ok(Oid(oid))
    }

    /// Three little-endian words, as the arena keeps them.
    pub(crate) fn words(&self) -> [u64; 3] {
        let word = |i: usize| u64::from_le_bytes(self.0[i * 8..i * 8 + 8].try_into().expect("8"));
        [word(0), word(1), word(2)]
    }

    pub(crate) fn from_words(words: [u64; 3]) -> Oid {
        let mut oid = [0; 24];
        for (bytes, word) in oid.chunks_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Oid(oid)
    }
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            memory: 256 << 20,
            arena: None,
            shards: None,
            mlock: false,
            huge_pages: false,
            accept_threshold: 90,
            lock_wait: LOCK_WAIT,
        }
    }
}

impl PoolSettings {
    /// The defaults of a kind: zsmalloc for persistent pools, zbud for ephemeral ones.
    pub fn new(kind: Kind) -> PoolSettings {
        PoolSettings {
            kind,
            codec: Codec::Lz4 { acceleration: 1 },
            allocator: match kind {
                Kind::Persistent => AllocatorKind::Zsmalloc,
                Kind::Ephemeral => AllocatorKind::Zbud,
            },
            page_size: FRAME as u32,
            quota: 0,
            weight: 1,
            shared: false,
            inclusive: false,
            max_zpage: 0,
            owner: String::new(),
        }
    }

    /// Refuse settings that make no sense.
    pub fn validate(&self) -> Result<()> {
        let invalid = |why: String| Err(Error::Invalid(why));
        let size = self.page_size as usize;
        if !size.is_power_of_two() || !(FRAME..=MAX_PAGE).contains(&size) {
            return invalid(format!(
                "page_size is {size}; it must be a power of two from {FRAME} to {MAX_PAGE}"
            ));
        }
        if self.weight == 0 {
            return invalid("weight is 0; it must be at least 1".into());
        }
        if self.owner.len() > MAX_NAME {
            return invalid(format!("owner is longer than {MAX_NAME} bytes"));
        }
        if self.kind == Kind::Persistent && (self.shared || self.inclusive) {
            return invalid("shared and inclusive are for ephemeral pools: a persistent pool always keeps its pages on get".into());
        }
        self.codec.validate()
    }

    /// Whether a get removes the page it returns.
    pub fn exclusive_get(&self) -> bool {
        self.kind == Kind::Ephemeral && !self.shared && !self.inclusive
    }
}

impl Codec {
    fn validate(self) -> Result<()> {
        match self {
            Codec::Lz4 { acceleration } if !(1..=65537).contains(&acceleration) => {
                Err(Error::Invalid(format!(
                    "lz4 acceleration is {acceleration}; it must be 1 to 65537"
                )))
            }
            Codec::Lz4hc { level } if !(3..=12).contains(&level) => Err(Error::Invalid(format!(
                "lz4hc level is {level}; it must be 3 to 12"
            ))),
            Codec::Zstd { level } if !(-7..=19).contains(&level) => Err(Error::Invalid(format!(
                "zstd level is {level}; it must be -7 to 19"
            ))),
            _ => Ok(()),
        }
    }

    /// `"lz4"`, `"lz4:4"` (acceleration), `"lz4hc"`, `"lz4hc:9"` (level), `"zstd"`, `"zstd:3"` (level) or `"raw"`.
    pub fn parse(text: &str) -> Result<Codec> {
        let bad = || {
            Error::Invalid(format!(
                "codec {text:?} is not one of lz4, lz4:ACCELERATION, lz4hc, lz4hc:LEVEL, zstd, zstd:LEVEL, raw"
            ))
        };
        let (name, number) = match text.split_once(':') {
            Some((name, number)) => (name, Some(number.parse::<i32>().map_err(|_| bad())?)),
            None => (text, None),
        };
        let codec = match (name, number) {
            ("lz4", n) => Codec::Lz4 {
                acceleration: u32::try_from(n.unwrap_or(1)).map_err(|_| bad())?,
            },
            ("lz4hc", n) => Codec::Lz4hc {
                level: n.unwrap_or(9),
            },
            ("zstd", n) => Codec::Zstd {
                level: n.unwrap_or(1),
            },
            ("raw", None) => Codec::Raw,
            _ => return Err(bad()),
        };
        codec.validate().map(|()| codec)
    }
}

impl std::fmt::Display for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Codec::Lz4 { acceleration: 1 } => f.write_str("lz4"),
            Codec::Lz4 { acceleration } => write!(f, "lz4:{acceleration}"),
            Codec::Lz4hc { level } => write!(f, "lz4hc:{level}"),
            Codec::Zstd { level } => write!(f, "zstd:{level}"),
            Codec::Raw => f.write_str("raw"),
        }
    }
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Persistent => "persistent",
            Kind::Ephemeral => "ephemeral",
        }
    }

    pub fn parse(text: &str) -> Result<Kind> {
        [Kind::Persistent, Kind::Ephemeral]
            .into_iter()
            .find(|k| k.name() == text)
            .ok_or_else(|| {
                Error::Invalid(format!("kind {text:?} is neither persistent nor ephemeral"))
            })
    }
}

impl AllocatorKind {
    pub fn name(self) -> &'static str {
        match self {
            AllocatorKind::Zsmalloc => "zsmalloc",
            AllocatorKind::Zbud => "zbud",
        }
    }

    pub fn parse(text: &str) -> Result<AllocatorKind> {
        [AllocatorKind::Zsmalloc, AllocatorKind::Zbud]
            .into_iter()
            .find(|a| a.name() == text)
            .ok_or_else(|| {
                Error::Invalid(format!("allocator {text:?} is neither zsmalloc nor zbud"))
            })
    }
}
