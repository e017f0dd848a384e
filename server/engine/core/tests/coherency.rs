//! Many threads on one store see what the law allows and nothing else.
//!
//! Every page has a version, every key one writer. What a writer began and what was acknowledged stands on a board, so that
//! any reader can tell an older page from a newer. Each fault of the ancestors that concerns the engine has a test of
//! its own here, which tells its story; the count of stores that bounds a put (fault 11) is taken in `crash_points.rs`,
//! and the same rules between processes are those of `processes.rs`.

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use support::{
    Fill, Finish, Random, assert_sound, get, inclusive, oid, page, persistent, put, stat, store,
    stored, version,
};
use tmem_core::{AllocatorKind, Error, Kind, Outcome, Pool, PoolSettings, Reason, Store};

const KEYS: u64 = 96;

/// Versions begun and acknowledged, by key.
struct Board {
    begun: Vec<AtomicU64>,
    acked: Vec<AtomicU64>,
}

impl Board {
    fn new() -> Board {
        let zeros = || (0..KEYS).map(|_| AtomicU64::new(0)).collect();
        Board {
            begun: zeros(),
            acked: zeros(),
        }
    }

    /// Put the key's next version; what became of it.
    fn put(&self, pool: &Pool, key: u64, fill: Fill) -> Outcome {
        let version = self.begun[key as usize].fetch_add(1, SeqCst) + 1;
        let outcome = put(
            pool,
            object(key),
            index(key),
            &page(fill, key, version, pool.page_size()),
        );
        if stored(outcome) {
            self.acked[key as usize].store(version, SeqCst);
        }
        outcome
    }

    /// Get a key: nothing older than was acknowledged before, nothing newer than was begun since.
    fn get(&self, pool: &Pool, key: u64) -> Option<u64> {
        let floor = self.acked[key as usize].load(SeqCst);
        let seen = version(pool, object(key), index(key), key);
        let ceiling = self.begun[key as usize].load(SeqCst);
        if let Some(seen) = seen {
            assert!(
                (floor..=ceiling).contains(&seen),
                "key {key}: version {seen} after {floor} was acknowledged"
            );
        }
        seen
    }
}

/// Three objects, each in several clusters.
fn object(key: u64) -> u64 {
    key % 3
}

fn index(key: u64) -> u32 {
    (key as u32 / 3) * 17
}

const SORTS: [(Kind, AllocatorKind, u32); 6] = [
    (Kind::Persistent, AllocatorKind::Zsmalloc, 1),
    (Kind::Persistent, AllocatorKind::Zbud, 4),
    (Kind::Ephemeral, AllocatorKind::Zsmalloc, 1),
    (Kind::Ephemeral, AllocatorKind::Zsmalloc, 4),
    (Kind::Ephemeral, AllocatorKind::Zbud, 1),
    (Kind::Ephemeral, AllocatorKind::Zbud, 4),
];

/// Two writers, two readers and one who tidies up and, with a full store, makes others give way.
fn race(kind: Kind, allocator: AllocatorKind, shards: u32, memory: u64, rounds: u64) {
    let store = store(memory, shards);
    let settings = PoolSettings {
        allocator,
        inclusive: kind == Kind::Ephemeral,
        ..PoolSettings::new(kind)
    };
    let pool = store.pool("race", &settings).unwrap();
    let (board, done) = (Board::new(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..2)
            .map(|me| scope.spawn(move_writer(&pool, &board, me, rounds)))
            .collect();
        for seed in 10..12 {
            let (pool, board, done) = (&pool, &board, &done);
            scope.spawn(move || reader(pool, board, done, seed));
        }
        let (store, done, seed) = (&store, &done, kind as u64);
        let tidy = scope.spawn(move || tidy(store, done, seed));
        let over = Finish(done);
        writers
            .into_iter()
            .for_each(|writer| writer.join().unwrap());
        drop(over);
        tidy.join().unwrap();
    });
    assert_sound(&store);
    for key in 0..KEYS {
        let acked = board.acked[key as usize].load(SeqCst);
        let held = board.get(&pool, key);
        assert!(
            kind == Kind::Ephemeral || held == (acked > 0).then_some(acked),
            "key {key} is {held:?}, not {acked}"
        );
    }
}

fn move_writer<'a>(
    pool: &'a Pool,
    board: &'a Board,
    me: u64,
    rounds: u64,
) -> impl FnOnce() + Send + 'a {
    move || {
        let mut random = Random::new(me + 1);
        for _ in 0..rounds {
            let key = random.below(KEYS / 2) * 2 + me;
            match board.put(pool, key, Fill::pick(random.word())) {
                Outcome::Stored { .. } => {}
                Outcome::Refused { .. } => {
                    assert_eq!(
                        version(pool, object(key), index(key), key),
                        None,
                        "a refused put left key {key}"
                    );
                    board.acked[key as usize].store(0, SeqCst);
                }
            }
        }
    }
}

fn reader(pool: &Pool, board: &Board, done: &AtomicBool, seed: u64) {
    let mut random = Random::new(seed);
    while !done.load(SeqCst) {
        let key = random.below(KEYS);
        let floor = board.acked[key as usize].load(SeqCst);
        if board.get(pool, key).is_none()
            && let Some(seen) = board.get(pool, key)
        {
            assert!(
                seen > floor,
                "key {key}: version {seen} came back after a miss"
            );
        }
    }
}

fn tidy(store: &Store, done: &AtomicBool, seed: u64) {
    let filler = store
        .pool("filler", &PoolSettings::new(Kind::Ephemeral))
        .unwrap();
    let mut random = Random::new(seed + 77);
    while !done.load(SeqCst) {
        for _ in 0..20 {
            let index = random.below(1 << 20) as u32;
            put(
                &filler,
                9,
                index,
                &page(Fill::Noise, 1, u64::from(index), 4096),
            );
        }
        match random.below(4) {
            0 => _ = store.compact().unwrap(),
            1 => _ = store.relinquish(64 << 10).unwrap(),
            _ => {}
        }
    }
}

#[test]
fn after_an_acknowledged_put_no_get_is_older() {
    SORTS
        .into_iter()
        .for_each(|(kind, allocator, shards)| race(kind, allocator, shards, 16 << 20, 15_000));
}

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

/// Fault 2. With `make -j28` zcache's cleancache returned other pages' bytes: its reclaim ran against puts and gets, and a page
/// was freed under a reader. Here everything competes for less memory than the keys need.
#[test]
fn fault_2_eviction_against_puts_and_gets_corrupts_nothing() {
    for (kind, allocator, shards) in SORTS {
        race(kind, allocator, shards, 1 << 20, 6_000);
    }
}

/// Fault 5. In RAMster a flush that raced a put left an orphan on the server, a failed put leaked for ever, and a destroyed pool
/// had nobody to drop its pages. After any race, flushing leaves nothing behind, in pages or in memory.
#[test]
fn fault_5_a_flush_racing_a_put_leaves_no_orphan() {
    let store = store(8 << 20, 2);
    let pool = store.pool("p", &persistent()).unwrap();
    let board = Board::new();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _over = Finish(&done);
        let (pool, board, done) = (&pool, &board, &done);
        let writers: Vec<_> = (0..2)
            .map(|me| scope.spawn(move_writer_unflushed(pool, board, me)))
            .collect();
        scope.spawn(move || {
            while !done.load(SeqCst) {
                for object in 0..3 {
                    flush_object_is_complete(pool, board, object);
                }
            }
        });
        writers
            .into_iter()
            .for_each(|writer| writer.join().unwrap());
    });
    assert_sound(&store);
    let empty = stat(&store, "footprint_bytes");
    (0..3).for_each(|object| _ = pool.flush_object(&oid(object)).unwrap());
    assert_eq!(
        (stat(&store, "pages"), stat(&store, "objects")),
        (0, 0),
        "of {empty} bytes"
    );
    assert_eq!(stat(&store, "footprint_bytes"), 0);
    pool.destroy().unwrap();
    store.compact().unwrap();
    assert_sound(&store);
    let slack = stat(&store, "used_bytes") - stat(&store, "table_bytes");
    assert_eq!(slack, 0, "a destroyed pool leaves no frames in use");
}

fn move_writer_unflushed<'a>(
    pool: &'a Pool,
    board: &'a Board,
    me: u64,
) -> impl FnOnce() + Send + 'a {
    move || {
        let mut random = Random::new(me + 31);
        for _ in 0..20_000 {
            let key = random.below(KEYS / 2) * 2 + me;
            assert!(stored(board.put(pool, key, Fill::pick(random.word()))));
        }
    }
}

/// What was acknowledged before the flush began is gone when it returns.
fn flush_object_is_complete(pool: &Pool, board: &Board, of: u64) {
    let before: Vec<u64> = board.acked.iter().map(|acked| acked.load(SeqCst)).collect();
    pool.flush_object(&oid(of)).unwrap();
    for key in (0..KEYS).filter(|&key| object(key) == of) {
        if let Some(seen) = version(pool, object(key), index(key), key) {
            assert!(
                seen > before[key as usize],
                "key {key}: version {seen} outlived the flush of its object"
            );
        }
    }
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

// --- memory ---

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
                        page_size: 65536,
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

// --- hysteresis, relinquish ---

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

// --- freeze, destroy ---

/// When `freeze` has returned no put is stored, and none that began before is still on its way.
#[test]
fn freeze_is_a_barrier() {
    let store = store(16 << 20, 4);
    let pool = store.pool("p", &persistent()).unwrap();
    let board = Board::new();
    let (frozen, stop, tried) = (
        AtomicBool::new(false),
        AtomicBool::new(false),
        AtomicU64::new(0),
    );
    std::thread::scope(|scope| {
        let _over = Finish(&stop);
        for me in 0..2 {
            let (pool, board, frozen, stop, tried) = (&pool, &board, &frozen, &stop, &tried);
            scope.spawn(move || {
                let mut random = Random::new(me);
                while !stop.load(SeqCst) {
                    let late = frozen.load(SeqCst);
                    let outcome = board.put(pool, random.below(KEYS / 2) * 2 + me, Fill::Text);
                    assert!(
                        !late
                            || matches!(
                                outcome,
                                Outcome::Refused {
                                    reason: Reason::Frozen,
                                    ..
                                }
                            )
                            || !frozen.load(SeqCst)
                    );
                    tried.fetch_add(1, SeqCst);
                }
            });
        }
        for _ in 0..200 {
            pool.freeze().unwrap();
            frozen.store(true, SeqCst);
            let versions = || {
                (0..KEYS)
                    .map(|key| version(&pool, object(key), index(key), key))
                    .collect::<Vec<_>>()
            };
            let before = versions();
            let more = tried.load(SeqCst) + 20;
            while tried.load(SeqCst) < more {
                std::thread::yield_now();
            }
            for (key, (now, then)) in versions().into_iter().zip(before).enumerate() {
                assert!(
                    now.is_none() || now == then,
                    "key {key} went from {then:?} to {now:?} in a frozen pool"
                );
            }
            frozen.store(false, SeqCst);
            pool.thaw().unwrap();
        }
    });
    assert_sound(&store);
}

/// Destroying a pool that others are putting to leaves nothing of it, and a new one of its name starts empty.
#[test]
fn destroy_races_puts_and_leaves_nothing() {
    let store = store(16 << 20, 4);
    for round in 0..60 {
        let pool = store.pool("p", &persistent()).unwrap();
        let begun = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for me in 0..2 {
                let (old, begun) = (pool.clone(), &begun);
                scope.spawn(move || {
                    for i in 0.. {
                        match old.put(&oid(me), &[(i, &page(Fill::Text, 1, u64::from(i), 4096))]) {
                            Ok(outcomes) => assert!(stored(outcomes[0])),
                            Err(Error::UnknownPool(_)) => break,
                            Err(error) => panic!("{error}"),
                        }
                        begun.fetch_add(1, SeqCst);
                    }
                });
            }
            while begun.load(SeqCst) < 50 {
                std::thread::yield_now();
            }
            pool.destroy().unwrap();
            let new = store.pool("p", &persistent()).unwrap();
            assert!(
                (0..2).all(|me| (0..200).all(|i| get(&new, me, i).is_none())),
                "round {round}"
            );
            assert!(stored(put(&new, 5, 5, &page(Fill::Text, 9, 9, 4096))));
            assert!(matches!(
                pool.flush_object(&oid(5)),
                Err(Error::UnknownPool(_))
            ));
            assert_eq!(version(&new, 5, 5, 9), Some(9));
            new.destroy().unwrap();
        });
        assert_eq!(stat(&store, "pages"), 0);
        assert_sound(&store);
    }
}

/// However many pages an object has, near each other or far apart, flushing it takes them all and nobody else's.
#[test]
fn flush_of_an_object_is_complete_however_large_or_thin() {
    let store = store(64 << 20, 2);
    let pool = store.pool("p", &persistent()).unwrap();
    let mut random = Random::new(5);
    let same = page(Fill::Same, 1, 1, 4096);
    let thin: std::collections::BTreeSet<u32> = (0..6_000).map(|_| random.word() as u32).collect();
    for index in &thin {
        pool.put(&oid(1), &[(*index, &same)]).unwrap();
        pool.put(&oid(3), &[(*index ^ 0x55, &same)]).unwrap();
    }
    pool.put_range(&oid(2), 77, &same.repeat(6_000)).unwrap();
    assert_eq!(pool.flush_object(&oid(1)).unwrap(), thin.len() as u64);
    assert_eq!(pool.flush_object(&oid(2)).unwrap(), 6_000);
    assert_eq!(
        (stat(&store, "pages"), stat(&store, "objects")),
        (thin.len() as u64, 2)
    );
    assert!(
        thin.iter()
            .all(|index| get(&pool, 1, *index).is_none() && get(&pool, 3, *index ^ 0x55).is_some())
    );
    assert_sound(&store);
}
