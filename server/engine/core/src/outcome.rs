//! Outcomes of operations on pages, and the counters of them.
//!
//! Outcomes are numbered as in `PutOutcome` of the wire protocol (`proto/tmem_proto/v1/tmem.proto`), so a put's answer
//! is the same bytes everywhere. Counters are stored in the arena in this order: add new ones at the end.

/// Why a put was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Reason {
    /// The pool's quota is used up.
    Quota = 4,
    /// The pool is frozen: puts act as flushes.
    Frozen = 5,
    /// The page compresses worse than the pool admits.
    PoorCompression = 6,
    /// The arena is at its memory limit, or has not fallen below the accept threshold since.
    Memory = 7,
    /// The file system that holds the arena is full.
    NoSpace = 8,
}

/// What became of one page of a put.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// `replaced`: the key held an older page.
    Stored { replaced: bool },
    /// `old_flushed`: the key held an older page, which is gone.
    Refused { reason: Reason, old_flushed: bool },
}

/// Added to the number of a refusal that flushed an older page.
const FLUSHED: u8 = 16;

/// What became of one index of a get.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fetch {
    Hit,
    Miss,
    /// The stored bytes failed their checksum; no bytes were delivered.
    Corrupt,
}

/// Why an ephemeral page was evicted. The causes sum to the total.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// The arena's limit, to make room for another page.
    Memory = 0,
    /// The pool's own quota.
    Quota = 1,
    /// `relinquish` was asked for.
    Relinquish = 2,
}

impl Reason {
    pub(crate) fn counter(self) -> Counter {
        match self {
            Reason::Quota => Counter::RefusedQuota,
            Reason::Frozen => Counter::RefusedFrozen,
            Reason::PoorCompression => Counter::RefusedPoorCompression,
            Reason::Memory => Counter::RefusedMemory,
            Reason::NoSpace => Counter::RefusedNoSpace,
        }
    }
}

impl Outcome {
    /// The byte that stands for it on the wire.
    pub fn byte(self) -> u8 {
        match self {
            Outcome::Stored { replaced: false } => 1,
            Outcome::Stored { replaced: true } => 2,
            Outcome::Refused {
                reason,
                old_flushed,
            } => reason as u8 + if old_flushed { FLUSHED } else { 0 },
        }
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $name:literal),* $(,)?) => {
        /// What is counted for each pool. The first five are gauges: they follow from the slots.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Counter { $($(#[$doc])* $variant),* }

        /// Names of the counters, in their order.
        pub const COUNTER_NAMES: [&str; COUNTERS] = [$($name),*];
        pub const COUNTERS: usize = [$($name),*].len();
    };
}

counters! {
    Pages = "pages",
    /// Bytes of stored zpages, without their headers.
    Payload = "payload_bytes",
    /// Frames committed for the pool.
    Frames = "footprint_frames",
    SameFilled = "same_filled_pages",
    Raw = "raw_pages",
    PutsStored = "puts_stored",
    PutsReplaced = "puts_replaced",
    OldFlushed = "puts_old_flushed",
    RefusedQuota = "refused_quota",
    RefusedFrozen = "refused_frozen",
    RefusedPoorCompression = "refused_poor_compression",
    RefusedMemory = "refused_memory",
    RefusedNoSpace = "refused_no_space",
    GetsHit = "gets_hit",
    GetsMiss = "gets_miss",
    GetsCorrupt = "gets_corrupt",
    Flushes = "flushes",
    FlushedPages = "flushed_pages",
    FlushedObjects = "flushed_objects",
    EvictedMemory = "evicted_memory",
    EvictedQuota = "evicted_quota",
    EvictedRelinquish = "evicted_relinquish",
    EvictedFrames = "evicted_frames",
    Compactions = "compactions",
    MovedPages = "moved_pages",
    CompactedFrames = "compacted_frames",
}

/// How many of the counters are gauges.
pub const GAUGES: usize = 5;
