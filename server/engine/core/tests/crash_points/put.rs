//! Put: new, over an older page, refused, with eviction, when full.

use tmem_core::{Codec, Pool, PoolSettings};

use crate::scene::*;
use crate::stopping::*;
use crate::support::{BEYOND, Fill, oid, page, persistent, stat};

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
fn put_of_blocks_alone_and_packed_with_pages() {
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
    all_variants("packed put", prepare, |scene| {
        let (a, b) = ((0, 1, 3), (0, 1, 300));
        let (block, page) = (block(&scene.coming[&a]), &scene.coming[&b]);
        let batch = [(a.2, &block[..]), (b.2, &page[..])];
        scene.pools[0].put_packed(&oid(1), &batch).unwrap();
    });
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

/// Stored, or refused for whatever reason: an older page that is to be replaced or kept is there, or the new one is.
#[test]
fn replace_or_keep_has_no_moment_with_neither() {
    let act = |scene: &Scene| {
        for (key, page) in &scene.coming {
            let pool = &scene.pools[key.0];
            pool.replace_pages(&oid(key.1), key.2, page, &mut Vec::new())
                .unwrap();
        }
    };
    type Refuse = fn(&Pool);
    let refusals: [(&str, Refuse); 2] = [
        ("quota", |pool| pool.set_quota(4096).unwrap()),
        ("freeze", |pool| pool.freeze().unwrap()),
    ];
    for (name, refuse) in refusals {
        let prepare = |variant| {
            let mut scene = Scene::some(variant);
            refuse(&scene.pools[0]);
            let key = (0, 1, 0);
            let page = filled(key, Fill::Noise, scene.size);
            scene.brings(key, page, OLD_OR_NEW);
            scene
        };
        all_variants(&format!("replace or keep by {name}"), prepare, act);
    }
    let full = |variant: Variant| {
        let large = u64::from(variant.size > 4096);
        let mut scene = Scene::empty(variant, (1 + large) << 20);
        scene.fill(0, 7);
        scene.beyond = BEYOND;
        let key = (0, 7, 2);
        assert!(scene.held.contains_key(&key));
        let page = filled(key, Fill::Noise, scene.size);
        scene.brings(key, page, OLD_OR_NEW);
        scene
    };
    all_variants("replace or keep when full", full, act);
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
            for (page_size, count) in [
                (262144, 1),
                (131072, 1),
                (65536, 2),
                (32768, 2),
                (16384, 2),
                (8192, 2),
                (4096, 4),
            ] {
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
