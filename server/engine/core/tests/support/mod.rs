//! Pages that tell whose they are and how new, for tests that must know an old page from a new one.
//!
//! A page begins with its stamp (fill, key, version) and the rest follows from that, so any page that comes out of a
//! store is either one that was put, whole, or a fault.
#![allow(dead_code)] // each test binary uses a part of it

use tmem_core::{Fetch, Kind, Oid, Outcome, Pool, PoolSettings, Store, StoreOptions};

/// What a page is like to a compressor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fill {
    /// One 8-byte word over and over.
    Same,
    /// Compresses to about a quarter.
    Text,
    /// Compresses to about three quarters.
    Rough,
    /// Does not compress.
    Noise,
}

impl Fill {
    pub const ALL: [Fill; 4] = [Fill::Same, Fill::Text, Fill::Rough, Fill::Noise];

    pub fn pick(n: u64) -> Fill {
        Fill::ALL[(n % 4) as usize]
    }
}

/// xorshift64*: small, seeded, good enough to choose test cases.
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        (self.word() >> 11) % n.max(1)
    }

    pub fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

fn stamp(fill: Fill, key: u64, version: u64) -> u64 {
    assert!(key < 1 << 30 && version < 1 << 32);
    (fill as u64) << 62 | key << 32 | version
}

fn body(stamp: u64, size: usize) -> Vec<u8> {
    let mut random = Random::new(stamp ^ 0x5eed);
    let mut page = Vec::with_capacity(size);
    page.extend(stamp.to_le_bytes());
    while page.len() < size {
        let word = random.word();
        match Fill::ALL[(stamp >> 62) as usize] {
            Fill::Same => page.extend(stamp.to_le_bytes()),
            Fill::Noise => page.extend(word.to_le_bytes()),
            Fill::Text => page.extend([word as u8 & 0x3f; 32]),
            Fill::Rough => {
                page.extend(word.to_le_bytes());
                page.extend(random.word().to_le_bytes());
                page.extend(random.word().to_le_bytes());
                page.extend([0; 8]);
            }
        }
    }
    page.truncate(size);
    page
}

/// The page of a key and version.
pub fn page(fill: Fill, key: u64, version: u64, size: usize) -> Vec<u8> {
    body(stamp(fill, key, version), size)
}

/// Key and version of a page that came out of a store; None when it is no page that was ever put.
pub fn read(page: &[u8]) -> Option<(u64, u64)> {
    let stamp = u64::from_le_bytes(page[..8].try_into().expect("a page has a first word"));
    (body(stamp, page.len()) == page).then_some((stamp >> 32 & 0x3fff_ffff, stamp & 0xffff_ffff))
}

pub fn oid(n: u64) -> Oid {
    Oid::from_bytes(&n.to_be_bytes()).expect("8 bytes are an oid")
}

/// A private store.
pub fn store(memory: u64, shards: u32) -> Store {
    Store::open(&StoreOptions {
        memory,
        shards: Some(shards),
        ..StoreOptions::default()
    })
    .expect("a store")
}

pub fn persistent() -> PoolSettings {
    PoolSettings::new(Kind::Persistent)
}

/// An ephemeral pool that keeps a page on get.
pub fn inclusive() -> PoolSettings {
    PoolSettings {
        inclusive: true,
        ..PoolSettings::new(Kind::Ephemeral)
    }
}

/// Put one page.
pub fn put(pool: &Pool, object: u64, index: u32, page: &[u8]) -> Outcome {
    pool.put(&oid(object), &[(index, page)])
        .expect("a put is stored or refused")[0]
}

pub fn stored(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Stored { .. })
}

/// Get one page; None on a miss. A corrupt page is a fault of the store.
pub fn get(pool: &Pool, object: u64, index: u32) -> Option<Vec<u8>> {
    let mut page = vec![0xa5; pool.page_size()];
    let fetched = pool
        .get(&oid(object), &[index], &mut [&mut page], false)
        .expect("a get hits or misses")[0];
    assert_ne!(
        fetched,
        Fetch::Corrupt,
        "object {object} page {index} is corrupt"
    );
    (fetched == Fetch::Hit).then_some(page)
}

/// The version of a page that is there; it must be of this key.
pub fn version(pool: &Pool, object: u64, index: u32, key: u64) -> Option<u64> {
    let page = get(pool, object, index)?;
    let (of, version) = read(&page).expect("every page that comes out was put");
    assert_eq!(
        of, key,
        "object {object} page {index} holds another key's page"
    );
    Some(version)
}

pub fn stat(store: &Store, name: &str) -> u64 {
    store
        .stats()
        .expect("statistics")
        .get(name)
        .expect("a known name")
}

/// Nothing in the store contradicts anything else, and it keeps to its memory.
#[track_caller]
pub fn assert_sound(store: &Store) {
    assert_sound_but(store, 0);
}

/// Bytes by which pages that are replaced or kept may pass the limit.
pub const BEYOND: u64 = 512 << 10;

/// The same where replaced pages may have passed the limit by so many bytes.
#[track_caller]
pub fn assert_sound_but(store: &Store, beyond: u64) {
    assert_eq!(store.check().expect("a usable store"), Vec::<String>::new());
    let (used, memory) = (stat(store, "used_bytes"), stat(store, "memory_bytes"));
    assert!(
        used <= memory + beyond,
        "{used} bytes are in use, and {memory} are allowed"
    );
}

/// A number from the environment, or its default.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is no number: {text}"))
    })
}

/// A path in /dev/shm of this process's own, removed at the end.
pub struct Scratch(pub std::path::PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        let path =
            std::path::PathBuf::from(format!("/dev/shm/tmem-test-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        Scratch(path)
    }

    pub fn options(&self, memory: u64, shards: u32) -> StoreOptions {
        StoreOptions {
            memory,
            shards: Some(shards),
            arena: Some(self.0.clone()),
            ..StoreOptions::default()
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Raises a flag when it goes, by panic too: the threads that wait for it end.
pub struct Finish<'a>(pub &'a std::sync::atomic::AtomicBool);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::SeqCst);
    }
}
