//! The index as it grows and shrinks.

use crate::scene::*;
use crate::stopping::*;
use crate::support::{Fill, oid, page};

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
