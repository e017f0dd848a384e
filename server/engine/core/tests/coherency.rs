//! Many threads on one store see what the law allows and nothing else.
//!
//! Every page has a version, every key one writer. What a writer began and what was acknowledged stands on a board, so that
//! any reader can tell an older page from a newer. Each fault of the ancestors that concerns the engine has a test that tells its
//! story: 2 and 5 here, 1, 7, 8, 9 and 11 in `policy.rs`, 10 in `outside_locks.rs`, and the count of stores that bounds a put
//! (11 again) in `crash_points`. The rules between processes are those of `processes.rs`.

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use support::{
    Fill, Finish, Random, assert_sound, get, oid, page, persistent, put, stat, store, stored,
    version,
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

/// When `freeze` has returned no put is stored, and none that began before is still on its way.
#[test]
fn freeze_is_a_barrier() {
    let store = store(16 << 20, 4);
    let pool = store.pool("p", &persistent()).unwrap();
    let board = Board::new();
    // Odd while the pool is frozen, and never the same again: so a put knows whether one freeze was around all of it.
    let (freezes, stop, tried) = (AtomicU64::new(0), AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _over = Finish(&stop);
        let writers = [0, 1].map(|me| {
            let (pool, board, freezes, stop, tried) = (&pool, &board, &freezes, &stop, &tried);
            scope.spawn(move || {
                let mut random = Random::new(me);
                while !stop.load(SeqCst) {
                    let before = freezes.load(SeqCst);
                    let outcome = board.put(pool, random.below(KEYS / 2) * 2 + me, Fill::Text);
                    let within = before % 2 == 1 && freezes.load(SeqCst) == before;
                    assert!(
                        !within
                            || matches!(
                                outcome,
                                Outcome::Refused {
                                    reason: Reason::Frozen,
                                    ..
                                }
                            )
                    );
                    tried.fetch_add(1, SeqCst);
                }
            })
        });
        for _ in 0..200 {
            pool.freeze().unwrap();
            freezes.fetch_add(1, SeqCst);
            let versions = || {
                (0..KEYS)
                    .map(|key| version(&pool, object(key), index(key), key))
                    .collect::<Vec<_>>()
            };
            let before = versions();
            let more = tried.load(SeqCst) + 20;
            while tried.load(SeqCst) < more && !writers.iter().all(|writer| writer.is_finished()) {
                std::thread::yield_now();
            }
            for (key, (now, then)) in versions().into_iter().zip(before).enumerate() {
                assert!(
                    now.is_none() || now == then,
                    "key {key} went from {then:?} to {now:?} in a frozen pool"
                );
            }
            freezes.fetch_add(1, SeqCst);
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
