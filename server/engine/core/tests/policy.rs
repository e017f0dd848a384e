//! Who gets memory, who gives way, and what is refused: quotas, the limit, weights, hysteresis, compaction, relinquish.

mod support;

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use support::{
    BEYOND, Fill, Finish, assert_sound, assert_sound_but, get, inclusive, oid, page, persistent,
    put, stat, store, stored, version,
};
use tmem_core::{AllocatorKind, Kind, Outcome, Pool, PoolSettings, Reason, Store};

/// Fault 1. zcache rewrote a page by creating the new one first: when that failed, the index was never touched and the old
/// page stayed readable. Xen answered "out of memory" before it looked the key up. A page refused is a page gone.
#[test]
fn fault_1_a_refused_duplicate_put_hides_the_older_page() {
    let noise = page(Fill::Noise, 1, 2, 4096);
    for settings in [persistent(), inclusive()] {
        let refuse = |reason: Reason, settings: &PoolSettings, spoil: &dyn Fn(&Store, &Pool)| {
            let store = store(2 << 20, 1);
            let pool = store.pool("p", settings).unwrap();
            // Not alone in its frame, so that its going makes no room for the new one.
            (0..100).for_each(|i| assert!(stored(put(&pool, 1, i, &page(Fill::Same, 1, 1, 4096)))));
            spoil(&store, &pool);
            let outcome = put(&pool, 1, 7, &noise);
            assert_eq!(
                outcome,
                Outcome::Refused {
                    reason,
                    old_flushed: true
                },
                "{settings:?}"
            );
            assert_eq!(get(&pool, 1, 7), None, "{reason:?}");
            assert_sound(&store);
        };
        refuse(Reason::Frozen, &settings, &|_, pool| pool.freeze().unwrap());
        refuse(
            Reason::PoorCompression,
            &PoolSettings {
                max_zpage: 100,
                ..settings.clone()
            },
            &|_, _| (),
        );
        if settings.kind == Kind::Persistent {
            refuse(Reason::Quota, &settings, &|_, pool| {
                pool.set_quota(1).unwrap()
            });
            refuse(Reason::Memory, &settings, &|_, pool| {
                fill(pool, Fill::Noise)
            });
        }
    }
}

/// To a block device a write that failed has changed nothing: of a batch each page is the old or the new one.
#[test]
fn a_page_that_is_replaced_or_kept_is_never_lost() {
    type Spoil = fn(&Pool);
    let spoils: [(Reason, u32, Spoil); 4] = [
        (Reason::Quota, 0, |pool| pool.set_quota(1).unwrap()),
        (Reason::Frozen, 0, |pool| pool.freeze().unwrap()),
        (Reason::PoorCompression, 100, |_| ()),
        (Reason::Memory, 0, |pool| fill(pool, Fill::Noise)),
    ];
    for (why, max_zpage, spoil) in spoils {
        let store = store(2 << 20, 1);
        let settings = PoolSettings {
            max_zpage,
            ..persistent()
        };
        let pool = store.pool("p", &settings).unwrap();
        (0..300).for_each(|i| assert!(stored(put(&pool, 1, i, &page(Fill::Same, 1, 1, 4096)))));
        spoil(&pool);
        let noise: Vec<u8> = (0..250)
            .flat_map(|_| page(Fill::Noise, 1, 2, 4096))
            .collect();
        let mut outcomes = Vec::new();
        pool.replace_pages(&oid(1), 20, &noise, &mut outcomes)
            .unwrap();
        assert!(outcomes.iter().any(|&outcome| !stored(outcome)), "{why:?}");
        for (index, outcome) in (20..).zip(outcomes) {
            let now = if stored(outcome) { 2 } else { 1 };
            assert_eq!(version(&pool, 1, index, 1), Some(now), "{why:?}");
            let old_flushed = false;
            let reason = why;
            let refused = Outcome::Refused {
                reason,
                old_flushed,
            };
            assert!(stored(outcome) || outcome == refused, "{outcome:?}");
        }
        assert_sound_but(&store, BEYOND);
    }
}

/// There is no room for a second copy of anything, and none is needed for long.
#[test]
fn a_full_store_can_be_written_over_without_losing_a_page() {
    for shards in [1, 4] {
        let store = store(8 << 20, shards);
        let pool = store.pool("p", &persistent()).unwrap();
        let noise = |index: u32, version| page(Fill::Noise, u64::from(index), version, 4096);
        let held = (0..).take_while(|&i| stored(put(&pool, 1, i, &noise(i, 1))));
        let held = held.count() as u32;
        for version in 2..5 {
            for index in 0..held {
                let mut outcomes = Vec::new();
                pool.replace_pages(&oid(1), index, &noise(index, version), &mut outcomes)
                    .unwrap();
                assert!(stored(outcomes[0]), "page {index} of {held}");
            }
        }
        for index in 0..held {
            assert_eq!(version(&pool, 1, index, u64::from(index)), Some(4));
        }
        assert_sound_but(&store, BEYOND);
    }
}

/// Put noise in an object of its own until some is refused.
fn fill(pool: &Pool, fill: Fill) {
    (0..)
        .take_while(|&i| {
            stored(put(
                pool,
                8,
                i,
                &page(fill, 3, u64::from(i), pool.page_size()),
            ))
        })
        .count();
}

/// Fault 7. "When full, reject": once full, zcache served what it had caught first, and runs were up to four times slower than
/// without it. A full ephemeral pool takes every new page, at the expense of others, in both allocators.
#[test]
fn fault_7_a_full_ephemeral_pool_still_takes_every_page() {
    for allocator in [AllocatorKind::Zsmalloc, AllocatorKind::Zbud] {
        let store = store(4 << 20, 1);
        let pool = store
            .pool(
                "p",
                &PoolSettings {
                    allocator,
                    ..inclusive()
                },
            )
            .unwrap();
        for i in 0..8_000 {
            let bytes = page(Fill::pick(u64::from(i)), 5, u64::from(i), 4096);
            assert!(
                stored(put(&pool, 1, i, &bytes)),
                "{allocator:?}: page {i} was refused"
            );
            if i % 2 == 0 {
                assert_eq!(get(&pool, 1, i), Some(bytes));
            }
        }
        assert!(stat(&store, "evicted_pages") > 1000);
        let causes = ["evicted_memory", "evicted_quota", "evicted_relinquish"];
        assert_eq!(
            causes.iter().map(|cause| stat(&store, cause)).sum::<u64>(),
            stat(&store, "evicted_pages")
        );
        assert_sound(&store);
    }
}

/// Fault 8. Evicting one object of a zspage frees no frame, and a drained store kept its frames, a page here and a page there.
/// Eviction goes by whole frames, and compaction gives back what draining left.
#[test]
fn fault_8_eviction_frees_frames_and_compaction_restores_density() {
    for (allocator, dense) in [(AllocatorKind::Zsmalloc, 90), (AllocatorKind::Zbud, 35)] {
        let store = store(64 << 20, 1);
        let settings = PoolSettings {
            allocator,
            ..persistent()
        };
        let pool = store.pool("p", &settings).unwrap();
        (0..6_000).for_each(|i| _ = put(&pool, 1, i, &page(Fill::Rough, 5, u64::from(i), 4096)));
        let flushed: Vec<u32> = (0..6_000).filter(|i| i % 10 < 7).collect();
        pool.flush(&oid(1), &flushed).unwrap();
        store.compact().unwrap();
        let density = stat(&store, "payload_bytes") * 100 / stat(&store, "used_bytes");
        assert!(
            density >= dense,
            "{allocator:?}: {density} % dense after draining"
        );
        assert_sound(&store);

        let victims = store
            .pool(
                "e",
                &PoolSettings {
                    allocator,
                    ..inclusive()
                },
            )
            .unwrap();
        (0..2_000).for_each(|i| _ = put(&victims, 1, i, &page(Fill::Text, 6, u64::from(i), 4096)));
        let before = store.allocated_bytes().unwrap();
        let given = store.relinquish(512 << 10).unwrap();
        assert!(
            given >= 512 << 10,
            "{allocator:?}: {given} bytes given back"
        );
        assert!(store.allocated_bytes().unwrap() <= before - (512 << 10));
        assert!(stat(&store, "evicted_frames") > 0);
    }
}

fn pool_stat(pool: &Pool, name: &str) -> u64 {
    let fields = pool.stats().unwrap().fields();
    fields
        .into_iter()
        .find(|(n, _)| *n == name)
        .expect("a known name")
        .1
}

fn footprint(pool: &Pool) -> u64 {
    pool_stat(pool, "footprint_bytes")
}

/// Fault 9. Xen stored a client's cap and never looked at it again. The footprint of a pool never exceeds its quota, whoever puts,
/// and what is refused is refused for that reason.
#[test]
fn fault_9_a_quota_is_exact_across_threads() {
    const QUOTA: u64 = 100 * 4096;
    for settings in [
        persistent(),
        PoolSettings {
            allocator: AllocatorKind::Zbud,
            ..persistent()
        },
        inclusive(),
    ] {
        let store = store(16 << 20, 4);
        let pool = store
            .pool(
                "p",
                &PoolSettings {
                    quota: QUOTA,
                    ..settings
                },
            )
            .unwrap();
        std::thread::scope(|scope| {
            for me in 0..4 {
                let pool = &pool;
                scope.spawn(move || {
                    for i in 0..1500 {
                        let outcome = put(
                            pool,
                            me,
                            i,
                            &page(Fill::pick(u64::from(i)), 1, u64::from(i), 4096),
                        );
                        assert!(
                            stored(outcome)
                                || matches!(
                                    outcome,
                                    Outcome::Refused {
                                        reason: Reason::Quota,
                                        ..
                                    }
                                )
                        );
                    }
                });
            }
        });
        let footprint = footprint(&pool);
        assert!(footprint <= QUOTA, "{footprint} bytes of {QUOTA}");
        assert!(
            footprint > QUOTA / 2,
            "{footprint} bytes of {QUOTA}: refused long before the quota"
        );
        assert_sound(&store);
    }
}

/// Fault 9, its other half: the over-weight test was the wrong way round, so that the modest pool paid. The pool with the most
/// memory for its weight gives way.
#[test]
fn fault_9_the_pool_most_over_its_weight_gives_way() {
    for allocator in [AllocatorKind::Zsmalloc, AllocatorKind::Zbud] {
        let store = store(8 << 20, 1);
        let pool = |name: &str, weight| {
            store
                .pool(
                    name,
                    &PoolSettings {
                        weight,
                        allocator,
                        ..inclusive()
                    },
                )
                .unwrap()
        };
        let (heavy, light) = (pool("weight 3", 3), pool("weight 1", 1));
        for i in 0..6_000 {
            put(&heavy, 1, i, &page(Fill::Noise, 1, u64::from(i), 4096));
            put(&light, 1, i, &page(Fill::Noise, 2, u64::from(i), 4096));
        }
        let (three, one) = (footprint(&heavy), footprint(&light));
        assert!(
            three > one * 5 / 2 && three < one * 7 / 2,
            "{three} to {one} bytes, and the weights are 3 to 1"
        );
    }
}

/// Fault 11. One put could have to evict without end, and the machine stood still. However large the store, one put evicts the pages of a
/// bounded number of zspages.
#[test]
fn fault_11_one_put_evicts_a_bounded_number_of_pages() {
    for (memory, shards) in [(2 << 20, 1), (32 << 20, 1), (32 << 20, 4)] {
        let store = store(memory, shards);
        let pool = store
            .pool(
                "p",
                &PoolSettings {
                    allocator: AllocatorKind::Zsmalloc,
                    ..inclusive()
                },
            )
            .unwrap();
        let mut i = 0;
        while stat(&store, "evicted_pages") == 0 {
            let first = i;
            let data: Vec<u8> = (first..first + 64)
                .flat_map(|i| page(Fill::Text, 1, u64::from(i), 4096))
                .collect();
            pool.put_range(&oid(1), first, &data).unwrap();
            i += 64;
        }
        // All used: eviction must give every page its second chance first.
        let mut all = vec![0; 4096 * 64];
        (0..i / 64).for_each(|n| _ = pool.get_range(&oid(1), n * 64, &mut all, false).unwrap());
        for i in 0..3_000 {
            let before = pool_stat(&pool, "evicted_pages");
            put(&pool, 2, i * 64, &page(Fill::Noise, 2, u64::from(i), 4096));
            let evicted = pool_stat(&pool, "evicted_pages") - before;
            assert!(
                evicted <= 2048,
                "one put evicted {evicted} pages of a store of {memory} bytes"
            );
        }
        assert!(pool_stat(&pool, "evicted_pages") > 3_000);
        assert_sound(&store);
    }
}

#[test]
fn memory_is_never_exceeded_by_puts_that_race() {
    const MEMORY: u64 = 3 << 20;
    for shards in [1, 4] {
        let store = store(MEMORY, shards);
        let pools = [
            store
                .pool(
                    "p",
                    &PoolSettings {
                        quota: 1 << 20,
                        ..persistent()
                    },
                )
                .unwrap(),
            store.pool("e", &inclusive()).unwrap(),
            store
                .pool(
                    "x",
                    &PoolSettings {
                        page_size: 262144,
                        ..inclusive()
                    },
                )
                .unwrap(),
        ];
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _over = Finish(&done);
            let workers: Vec<_> = (0..3)
                .map(|me: usize| {
                    let pool = &pools[me];
                    scope.spawn(move || {
                        for i in 0..if me == 2 { 400 } else { 4_000 } {
                            put(
                                pool,
                                u64::from(i % 50),
                                i,
                                &page(Fill::pick(u64::from(i)), 1, u64::from(i), pool.page_size()),
                            );
                        }
                    })
                })
                .collect();
            let (store, done) = (&store, &done);
            scope.spawn(move || {
                while !done.load(SeqCst) {
                    let allocated = store.allocated_bytes().unwrap();
                    assert!(
                        allocated <= MEMORY,
                        "{allocated} bytes are allocated of {MEMORY}"
                    );
                }
            });
            workers
                .into_iter()
                .for_each(|worker| worker.join().unwrap());
        });
        assert_sound(&store);
    }
}

/// Ephemeral pages give way to persistent ones to the last, in whatever the memory is needed for, pages or index.
#[test]
fn ephemeral_pages_give_way_to_persistent_ones() {
    for shards in [1, 4] {
        for (allocator, fill) in [
            (AllocatorKind::Zsmalloc, Fill::Noise),
            (AllocatorKind::Zsmalloc, Fill::Same),
            (AllocatorKind::Zbud, Fill::Text),
        ] {
            let store = store(4 << 20, shards);
            let of = |settings| PoolSettings {
                allocator,
                ..settings
            };
            let (ephemeral, kept) = (
                store.pool("e", &of(inclusive())).unwrap(),
                store.pool("p", &of(persistent())).unwrap(),
            );
            (0..3_000)
                .for_each(|i| _ = put(&ephemeral, 1, i, &page(Fill::Rough, 1, u64::from(i), 4096)));
            let refused = (0..200_000u32).find(|&i| {
                // One page an object: the index needs the most.
                !stored(put(
                    &kept,
                    u64::from(i),
                    i,
                    &page(fill, 2, u64::from(i), 4096),
                ))
            });
            let left = footprint(&ephemeral);
            assert!(
                refused.is_some() && left <= 64 << 10,
                "{allocator:?} {fill:?}: page {refused:?} was refused beside {left} ephemeral bytes {:?}",
                store.stats().unwrap().fields()
            );
            assert_sound(&store);
        }
    }
}

#[test]
fn persistent_pages_never_give_way() {
    let store = store(4 << 20, 2);
    let (kept, ephemeral) = (
        store.pool("p", &persistent()).unwrap(),
        store.pool("e", &inclusive()).unwrap(),
    );
    let held: Vec<u32> = (0..500)
        .filter(|&i| {
            stored(put(
                &kept,
                1,
                i,
                &page(Fill::pick(u64::from(i)), 2, u64::from(i), 4096),
            ))
        })
        .collect();
    for i in 0..5_000 {
        put(&ephemeral, 1, i, &page(Fill::Noise, 1, u64::from(i), 4096));
    }
    store.relinquish(1 << 30).unwrap();
    for i in held {
        assert_eq!(version(&kept, 1, i, 2), Some(u64::from(i)));
    }
    assert_eq!(footprint(&ephemeral), 0);
    assert_sound(&store);
}

/// Persistent pages in the middle of the address space do not hide the ephemeral ones behind them.
#[test]
fn ephemeral_pages_are_found_behind_many_persistent_ones() {
    let store = store(256 << 20, 1);
    let (kept, ephemeral) = (
        store.pool("p", &persistent()).unwrap(),
        store.pool("e", &inclusive()).unwrap(),
    );
    let noise = page(Fill::Noise, 1, 1, 4096);
    let many = |pool: &Pool, object: u64, count: u32| {
        let data: Vec<u8> = noise.repeat(64);
        (0..count / 64)
            .map(|n| {
                pool.put_range(&oid(object), n * 64, &data)
                    .unwrap()
                    .into_iter()
                    .filter(|o| stored(*o))
                    .count()
            })
            .sum::<usize>()
    };
    many(&ephemeral, 1, 64);
    many(&kept, 1, 60_000);
    many(&ephemeral, 2, 12_800); // the rest of the memory, and beyond
    let mut put_after = 0;
    while footprint(&ephemeral) > 1 << 20 {
        assert!(
            stored(put(&kept, 2, put_after, &noise)),
            "page {put_after} was refused beside {} ephemeral bytes",
            footprint(&ephemeral)
        );
        put_after += 1;
    }
}

/// A pool at its quota makes room among its own pages, wherever they are.
#[test]
fn an_ephemeral_pool_at_its_quota_takes_pages_in_every_shard() {
    let store = store(32 << 20, 8);
    let pool = store
        .pool(
            "p",
            &PoolSettings {
                quota: 64 * 4096,
                ..inclusive()
            },
        )
        .unwrap();
    let noise = |i: u32| page(Fill::Noise, 1, u64::from(i), 4096);
    // One cluster, so one shard has it all.
    (0..60).for_each(|i| assert!(stored(put(&pool, 0, i, &noise(i)))));
    for i in 1..2_000 {
        assert!(
            stored(put(&pool, u64::from(i), 0, &noise(i))),
            "page {i} was refused"
        );
    }
    assert!(footprint(&pool) <= 64 * 4096);
}

#[test]
fn a_full_store_accepts_again_below_the_threshold_only() {
    let store = store(4 << 20, 1);
    let pool = store.pool("p", &persistent()).unwrap();
    let noise = |i: u32| page(Fill::Noise, 1, u64::from(i), 4096);
    let count = (0..)
        .take_while(|&i| stored(put(&pool, 1, i, &noise(i))))
        .count() as u32;
    assert_eq!(stat(&store, "full"), 1);
    let percent = || stat(&store, "used_bytes") * 100 / stat(&store, "memory_bytes");
    let mut flushed = 0;
    while percent() >= 91 {
        pool.flush(&oid(1), &[flushed]).unwrap();
        flushed += 1;
        let refused = Outcome::Refused {
            reason: Reason::Memory,
            old_flushed: false,
        };
        if percent() >= 90 {
            assert_eq!(put(&pool, 2, 0, &noise(0)), refused, "at {} %", percent());
        }
        assert_eq!(
            put(&pool, 1, count - 1, &noise(9)),
            Outcome::Stored { replaced: true },
            "a page that is there may be replaced"
        );
    }
    while percent() >= 90 {
        pool.flush(&oid(1), &[flushed]).unwrap();
        flushed += 1;
    }
    assert!(stored(put(&pool, 2, 0, &noise(0))));
    assert_eq!(stat(&store, "full"), 0);
}

/// Ephemeral pages that took what persistent ones left do not keep the store "full": they give way, so they do not count.
#[test]
fn a_store_full_of_ephemeral_pages_is_not_full() {
    let store = store(4 << 20, 1);
    let (kept, ephemeral) = (
        store.pool("p", &persistent()).unwrap(),
        store.pool("e", &inclusive()).unwrap(),
    );
    fill(&kept, Fill::Noise);
    // Page by page, so that use never falls below the threshold.
    for i in 0..400 {
        kept.flush(&oid(8), &[i]).unwrap();
        put(&ephemeral, 1, i, &page(Fill::Noise, 4, u64::from(i), 4096));
    }
    assert!(footprint(&ephemeral) > 1 << 20);
    assert!(stored(put(&kept, 2, 0, &page(Fill::Noise, 5, 1, 4096))));
    assert_sound(&store);
}

#[test]
fn relinquish_gives_back_what_was_asked_and_only_ephemeral_pages() {
    let store = store(16 << 20, 4);
    let (kept, ephemeral) = (
        store.pool("p", &persistent()).unwrap(),
        store.pool("e", &inclusive()).unwrap(),
    );
    for i in 0..1_000 {
        put(&kept, 1, i, &page(Fill::Text, 1, u64::from(i), 4096));
        put(&ephemeral, 1, i, &page(Fill::Noise, 2, u64::from(i), 4096));
    }
    let used = stat(&store, "used_bytes");
    let given = store.relinquish(1 << 20).unwrap();
    assert!(
        (1 << 20..2 << 20).contains(&given),
        "{given} bytes given back"
    );
    assert_eq!(stat(&store, "used_bytes"), used - given);
    assert_eq!(
        stat(&store, "evicted_relinquish"),
        stat(&store, "evicted_pages")
    );
    assert!(footprint(&ephemeral) > 1 << 20);
    assert!((0..1_000).all(|i| version(&kept, 1, i, 1) == Some(u64::from(i))));
}
