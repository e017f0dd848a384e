//! Reserves whose memory is committed ahead: free frames that are kept, and what the pools with a reserve use of it, are never
//! together less than the reserves; and nobody is refused anything for it that a promise alone would have let him have.

mod support;

use support::{
    Fill, Random, Scratch, assert_sound, inclusive, oid, page, persistent, put, stat, store,
    stored, version,
};
use tmem_core::{AllocatorKind, Error, Pool, PoolSettings, Store, StoreOptions};

const MIB: u64 = 1 << 20;
const MEMORY: u64 = 32 * MIB;
const RESERVE: u64 = 8 * MIB;

fn backed(memory: u64, shards: u32) -> Store {
    let store = store(memory, shards);
    store.commit_reserves(true).unwrap();
    store
}

fn footprint(pool: &Pool) -> u64 {
    let fields = pool.stats().unwrap().fields();
    let found = fields.iter().find(|(name, _)| *name == "footprint_bytes");
    found.expect("a footprint").1
}

/// Put pages of which every one is stored, until the pool has its reserve.
fn use_up(store: &Store, pool: &Pool, fill: Fill, object: u64) {
    let reserve = pool.reserve().unwrap();
    let mut i = 0;
    while footprint(pool) + 16 * 4096 <= reserve {
        let outcome = put(pool, object, i, &page(fill, 1, u64::from(i), 4096));
        assert!(stored(outcome), "page {i}, {fill:?}: {outcome:?}");
        i += 1;
    }
    assert_sound(store);
}

/// Put until nothing more is stored.
fn fill_up(pool: &Pool, object: u64) {
    let mut refused = 0;
    for i in 0.. {
        let bytes = page(Fill::Noise, 3, u64::from(i), 4096);
        refused += u32::from(!stored(put(pool, object, i, &bytes)));
        if refused == 50 {
            break;
        }
    }
}

#[test]
fn the_memory_is_there_before_the_first_page_and_not_twice() {
    for shards in [1, 4] {
        for fill in [Fill::Text, Fill::Rough, Fill::Noise] {
            let store = backed(MEMORY, shards);
            let pool = store.pool("p", &persistent()).unwrap();
            let before = store.allocated_bytes().unwrap();
            pool.set_reserve(RESERVE).unwrap();
            assert_sound(&store);
            let committed = store.allocated_bytes().unwrap();
            assert!(committed >= before + RESERVE, "{committed} bytes");
            use_up(&store, &pool, fill, 1);
            let most = store.allocated_bytes().unwrap();
            // Shards that are used less than others keep what is promised no more until somebody wants it.
            assert!(
                most <= committed + RESERVE / 2,
                "{most} bytes after {committed}"
            );
            pool.flush_object(&oid(1)).unwrap();
            assert_sound(&store);
            assert!(store.allocated_bytes().unwrap() >= before + RESERVE);
        }
    }
}

/// What is kept counts as used and as promised, but once.
#[test]
fn others_may_use_all_the_rest() {
    for shards in [1, 4] {
        let store = backed(MEMORY, shards);
        let (others, pool) = (
            store.pool("others", &persistent()).unwrap(),
            store.pool("p", &persistent()).unwrap(),
        );
        pool.set_reserve(RESERVE).unwrap();
        fill_up(&others, 2);
        let rest = MEMORY - RESERVE - RESERVE / 16;
        let had = footprint(&others);
        assert!(had > rest * 9 / 10, "{had} of {rest} bytes");
        for (round, fill) in [Fill::Text, Fill::Noise, Fill::Rough]
            .into_iter()
            .enumerate()
        {
            use_up(&store, &pool, fill, round as u64);
            pool.flush_object(&oid(round as u64)).unwrap();
            fill_up(&others, 10 + round as u64);
            assert_sound(&store);
        }
    }
}

#[test]
fn it_stays_committed_whatever_is_done() {
    for (seed, shards) in [(1, 1), (2, 2), (3, 4)] {
        let store = backed(MEMORY, shards);
        let zbud = PoolSettings {
            allocator: AllocatorKind::Zbud,
            ..persistent()
        };
        let pools = [
            store.pool("a", &persistent()).unwrap(),
            store.pool("b", &zbud).unwrap(),
            store.pool("others", &persistent()).unwrap(),
            store.pool("e", &inclusive()).unwrap(),
        ];
        let mut random = Random::new(seed);
        for step in 0..20_000u64 {
            let pool = &pools[random.below(4) as usize];
            let (object, index) = (random.below(3), random.below(2000) as u32);
            match random.below(1000) {
                0 => _ = pool.flush_object(&oid(object)).unwrap(),
                1 => _ = store.compact().unwrap(),
                2 => _ = store.relinquish(random.below(4 * MIB)).unwrap(),
                3 => _ = pools[random.below(2) as usize].set_reserve(random.below(RESERVE)),
                n if n < 300 => _ = pool.flush(&oid(object), &[index]).unwrap(),
                n => _ = put(pool, object, index, &page(Fill::pick(n), 1, step, 4096)),
            }
            if step % 500 == 0 {
                assert_sound(&store);
                let reserves: u64 = pools.iter().map(|pool| pool.reserve().unwrap()).sum();
                let allocated = store.allocated_bytes().unwrap();
                assert!(allocated >= reserves, "{allocated} of {reserves} bytes");
            }
        }
        assert_sound(&store);
    }
}

#[test]
fn a_machine_that_has_not_so_much_is_asked_for_nothing() {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("MemTotal:"))
        .unwrap();
    let total: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    let total = total * 1024;
    let options = StoreOptions {
        memory: 4 * total,
        ..StoreOptions::default()
    };
    let store = Store::open(&options).unwrap();
    store.commit_reserves(true).unwrap();
    let pool = store.pool("p", &persistent()).unwrap();
    let before = store.allocated_bytes().unwrap();
    let refused = pool.set_reserve(2 * total);
    let Err(Error::Exhausted(why)) = refused else {
        panic!("{refused:?}")
    };
    assert!(why.contains("the machine has"), "{why}");
    assert_eq!(pool.reserve().unwrap(), 0);
    assert!(store.allocated_bytes().unwrap() <= before + 64 * MIB);
    assert_sound(&store);
    pool.set_reserve(RESERVE).unwrap();
    assert_sound(&store);
}

#[test]
fn it_is_given_back_when_it_is_promised_no_more() {
    let store = backed(MEMORY, 2);
    let pool = store.pool("p", &persistent()).unwrap();
    let allocated = || store.allocated_bytes().unwrap();
    let before = allocated();
    pool.set_reserve(RESERVE).unwrap();
    pool.set_reserve(RESERVE / 4).unwrap();
    assert!(allocated() < before + RESERVE / 2);
    assert_sound(&store);
    store.commit_reserves(false).unwrap();
    assert!(allocated() < before + MIB);
    store.commit_reserves(true).unwrap();
    assert!(allocated() >= before + RESERVE / 4);
    pool.destroy().unwrap();
    assert!(allocated() < before + MIB);
    assert_sound(&store);
}

#[test]
fn it_outlasts_whoever_made_it() {
    let scratch = Scratch::new("backing");
    let options = scratch.options(MEMORY, 2);
    {
        let store = Store::open(&options).unwrap();
        store.commit_reserves(true).unwrap();
        let pool = store.pool("p", &persistent()).unwrap();
        pool.set_reserve(RESERVE).unwrap();
        (0..100).for_each(|i| _ = put(&pool, 1, i, &page(Fill::Noise, 1, u64::from(i), 4096)));
    }
    let store = Store::open(&options).unwrap();
    assert!(stat(&store, "reserve_bytes") + 101 * 4096 >= RESERVE);
    assert_sound(&store);
    store.commit_reserves(true).unwrap();
    let pool = store.find_pool("p").unwrap().unwrap();
    assert_eq!(version(&pool, 1, 7, 1), Some(7));
    use_up(&store, &pool, Fill::Text, 2);
}

/// What all shards keep is the pool's, though all its pages fall to one of them.
#[test]
fn a_shard_borrows_what_others_keep() {
    for size in [65536, 262144] {
        borrow(size);
    }
}

fn borrow(size: usize) {
    let store = backed(MEMORY, 4);
    let large = PoolSettings {
        page_size: size as u32,
        ..persistent()
    };
    let (others, pool) = (
        store.pool("others", &persistent()).unwrap(),
        store.pool("p", &large).unwrap(),
    );
    pool.set_reserve(RESERVE).unwrap();
    fill_up(&others, 2);
    let mut i = 0;
    while footprint(&pool) + size as u64 <= RESERVE {
        let outcome = put(&pool, 1, i, &page(Fill::Noise, 1, u64::from(i), size));
        assert!(stored(outcome), "page {i}: {outcome:?}");
        assert_sound(&store);
        i += 1;
    }
}

/// Frames that compaction could free are not given back where that would leave fewer than are promised.
#[test]
fn compaction_gives_nothing_back_that_is_promised() {
    let store = backed(MEMORY, 1);
    let pool = store.pool("p", &persistent()).unwrap();
    pool.set_reserve(RESERVE / 2).unwrap();
    let mut random = Random::new(7);
    for i in 0..1200u32 {
        let mut bytes = page(Fill::Noise, 1, u64::from(i), 4096);
        bytes[random.below(4096) as usize..].fill(0);
        assert!(stored(put(&pool, 1, i, &bytes)));
    }
    for i in (0..1200).filter(|i| i % 5 > 0) {
        pool.flush(&oid(1), &[i]).unwrap();
    }
    assert_sound(&store);
    store.compact().unwrap();
    assert_sound(&store);
}
