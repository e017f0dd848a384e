//! Compaction, relinquish, pools made and destroyed, quotas while a shard waits to be rebuilt.

use tmem_core::{AllocatorKind, Pool, PoolSettings, Store, StoreOptions};

use crate::scene::*;
use crate::stopping::*;
use crate::support::{self, Fill, Scratch, assert_sound, inclusive, oid, page, persistent, stat};

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
