//! A store in some state, what it holds, and what an operation that was cut short may have made of that.

use std::collections::HashMap;

use tmem_core::{AllocatorKind, Codec, Pool, PoolSettings, Store, StoreOptions};

use crate::support::{self, Fill, assert_sound_but, inclusive, oid, page, persistent, stat};

pub const OLD: u64 = 1;
pub const NEW: u64 = 2;

/// Pool, object, index.
pub type Key = (usize, u64, u32);

pub fn number(key: Key) -> u64 {
    (key.0 as u64) << 24 | (key.1 & 0xfff) << 12 | u64::from(key.2) & 0xfff
}

pub fn page_of(key: Key, version: u64, size: usize) -> Vec<u8> {
    let n = number(key);
    page(
        Fill::pick(n ^ (n >> 12) ^ (version / 16)),
        n,
        version % 16,
        size,
    )
}

/// A version of a page with this fill, whatever its key; `support::read` tells them apart by version alone.
pub fn filled(key: Key, fill: Fill, size: usize) -> Vec<u8> {
    page(fill, number(key), NEW, size)
}

/// What a page may be after an operation that names it was cut short.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Law {
    pub old: bool,
    pub new: bool,
    pub absent: bool,
}

pub const OLD_OR_NEW: Law = Law {
    old: true,
    new: true,
    absent: false,
};
pub const OLD_OR_GONE: Law = Law {
    old: true,
    new: false,
    absent: true,
};
pub const NEW_OR_NOT: Law = Law {
    old: false,
    new: true,
    absent: true,
};
pub const ANY: Law = Law {
    old: true,
    new: true,
    absent: true,
};

/// A store in some state, and what it holds.
pub struct Scene {
    pub store: Store,
    pub pools: Vec<Pool>,
    pub held: HashMap<Key, Vec<u8>>,
    /// What the operation is about to put.
    pub coming: HashMap<Key, Vec<u8>>,
    pub laws: HashMap<Key, Law>,
    /// The operation may evict.
    pub evicts: bool,
    /// Bytes by which it may pass the limit.
    pub beyond: u64,
    pub size: usize,
}

/// A kind of store to try every operation on.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    pub allocator: AllocatorKind,
    pub size: usize,
    pub codec: Codec,
    pub shards: u32,
}

pub const LZ4: Codec = Codec::Lz4 { acceleration: 1 };
pub const VARIANTS: [Variant; 6] = [
    Variant {
        allocator: AllocatorKind::Zsmalloc,
        size: 4096,
        codec: LZ4,
        shards: 1,
    },
    Variant {
        allocator: AllocatorKind::Zbud,
        size: 4096,
        codec: LZ4,
        shards: 1,
    },
    Variant {
        allocator: AllocatorKind::Zsmalloc,
        size: 65536,
        codec: LZ4,
        shards: 1,
    },
    Variant {
        allocator: AllocatorKind::Zbud,
        size: 65536,
        codec: Codec::Zstd { level: 1 },
        shards: 1,
    },
    Variant {
        allocator: AllocatorKind::Zsmalloc,
        size: 4096,
        codec: Codec::Raw,
        shards: 2,
    },
    Variant {
        allocator: AllocatorKind::Zsmalloc,
        size: 131072,
        codec: LZ4,
        shards: 1,
    },
];

impl Scene {
    /// Two pools, persistent and ephemeral, with nothing in them.
    pub fn empty(variant: Variant, memory: u64) -> Scene {
        Scene::with(
            variant,
            StoreOptions {
                memory,
                ..StoreOptions::default()
            },
        )
    }

    pub fn with(variant: Variant, options: StoreOptions) -> Scene {
        let store = Store::open(&StoreOptions {
            shards: Some(variant.shards),
            ..options
        })
        .unwrap();
        let of = |settings: PoolSettings| PoolSettings {
            allocator: variant.allocator,
            page_size: variant.size as u32,
            codec: variant.codec,
            ..settings
        };
        let pools = vec![
            store.pool("persistent", &of(persistent())).unwrap(),
            store.pool("ephemeral", &of(inclusive())).unwrap(),
        ];
        let (held, coming, laws) = Default::default();
        Scene {
            store,
            pools,
            held,
            coming,
            laws,
            evicts: false,
            beyond: 0,
            size: variant.size,
        }
    }

    /// Some pages of every sort in both pools: a dense object, a thin one, lone pages.
    pub fn some(variant: Variant) -> Scene {
        let mut scene = Scene::empty(variant, 6 << 20);
        for pool in 0..2 {
            let dense = if variant.size == 4096 { 70 } else { 9 };
            (0..dense).for_each(|i| scene.hold((pool, 1, i)));
            (0..5).for_each(|i| scene.hold((pool, 2, 1000 * i)));
            (10..14).for_each(|object| scene.hold((pool, object, 3)));
        }
        scene
    }

    /// Put a page that must be kept.
    pub fn hold(&mut self, key: Key) {
        assert!(self.try_hold(key), "the scene has room for {key:?}");
    }

    pub fn try_hold(&mut self, key: Key) -> bool {
        let page = page_of(key, OLD, self.size);
        let kept = support::stored(self.put(key, &page));
        if kept {
            self.held.insert(key, page);
        } else {
            self.held.remove(&key);
        }
        kept
    }

    pub fn put(&self, key: Key, page: &[u8]) -> tmem_core::Outcome {
        support::put(&self.pools[key.0], key.1, key.2, page)
    }

    pub fn flush(&mut self, key: Key) {
        self.pools[key.0].flush(&oid(key.1), &[key.2]).unwrap();
        self.held.remove(&key);
    }

    /// The operation puts a page here.
    pub fn brings(&mut self, key: Key, page: Vec<u8>, law: Law) {
        self.coming.insert(key, page);
        self.laws.insert(key, law);
    }

    /// The operation takes these pages.
    pub fn takes(&mut self, keys: impl IntoIterator<Item = Key>) {
        self.laws
            .extend(keys.into_iter().map(|key| (key, OLD_OR_GONE)));
    }

    /// What is there of a key; None on a miss.
    pub fn get(&self, key: Key) -> Option<Vec<u8>> {
        support::get(&self.pools[key.0], key.1, key.2)
    }

    /// Fill a pool until it gives no more.
    pub fn fill(&mut self, pool: usize, object: u64) {
        let mut index = 0;
        while index < 2000 && stat(&self.store, "limit_hits") == 0 && self.evicted() == 0 {
            self.try_hold((pool, object, index));
            index += 1;
        }
        let gone: Vec<Key> = self
            .held
            .keys()
            .filter(|key| self.get(**key).is_none())
            .copied()
            .collect();
        gone.iter().for_each(|key| drop(self.held.remove(key)));
    }

    pub fn evicted(&self) -> u64 {
        stat(&self.store, "evicted_pages")
    }

    /// All that must hold after the operation was cut short.
    pub fn verify(&self, what: &str) {
        let faults = self.store.check().unwrap();
        assert!(faults.is_empty(), "{what}: {faults:#?}");
        let (used, memory) = (
            stat(&self.store, "used_bytes"),
            stat(&self.store, "memory_bytes"),
        );
        assert!(
            used <= memory + self.beyond,
            "{what}: {used} bytes used of {memory}"
        );
        let allocated = self.store.allocated_bytes().unwrap();
        assert!(
            allocated <= used + (32 << 10),
            "{what}: {allocated} bytes are allocated, and {used} used"
        );
        for &key in self.held.keys().chain(self.coming.keys()) {
            self.verify_page(what, key);
        }
    }

    pub fn verify_page(&self, what: &str, key: Key) {
        let kept = Law {
            old: true,
            new: false,
            absent: self.evicts && key.0 == 1,
        };
        let law = self.laws.get(&key).copied().unwrap_or(kept);
        match self.get(key) {
            None => assert!(
                law.absent || key.0 == 1 && self.evicts,
                "{what}: {key:?} is lost"
            ),
            Some(page) if self.held.get(&key) == Some(&page) => {
                assert!(law.old, "{what}: {key:?} is an old page")
            }
            Some(page) if self.coming.get(&key) == Some(&page) => {
                assert!(law.new, "{what}: {key:?} is the new page")
            }
            Some(page) => panic!(
                "{what}: {key:?} is a page nobody put there: {:?}",
                support::read(&page)
            ),
        }
    }

    /// Any page can be put and got again.
    pub fn verify_use(&self, what: &str) {
        for (&key, page) in self.coming.iter().chain(self.held.iter().take(8)) {
            if support::stored(self.put(key, page)) {
                assert!(
                    self.get(key).as_ref() == Some(page),
                    "{what}: {key:?} does not read back"
                );
            } else {
                assert!(
                    self.get(key).is_none(),
                    "{what}: {key:?} was refused and is readable"
                );
            }
        }
        assert_sound_but(&self.store, self.beyond);
    }
}

/// Put everything that is coming, in the order of the keys.
pub fn put_coming(scene: &Scene) {
    let mut keys: Vec<Key> = scene.coming.keys().copied().collect();
    keys.sort_unstable();
    for key in keys {
        scene.put(key, &scene.coming[&key]);
    }
}
