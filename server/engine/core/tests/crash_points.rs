//! A process stopped before any one of its stores to the arena leaves a store that loses nothing.
//!
//! Every case is an operation on a prepared store. It is run again and again on a fresh copy, stopped one store later
//! each time, until it comes to its end. What it leaves is what `kill -9` there would have left: the shard is dirty, and
//! its next user rebuilds it. Then the arena must be sound, every page acknowledged before must be there unless the
//! operation was entitled to change it, the pages it named must be as the law allows, and everything must go on working.
#![cfg(feature = "crash-points")]

mod support;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use support::{Fill, Scratch, assert_sound, inclusive, oid, page, persistent, stat};
use tmem_core::{
    AllocatorKind, Codec, Crash, Fetch, Kind, Pool, PoolSettings, Store, StoreOptions, arm, disarm,
};

const OLD: u64 = 1;
const NEW: u64 = 2;
/// Stops tried of an operation with more stores than this are a sample: all at either end, some between.
const DENSE: u64 = 100;

/// Pool, object, index.
type Key = (usize, u64, u32);

fn number(key: Key) -> u64 {
    (key.0 as u64) << 24 | (key.1 & 0xfff) << 12 | u64::from(key.2) & 0xfff
}

fn page_of(key: Key, version: u64, size: usize) -> Vec<u8> {
    let n = number(key);
    page(
        Fill::pick(n ^ (n >> 12) ^ (version / 16)),
        n,
        version % 16,
        size,
    )
}

/// A version of a page with this fill, whatever its key; `support::read` tells them apart by version alone.
fn filled(key: Key, fill: Fill, size: usize) -> Vec<u8> {
    page(fill, number(key), NEW, size)
}

/// What a page may be after an operation that names it was cut short.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Law {
    old: bool,
    new: bool,
    absent: bool,
}

const OLD_OR_NEW: Law = Law {
    old: true,
    new: true,
    absent: false,
};
const OLD_OR_GONE: Law = Law {
    old: true,
    new: false,
    absent: true,
};
const NEW_OR_NOT: Law = Law {
    old: false,
    new: true,
    absent: true,
};
const ANY: Law = Law {
    old: true,
    new: true,
    absent: true,
};

/// A store in some state, and what it holds.
struct Scene {
    store: Store,
    pools: Vec<Pool>,
    held: HashMap<Key, Vec<u8>>,
    /// What the operation is about to put.
    coming: HashMap<Key, Vec<u8>>,
    laws: HashMap<Key, Law>,
    /// The operation may evict.
    evicts: bool,
    size: usize,
}

/// A kind of store to try every operation on.
#[derive(Clone, Copy, Debug)]
struct Variant {
    allocator: AllocatorKind,
    size: usize,
    codec: Codec,
    shards: u32,
}

const LZ4: Codec = Codec::Lz4 { acceleration: 1 };
const VARIANTS: [Variant; 5] = [
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
];

impl Scene {
    /// Two pools, persistent and ephemeral, with nothing in them.
    fn empty(variant: Variant, memory: u64) -> Scene {
        Scene::with(
            variant,
            StoreOptions {
                memory,
                ..StoreOptions::default()
            },
        )
    }

    fn with(variant: Variant, options: StoreOptions) -> Scene {
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
            size: variant.size,
        }
    }

    /// Some pages of every sort in both pools: a dense object, a thin one, lone pages.
    fn some(variant: Variant) -> Scene {
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
    fn hold(&mut self, key: Key) {
        assert!(self.try_hold(key), "the scene has room for {key:?}");
    }

    fn try_hold(&mut self, key: Key) -> bool {
        let page = page_of(key, OLD, self.size);
        let kept = support::stored(self.put(key, &page));
        if kept {
            self.held.insert(key, page);
        } else {
            self.held.remove(&key);
        }
        kept
    }

    fn put(&self, key: Key, page: &[u8]) -> tmem_core::Outcome {
        support::put(&self.pools[key.0], key.1, key.2, page)
    }

    fn flush(&mut self, key: Key) {
        self.pools[key.0].flush(&oid(key.1), &[key.2]).unwrap();
        self.held.remove(&key);
    }

    /// The operation puts a page here.
    fn brings(&mut self, key: Key, page: Vec<u8>, law: Law) {
        self.coming.insert(key, page);
        self.laws.insert(key, law);
    }

    /// The operation takes these pages.
    fn takes(&mut self, keys: impl IntoIterator<Item = Key>) {
        self.laws
            .extend(keys.into_iter().map(|key| (key, OLD_OR_GONE)));
    }

    /// What is there of a key; None on a miss.
    fn get(&self, key: Key) -> Option<Vec<u8>> {
        support::get(&self.pools[key.0], key.1, key.2)
    }

    /// Fill a pool until it gives no more.
    fn fill(&mut self, pool: usize, object: u64) {
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

    fn evicted(&self) -> u64 {
        stat(&self.store, "evicted_pages")
    }

    /// All that must hold after the operation was cut short.
    fn verify(&self, what: &str) {
        let faults = self.store.check().unwrap();
        assert!(faults.is_empty(), "{what}: {faults:#?}");
        let (used, memory) = (
            stat(&self.store, "used_bytes"),
            stat(&self.store, "memory_bytes"),
        );
        assert!(used <= memory, "{what}: {used} bytes used of {memory}");
        let allocated = self.store.allocated_bytes().unwrap();
        assert!(
            allocated <= used + (32 << 10),
            "{what}: {allocated} bytes are allocated, and {used} used"
        );
        for &key in self.held.keys().chain(self.coming.keys()) {
            self.verify_page(what, key);
        }
    }

    fn verify_page(&self, what: &str, key: Key) {
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
    fn verify_use(&self, what: &str) {
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
        assert_sound(&self.store);
    }
}

fn crashes(body: impl FnOnce()) -> bool {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(()) => false,
        Err(panic) if panic.is::<Crash>() => true,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Whether `body` was stopped before its `n`-th store.
fn stopped(n: u64, body: impl FnOnce()) -> bool {
    arm(n);
    let crashed = crashes(body);
    assert_ne!(disarm(), crashed);
    crashed
}

/// How many stores an operation makes; a few more or less from one run to the next, for hashes are seeded anew.
fn stores(prepare: &dyn Fn() -> Scene, act: &dyn Fn(&Scene)) -> u64 {
    let ends = |n: u64| {
        let scene = prepare();
        !stopped(n, || act(&scene))
    };
    let mut high = 64;
    while !ends(high) {
        high *= 2;
    }
    let mut low = 0;
    while low < high {
        let middle = (low + high) / 2;
        if ends(middle) {
            high = middle
        } else {
            low = middle + 1
        }
    }
    high
}

fn stops(total: u64) -> Vec<u64> {
    if total <= DENSE {
        return (0..=total).collect();
    }
    let (end, step) = (DENSE / 4, (total / (DENSE / 2)).max(1) | 1);
    let mut stops: Vec<u64> = (0..end)
        .chain((end..total - end).step_by(step as usize))
        .chain(total - end..=total)
        .collect();
    stops.dedup();
    stops
}

/// Stop the operation everywhere, and every other time stop its recovery too, twice. At last let it come to its end.
fn everywhere(name: &str, prepare: &dyn Fn() -> Scene, act: &dyn Fn(&Scene)) {
    let total = stores(prepare, act);
    for (round, n) in stops(total).into_iter().chain([1 << 30]).enumerate() {
        let scene = prepare();
        let what = format!("{name} stopped before store {n} of {total}");
        let crashed = stopped(n, || act(&scene));
        assert!(crashed || n > 0, "{what}: it stores nothing");
        if crashed && round % 2 == 1 {
            stop_recovery(&scene, round as u64);
        }
        scene.verify(&what);
        scene.verify_use(&what);
    }
}

/// The next user of the dirty shards dies too, and so does the one after it.
fn stop_recovery(scene: &Scene, round: u64) {
    for m in [round * 7 % 61 + round * 131 % 1700, round * 37 % 400] {
        stopped(m, || drop(scene.store.check().unwrap()));
    }
}

fn all_variants(name: &str, prepare: impl Fn(Variant) -> Scene, act: impl Fn(&Scene)) {
    for variant in VARIANTS {
        let name = format!("{name} on {variant:?}");
        everywhere(&name, &|| prepare(variant), &|scene| act(scene));
    }
}

/// Put everything that is coming, in the order of the keys.
fn put_coming(scene: &Scene) {
    let mut keys: Vec<Key> = scene.coming.keys().copied().collect();
    keys.sort_unstable();
    for key in keys {
        scene.put(key, &scene.coming[&key]);
    }
}

// --- put ---

fn put_new(key: Key, fill: Fill) -> impl Fn(Variant) -> Scene {
    move |variant| {
        let mut scene = Scene::some(variant);
        let page = filled(key, fill, scene.size);
        scene.brings(key, page, NEW_OR_NOT);
        scene
    }
}

#[test]
fn put_of_a_new_page() {
    all_variants(
        "put in a known cluster",
        put_new((0, 1, 200), Fill::Text),
        put_coming,
    );
    all_variants(
        "put of a new object",
        put_new((0, 77, 0), Fill::Rough),
        put_coming,
    );
}

#[test]
fn put_of_a_same_filled_page_and_of_one_kept_raw() {
    all_variants(
        "put same-filled",
        put_new((0, 10, 4), Fill::Same),
        put_coming,
    );
    all_variants("put raw", put_new((1, 10, 4), Fill::Noise), put_coming);
}

#[test]
fn put_over_an_older_page_has_no_moment_with_neither() {
    for (object, fill) in [
        (1, Fill::Text),
        (1, Fill::Noise),
        (2, Fill::Same),
        (12, Fill::Rough),
    ] {
        let prepare = |variant| {
            let mut scene = Scene::some(variant);
            let key = (0, object, if object == 12 { 3 } else { 0 });
            let page = filled(key, fill, scene.size);
            scene.brings(key, page, OLD_OR_NEW);
            scene
        };
        all_variants(
            &format!("replace in {object} by {fill:?}"),
            prepare,
            put_coming,
        );
    }
}

#[test]
fn put_of_a_batch() {
    let prepare = |variant| {
        let mut scene = Scene::some(variant);
        for index in 0..6 {
            let key = (0, 1, index);
            let page = filled(key, Fill::pick(u64::from(index)), scene.size);
            scene.brings(key, page, OLD_OR_NEW);
        }
        scene
    };
    all_variants("replace a batch", prepare, |scene| {
        let data: Vec<u8> = (0..6)
            .flat_map(|index| scene.coming[&(0, 1, index)].clone())
            .collect();
        scene.pools[0].put_range(&oid(1), 0, &data).unwrap();
    });
}

#[test]
fn put_of_lz4_blocks() {
    let block = |page: &[u8]| {
        let mut out = vec![0; page.len()];
        let encoded = tmem_core::Compressor::new().encode(LZ4, page, page.len(), &mut out);
        assert_eq!(encoded.form, tmem_core::Form::Lz4);
        out.truncate(encoded.len as usize);
        out
    };
    let prepare = |variant| {
        let mut scene = Scene::some(variant);
        for (key, law) in [((0, 1, 3), OLD_OR_NEW), ((0, 1, 300), NEW_OR_NOT)] {
            let page = filled(key, Fill::Text, scene.size);
            scene.brings(key, page, law);
        }
        scene
    };
    all_variants("put lz4 blocks", prepare, |scene| {
        for (key, page) in &scene.coming {
            scene.pools[0]
                .put_lz4(&oid(key.1), &[(key.2, &block(page))])
                .unwrap();
        }
    });
}

#[test]
fn put_refused_by_quota_freeze_or_poor_compression() {
    let bring = |scene: &mut Scene| {
        let (old, new) = ((0, 1, 0), (0, 5, 5));
        let pages = [
            filled(old, Fill::Noise, scene.size),
            filled(new, Fill::Noise, scene.size),
        ];
        let [over, fresh] = pages;
        scene.brings(old, over, ANY);
        scene.brings(new, fresh, NEW_OR_NOT);
    };
    all_variants(
        "quota",
        |variant| {
            let mut scene = Scene::some(variant);
            scene.pools[0].set_quota(4096).unwrap();
            bring(&mut scene);
            scene
        },
        put_coming,
    );
    all_variants(
        "frozen",
        |variant| {
            let mut scene = Scene::some(variant);
            scene.pools[0].freeze().unwrap();
            bring(&mut scene);
            scene
        },
        put_coming,
    );
    all_variants(
        "poor compression",
        |variant| {
            let mut scene = Scene::some(variant);
            let settings = PoolSettings {
                max_zpage: 1000,
                ..scene.pools[0].settings()
            };
            scene
                .pools
                .push(scene.store.pool("choosy", &settings).unwrap());
            let key = (2, 1, 0);
            let old = page(Fill::Same, number(key), OLD, scene.size);
            scene.put(key, &old);
            scene.held.insert(key, old);
            let over = filled(key, Fill::Noise, scene.size);
            scene.brings(key, over, OLD_OR_GONE);
            scene
        },
        put_coming,
    );
}

#[test]
fn put_that_evicts_ephemeral_pages() {
    for pool in [0, 1] {
        let prepare = |variant: Variant| {
            let mut scene = Scene::empty(
                variant,
                if variant.size == 4096 {
                    1 << 20
                } else {
                    2 << 20
                },
            );
            (0..3).for_each(|i| scene.hold((0, 1, i)));
            scene.fill(1, 7);
            scene.evicts = true;
            let key = (pool, 3, 1);
            let page = filled(key, Fill::Noise, scene.size);
            scene.brings(key, page, NEW_OR_NOT);
            scene
        };
        all_variants(
            &format!("put in pool {pool} of a full store"),
            prepare,
            put_coming,
        );
    }
}

#[test]
fn put_into_a_store_full_of_persistent_pages() {
    let prepare = |variant: Variant| {
        let mut scene = Scene::empty(
            variant,
            if variant.size == 4096 {
                1 << 20
            } else {
                2 << 20
            },
        );
        scene.fill(0, 7);
        let (new, old) = ((0, 3, 1), (0, 7, 2));
        assert!(scene.held.contains_key(&old));
        let pages = [
            filled(new, Fill::Noise, scene.size),
            filled(old, Fill::Noise, scene.size),
        ];
        let [fresh, over] = pages;
        scene.brings(new, fresh, NEW_OR_NOT);
        scene.brings(old, over, ANY);
        scene
    };
    all_variants("put when full", prepare, put_coming);
}

// --- get, flush ---

#[test]
fn flush_of_pages() {
    let prepare = |variant| {
        let mut scene = Scene::some(variant);
        scene.takes([(0, 1, 0), (0, 1, 5), (0, 1, 7), (0, 12, 3)]);
        scene
    };
    all_variants("flush", prepare, |scene| {
        scene.pools[0].flush(&oid(1), &[5, 0, 7, 4000]).unwrap();
        scene.pools[0].flush(&oid(12), &[3]).unwrap();
    });
}

#[test]
fn flush_of_an_object_dense_or_thin() {
    for object in [1, 2] {
        let prepare = |variant| {
            let mut scene = Scene::some(variant);
            let keys: Vec<Key> = scene
                .held
                .keys()
                .filter(|key| key.0 == 0 && key.1 == object)
                .copied()
                .collect();
            scene.takes(keys);
            scene
        };
        all_variants("flush object", prepare, |scene| {
            _ = scene.pools[0].flush_object(&oid(object)).unwrap()
        });
    }
}

#[test]
fn exclusive_get() {
    for pool in [0, 1] {
        let prepare = |variant| {
            let mut scene = Scene::some(variant);
            scene.takes([(pool, 1, 1), (pool, 1, 2)]);
            scene
        };
        all_variants("exclusive get", prepare, |scene| {
            let (mut a, mut b) = (vec![0; scene.size], vec![0; scene.size]);
            let got = scene.pools[pool]
                .get(&oid(1), &[2, 1], &mut [&mut a, &mut b], true)
                .unwrap();
            assert_eq!(got, [Fetch::Hit; 2]);
        });
    }
}

#[test]
fn get_that_only_marks_a_page_as_used() {
    all_variants("get", Scene::some, |scene| drop(scene.get((1, 1, 1))));
}

// --- upkeep ---

/// Zspages and zbud pages with holes, of some classes several.
fn riddled(variant: Variant) -> Scene {
    let mut scene = Scene::some(variant);
    let alike = |n: u32| (0, 300 + u64::from(n) / 64, n % 64);
    for n in 0..if variant.size == 4096 { 600 } else { 20 } {
        let (key, same) = (
            alike(n),
            page(Fill::Same, number(alike(n)), OLD, scene.size),
        );
        assert!(support::stored(scene.put(key, &same)));
        scene.held.insert(key, same);
    }
    let keys: Vec<Key> = scene
        .held
        .keys()
        .filter(|key| number(**key) % 5 < 3)
        .copied()
        .collect();
    keys.into_iter().for_each(|key| scene.flush(key));
    scene
}

#[test]
fn compaction() {
    all_variants("compact", riddled, |scene| {
        _ = scene.store.compact().unwrap()
    });
}

#[test]
fn relinquish() {
    let prepare = |variant| {
        let mut scene = Scene::some(variant);
        scene.evicts = true;
        scene
    };
    all_variants("relinquish", prepare, |scene| {
        _ = scene.store.relinquish(1 << 19).unwrap()
    });
}

#[test]
fn pool_create_with_its_first_page() {
    let act = |scene: &Scene| {
        let settings = PoolSettings {
            owner: "me".into(),
            ..persistent()
        };
        let pool = scene.store.pool("another", &settings).unwrap();
        pool.put(&oid(1), &[(0, &page(Fill::Text, 1, 1, 4096))])
            .unwrap();
        drop(
            scene
                .store
                .pool("ephemeral", &scene.pools[1].settings())
                .unwrap(),
        );
    };
    all_variants("create", Scene::some, act);
    let prepare = |variant| {
        let scene = Scene::some(variant);
        let gone = scene.store.pool("gone", &persistent()).unwrap();
        gone.put(&oid(1), &[(0, &page(Fill::Text, 1, 1, 4096))])
            .unwrap();
        gone.destroy().unwrap();
        scene
    };
    all_variants("create in a used place", prepare, act);
}

#[test]
fn freeze_and_thaw_and_settings() {
    all_variants("freeze", Scene::some, |scene| {
        scene.pools[1].freeze().unwrap();
        scene.pools[1].thaw().unwrap();
        scene.pools[0].set_quota(1 << 30).unwrap();
        scene.pools[0].set_weight(3).unwrap();
        scene.store.resize(7 << 20).unwrap();
    });
}

/// The pool is there with all its pages, or it is unknown and its pages are nobody's; after the next attach no memory is.
#[test]
fn destroy() {
    for (at, variant) in VARIANTS.into_iter().enumerate() {
        let file = Scratch::new(&format!("destroy{at}"));
        let prepare = || {
            let _ = std::fs::remove_file(&file.0);
            let mut scene = Scene::with(
                variant,
                StoreOptions {
                    memory: 6 << 20,
                    arena: Some(file.0.clone()),
                    ..StoreOptions::default()
                },
            );
            scene.pools.push(
                scene
                    .store
                    .pool("doomed", &scene.pools[0].settings())
                    .unwrap(),
            );
            (0..12).for_each(|i| scene.hold((2, 4, i * 40)));
            (0..12).for_each(|i| scene.hold((0, 4, i)));
            scene
        };
        let act = |scene: &Scene| _ = scene.pools[2].destroy().unwrap();
        let total = stores(&prepare, &act);
        for n in stops(total) {
            let what = format!("destroy on {variant:?} stopped before store {n} of {total}");
            let mut scene = prepare();
            stopped(n, || act(&scene));
            if scene.store.find_pool("doomed").unwrap().is_none() {
                scene.held.retain(|key, _| key.0 != 2);
                let error =
                    scene.pools[2].get(&oid(4), &[0], &mut [&mut vec![0; scene.size]], false);
                assert!(
                    matches!(error, Err(tmem_core::Error::UnknownPool(_))),
                    "{what}"
                );
            }
            scene.verify(&what);
            let Scene {
                store, pools, held, ..
            } = scene;
            drop((store, pools));
            let store = Store::attach(&file.0, false).unwrap();
            assert_sound(&store);
            assert_eq!(stat(&store, "pages"), held.len() as u64, "{what}");
            assert!(
                store.allocated_bytes().unwrap() <= stat(&store, "used_bytes") + (32 << 10),
                "{what}"
            );
        }
    }
}

// --- the index ---

/// Enough objects, one page each, that the next needs another bucket.
fn crowd(variant: Variant, count: u64) -> Scene {
    let mut scene = Scene::empty(variant, 6 << 20);
    let same = |key| page(Fill::Same, number(key), OLD, variant.size);
    for object in 0..count {
        let key = (0, 100 + object, 1);
        scene.put(key, &same(key));
        if object % 64 == 0 {
            scene.held.insert(key, same(key));
        }
    }
    scene
}

#[test]
fn index_that_splits_a_bucket() {
    let variant = VARIANTS[0];
    let prepare = || {
        let mut scene = crowd(variant, 1024);
        for object in 0..3 {
            let key = (0, 2000 + object, 1);
            let page = filled(key, Fill::Same, scene.size);
            scene.brings(key, page, NEW_OR_NOT);
        }
        scene
    };
    everywhere("split", &prepare, &put_coming);
}

#[test]
fn index_that_merges_buckets() {
    let prepare = || {
        let mut scene = crowd(VARIANTS[0], 1100);
        for object in (0..1100).filter(|object| object % 64 != 0).take(830) {
            scene.pools[0].flush_object(&oid(100 + object)).unwrap();
        }
        let key = (0, 100, 1);
        scene.takes([key, (0, 164, 1)]);
        let page = filled((0, 2000, 1), Fill::Same, scene.size);
        scene.brings((0, 2000, 1), page, NEW_OR_NOT);
        scene
    };
    everywhere("merge", &prepare, &|scene| {
        scene.pools[0].flush(&oid(100), &[1]).unwrap();
        put_coming(scene);
        scene.pools[0].flush(&oid(164), &[1]).unwrap();
    });
}

#[test]
fn index_node_that_grows_and_shrinks() {
    for had in [1, 2, 4, 8, 16, 32, 48] {
        let prepare = |variant| {
            let mut scene = Scene::empty(variant, 8 << 20);
            (0..had).for_each(|i| scene.hold((0, 1, i)));
            (0..had).for_each(|i| scene.hold((1, 9, i)));
            let key = (0, 1, 63);
            let page = filled(key, Fill::Text, scene.size);
            scene.brings(key, page, NEW_OR_NOT);
            scene.takes((0..had).map(|i| (1, 9, i)));
            scene
        };
        let variant = VARIANTS[if had < 32 { 0 } else { 1 }];
        everywhere(&format!("node of {had}"), &|| prepare(variant), &|scene| {
            put_coming(scene);
            let all: Vec<u32> = (0..had).collect();
            scene.pools[1].flush(&oid(9), &all).unwrap();
        });
    }
}

/// A private ephemeral pool's get takes the page with it: it may be gone, or still there, but nothing else.
#[test]
fn get_from_a_private_ephemeral_pool() {
    for variant in VARIANTS {
        let prepare = || {
            let mut scene = Scene::some(variant);
            let settings = PoolSettings {
                inclusive: false,
                ..scene.pools[1].settings()
            };
            assert_eq!(
                (settings.kind, settings.exclusive_get()),
                (Kind::Ephemeral, true)
            );
            scene
                .pools
                .push(scene.store.pool("private", &settings).unwrap());
            scene.hold((2, 1, 0));
            scene.takes([(2, 1, 0)]);
            scene
        };
        everywhere(&format!("private get on {variant:?}"), &prepare, &|scene| {
            drop(scene.get((2, 1, 0)))
        });
    }
}

/// A shard that waits to be rebuilt, or whose rebuild was cut short, still counts against the pool's quota.
#[test]
fn quota_holds_while_a_shard_is_not_yet_rebuilt() {
    const QUOTA: u64 = 40 * 4096;
    let fill = |pool: &Pool, objects: std::ops::Range<u64>| {
        for object in objects {
            support::put(pool, object, 0, &page(Fill::Noise, object, 1, 4096));
        }
    };
    for n in (0..400).step_by(3) {
        let store = support::store(8 << 20, 2);
        let pool = store
            .pool(
                "p",
                &PoolSettings {
                    quota: QUOTA,
                    ..persistent()
                },
            )
            .unwrap();
        fill(&pool, 0..38);
        stopped(25, || fill(&pool, 38..39));
        stopped(n, || drop(store.check().unwrap()));
        for object in 100..200 {
            // The rebuild is put off by stopping every user that comes upon the dirty shard.
            stopped(2, || fill(&pool, object..object + 1));
            crashes(|| fill(&pool, object..object + 1));
        }
        assert_sound(&store);
        let footprint = pool
            .stats()
            .unwrap()
            .fields()
            .iter()
            .find(|(name, _)| *name == "footprint_bytes")
            .unwrap()
            .1;
        assert!(
            footprint <= QUOTA,
            "{footprint} bytes of {QUOTA} after a rebuild stopped at {n}"
        );
    }
}

/// Fault 11. A put that had to evict without bound brought the machine to a standstill. The stores of one put are counted: however large
/// the store, and though every page in it was just used, they are no more than so many.
#[test]
fn fault_11_the_stores_of_one_put_are_bounded() {
    const MOST: u64 = 20_000;
    for memory in [2 << 20, 8 << 20, 64 << 20] {
        for allocator in [AllocatorKind::Zsmalloc, AllocatorKind::Zbud] {
            let store = support::store(memory, 1);
            let of = |settings| PoolSettings {
                allocator,
                ..settings
            };
            let pools = [
                store.pool("p", &of(persistent())).unwrap(),
                store.pool("e", &of(inclusive())).unwrap(),
            ];
            let same = page(Fill::Rough, 1, 1, 4096).repeat(64);
            let mut all = vec![0; 4096 * 64];
            for n in 0.. {
                pools[1].put_range(&oid(1), n * 64, &same).unwrap();
                pools[1]
                    .get_range(&oid(1), n * 64, &mut all, false)
                    .unwrap();
                if stat(&store, "evicted_pages") > 0 {
                    break;
                }
            }
            for i in 0..2_000 {
                for (pool, every) in [(&pools[0], 10), (&pools[1], 1)] {
                    let put = || {
                        _ = support::put(pool, 9, i * 64, &page(Fill::Noise, 2, u64::from(i), 4096))
                    };
                    let bounded = i % every != 0 || !stopped(MOST, put);
                    assert!(
                        bounded,
                        "a put into {memory} bytes of {allocator:?} stores more than {MOST} words"
                    );
                }
            }
            assert!(stat(&store, "evicted_pages") > 1_000);
            assert_sound(&store);
        }
    }
}

/// A frame keeps what was in it until it is written again. Bytes of a page that look like a slot, in a frame that another page is just
/// being put into, must not be taken for one.
#[test]
fn a_pages_bytes_never_pass_for_a_slot() {
    // Object 0, index 5, a valid same-filled page of zeros: on every 32nd byte.
    let state = 1 << 31 | 1 << 24 | 8;
    let words = [0, 5, tmem_core::checksum(&[0; 4096]), 1, state, 0, 0, 0];
    let forged: Vec<u8> = words
        .iter()
        .flat_map(|word: &u32| word.to_le_bytes())
        .collect();
    // Sizes that come to many classes: as much noise as that, and zeros.
    let sized = |i: u32| {
        let mut bytes = page(Fill::Noise, 1, u64::from(i), 4096);
        bytes[80 + 40 * i as usize..].fill(0);
        bytes
    };
    for variant in &VARIANTS[..2] {
        let prepare = || {
            let mut scene = Scene::empty(*variant, 64 << 20);
            scene.hold((0, 1, 0)); // the shard's object 0
            // Runs of every length, freed and kept in the reserve with what was in them.
            for (page_size, count) in [(65536, 2), (32768, 2), (16384, 2), (8192, 2), (4096, 4)] {
                let raw = PoolSettings {
                    codec: Codec::Raw,
                    page_size,
                    ..persistent()
                };
                let other = scene.store.pool(&format!("{page_size}"), &raw).unwrap();
                other
                    .put_range(&oid(1), 0, &forged.repeat(page_size as usize / 32 * count))
                    .unwrap();
                other.flush_object(&oid(1)).unwrap();
            }
            assert!(stat(&scene.store, "reserve_bytes") >= 60 * 4096);
            (100..160).for_each(|i| scene.brings((0, 1, i), sized(i - 100), NEW_OR_NOT));
            scene
        };
        let total = stores(&prepare, &put_coming);
        for n in (0..total).step_by(3) {
            let scene = prepare();
            stopped(n, || put_coming(&scene));
            let what = format!("forged bytes on {variant:?} stopped before store {n} of {total}");
            scene.verify(&what);
            assert_eq!(scene.get((0, 1, 5)), None, "{what}: a page that nobody put");
        }
    }
}
