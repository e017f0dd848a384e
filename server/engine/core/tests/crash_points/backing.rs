//! Operations on a pool whose reserve is committed ahead: what is promised is kept, wherever they are cut short.

use crate::scene::*;
use crate::stopping::*;
use crate::support::{Fill, oid};

const RESERVE: u64 = 2 << 20;

fn backed(variant: Variant) -> Scene {
    let mut scene = Scene::empty(variant, 12 << 20);
    scene.store.commit_reserves(true).unwrap();
    scene.pools[0].set_reserve(RESERVE).unwrap();
    let dense = if variant.size == 4096 { 70 } else { 9 };
    (0..dense).for_each(|i| scene.hold((0, 1, i)));
    (0..5).for_each(|i| scene.hold((0, 2, 1000 * i)));
    scene
}

/// Runs are taken from those kept, and exchanged for those kept.
#[test]
fn puts_into_a_reserve() {
    let prepare = |variant| {
        let mut scene = backed(variant);
        for (i, fill) in [Fill::Text, Fill::Noise, Fill::Rough]
            .into_iter()
            .enumerate()
        {
            let (old, new) = ((0, 1, i as u32), (0, 20, i as u32));
            scene.brings(old, filled(old, fill, scene.size), OLD_OR_NEW);
            scene.brings(new, filled(new, fill, scene.size), NEW_OR_NOT);
        }
        scene
    };
    all_variants("put into a reserve", prepare, put_coming);
}

/// Runs are kept as they become free.
#[test]
fn flushes_from_a_reserve() {
    let prepare = |variant| {
        let mut scene = backed(variant);
        let keys: Vec<Key> = scene.held.keys().copied().collect();
        scene.takes(keys.into_iter().filter(|key| key.1 == 1));
        scene
    };
    all_variants("flush from a reserve", prepare, |scene| {
        _ = scene.pools[0].flush_object(&oid(1)).unwrap()
    });
}

#[test]
fn compaction_of_a_reserve() {
    let prepare = |variant| {
        let mut scene = backed(variant);
        let keys: Vec<Key> = scene.held.keys().copied().collect();
        let thinned = keys.into_iter().filter(|key| key.1 == 1 && key.2 % 3 > 0);
        thinned.for_each(|key| scene.flush(key));
        scene
    };
    all_variants("compact a reserve", prepare, |scene| {
        _ = scene.store.compact().unwrap()
    });
}
