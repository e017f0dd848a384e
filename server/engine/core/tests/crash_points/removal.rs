//! Flush and get, which take pages away or mark them.

use tmem_core::{Fetch, Kind, PoolSettings};

use crate::scene::*;
use crate::stopping::*;
use crate::support::oid;

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

/// A get whose pages go once they are acknowledged: fetched by stamp, then flushed by it.
#[test]
fn flush_of_what_was_fetched() {
    let prepare = |variant| {
        let mut scene = Scene::some(variant);
        scene.takes([(0, 1, 1), (0, 1, 2)]);
        scene
    };
    all_variants("flush if", prepare, |scene| {
        let pool = &scene.pools[0];
        let found = pool.fetch(&oid(1), &[2, 1], true).unwrap().pages;
        let stamps = [(2, found[0].seq), (1, found[1].seq)];
        assert_eq!(pool.flush_if(&oid(1), &stamps).unwrap(), 2);
    });
}

#[test]
fn get_that_only_marks_a_page_as_used() {
    all_variants("get", Scene::some, |scene| drop(scene.get((1, 1, 1))));
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
