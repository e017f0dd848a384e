//! Reserves: what is promised to a pool is there when the pool wants it, whoever wanted it before.

mod support;

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use support::{
    Fill, Finish, Scratch, assert_sound, inclusive, oid, page, persistent, put, stat, store,
    stored, version,
};
use tmem_core::{AllocatorKind, Error, Outcome, Pool, PoolSettings, Reason, Store};

const MEMORY: u64 = 8 << 20;
const RESERVE: u64 = 3 << 20;

fn footprint(pool: &Pool) -> u64 {
    let fields = pool.stats().unwrap().fields();
    let found = fields.iter().find(|(name, _)| *name == "footprint_bytes");
    found.expect("a footprint").1
}

/// Put until so many in a row are refused; the number stored.
fn fill(pool: &Pool, fill: Fill, object: u64) -> u32 {
    let (mut stored_pages, mut refused) = (0, 0);
    for i in 0.. {
        if stored(put(pool, object, i, &page(fill, 3, u64::from(i), 4096))) {
            (stored_pages, refused) = (stored_pages + 1, 0);
        } else {
            refused += 1;
            if refused == 50 {
                break;
            }
        }
    }
    stored_pages
}

/// Every page of these is stored until the pool has its reserve.
fn assert_reserve_is_kept(store: &Store, pool: &Pool, fill: Fill) {
    let reserve = pool.reserve().unwrap();
    let mut i = 0;
    // The page that finds no frame below the reserve any more may need a run of 16.
    while footprint(pool) + 16 * 4096 <= reserve {
        let outcome = put(pool, 1, i, &page(fill, 1, u64::from(i), 4096));
        assert!(
            stored(outcome),
            "{fill:?}: page {i} was refused at {} of {reserve} bytes: {outcome:?} {:?}",
            footprint(pool),
            store.stats().unwrap().fields()
        );
        i += 1;
    }
    assert_sound(store);
}

#[test]
fn others_cannot_use_what_is_promised() {
    for shards in [1, 4] {
        for (fill_of_others, own) in [
            (Fill::Noise, Fill::Text),
            (Fill::Text, Fill::Noise),
            (Fill::Rough, Fill::Rough),
        ] {
            let store = store(MEMORY, shards);
            let (others, pool) = (
                store.pool("others", &persistent()).unwrap(),
                store.pool("p", &persistent()).unwrap(),
            );
            pool.set_reserve(RESERVE).unwrap();
            assert!(fill(&others, fill_of_others, 2) > 500);
            assert_eq!(footprint(&pool), 0);
            assert_eq!(
                stat(&store, "full"),
                1,
                "the others found the store full, and the pool does not"
            );
            assert_reserve_is_kept(&store, &pool, own);
        }
    }
}

/// What the pool gives up is promised again at once: the frames that its flushes free are nobody else's.
#[test]
fn what_the_pool_frees_is_promised_again() {
    for allocator in [AllocatorKind::Zsmalloc, AllocatorKind::Zbud] {
        let store = store(MEMORY, 1);
        let of = |settings| PoolSettings {
            allocator,
            ..settings
        };
        let (others, pool) = (
            store.pool("others", &persistent()).unwrap(),
            store.pool("p", &of(persistent())).unwrap(),
        );
        pool.set_reserve(RESERVE).unwrap();
        assert_reserve_is_kept(&store, &pool, Fill::Rough);
        for round in 0..4 {
            fill(&others, Fill::Noise, 10 + round);
            pool.flush_object(&oid(1)).unwrap();
            fill(&others, Fill::Noise, 20 + round);
            assert_reserve_is_kept(&store, &pool, Fill::pick(1 + round % 3));
        }
    }
}

/// A shard keeps some freed frames for the next put: they are promised too, though nothing has to be committed for them.
#[test]
fn frames_kept_for_the_next_put_are_promised_too() {
    let store = store(64 << 20, 1);
    let (others, pool) = (
        store.pool("others", &persistent()).unwrap(),
        store.pool("p", &persistent()).unwrap(),
    );
    pool.set_reserve(1 << 20).unwrap();
    // Their keys are there, so that nothing but frames is wanted when they grow.
    (0..256).for_each(|i| assert!(stored(put(&others, 2, i, &page(Fill::Same, 1, 1, 4096)))));
    assert_reserve_is_kept(&store, &pool, Fill::Noise);
    fill(&others, Fill::Noise, 1);
    pool.flush_object(&oid(1)).unwrap();
    assert!(stat(&store, "reserve_bytes") >= 32 * 4096);
    (0..256).for_each(|i| _ = put(&others, 2, i, &page(Fill::Noise, 1, 2, 4096)));
    assert_reserve_is_kept(&store, &pool, Fill::Noise);
}

#[test]
fn a_reserve_that_cannot_be_kept_is_refused_with_the_numbers() {
    let store = store(MEMORY, 2);
    let (kept, first, second) = (
        store.pool("kept", &persistent()).unwrap(),
        store.pool("first", &persistent()).unwrap(),
        store.pool("second", &persistent()).unwrap(),
    );
    (0..600).for_each(|i| _ = put(&kept, 1, i, &page(Fill::Noise, 1, u64::from(i), 4096)));
    first.set_reserve(RESERVE).unwrap();
    let refused = second.set_reserve(RESERVE);
    let Err(Error::Exhausted(why)) = refused else {
        panic!("{refused:?}")
    };
    let promised = stat(&store, "promised_bytes");
    for number in [RESERVE, MEMORY, promised] {
        assert!(why.contains(&number.to_string()), "{number}: {why}");
    }
    assert_eq!(second.reserve().unwrap(), 0);
    assert_eq!(stat(&store, "promised_bytes"), promised);
    assert!(
        first.set_reserve(RESERVE * 2).is_err(),
        "growing is checked as well"
    );
    assert_eq!(first.reserve().unwrap(), RESERVE);
    first.set_reserve(RESERVE / 2).unwrap();
    second.set_reserve(RESERVE / 2).unwrap();
    assert_reserve_is_kept(&store, &first, Fill::Noise);
    assert_reserve_is_kept(&store, &second, Fill::Text);
}

#[test]
fn ephemeral_pools_give_way_to_a_reserve() {
    for shards in [1, 4] {
        let store = store(MEMORY, shards);
        let (ephemeral, pool) = (
            store.pool("e", &inclusive()).unwrap(),
            store.pool("p", &persistent()).unwrap(),
        );
        (0..3000)
            .for_each(|i| _ = put(&ephemeral, 1, i, &page(Fill::Noise, 1, u64::from(i), 4096)));
        assert!(footprint(&ephemeral) > MEMORY - RESERVE);
        pool.set_reserve(RESERVE).unwrap();
        let free = stat(&store, "memory_bytes") - stat(&store, "used_bytes");
        assert!(
            free >= RESERVE,
            "{free} bytes are free, and {RESERVE} promised"
        );
        (0..3000).for_each(|i| {
            let outcome = put(&ephemeral, 2, i, &page(Fill::Noise, 1, u64::from(i), 4096));
            assert!(stored(outcome), "page {i}: {outcome:?}");
        });
        let free = stat(&store, "memory_bytes") - stat(&store, "used_bytes");
        assert!(
            free >= RESERVE,
            "{free} bytes are free, and {RESERVE} promised"
        );
        assert_reserve_is_kept(&store, &pool, Fill::Text);
    }
}

#[test]
fn beyond_its_reserve_a_pool_is_like_any_other() {
    let store = store(MEMORY, 1);
    let (first, second) = (
        store.pool("first", &persistent()).unwrap(),
        store.pool("second", &persistent()).unwrap(),
    );
    first.set_reserve(RESERVE).unwrap();
    second.set_reserve(RESERVE).unwrap();
    fill(&first, Fill::Noise, 1);
    assert!(footprint(&first) > RESERVE);
    assert!(matches!(
        put(&first, 2, 0, &page(Fill::Noise, 1, 1, 4096)),
        Outcome::Refused {
            reason: Reason::Memory,
            ..
        }
    ));
    assert_reserve_is_kept(&store, &second, Fill::Noise);
}

#[test]
fn a_reserve_is_kept_while_others_race_for_the_memory() {
    let store = store(MEMORY, 4);
    let (others, ephemeral, pool) = (
        store.pool("others", &persistent()).unwrap(),
        store.pool("e", &inclusive()).unwrap(),
        store.pool("p", &persistent()).unwrap(),
    );
    pool.set_reserve(RESERVE).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _over = Finish(&done);
        for (me, rival) in [&others, &ephemeral, &others].into_iter().enumerate() {
            let done = &done;
            scope.spawn(move || {
                for i in (0..20_000u32).cycle() {
                    if done.load(SeqCst) {
                        break;
                    }
                    let bytes = page(Fill::pick(u64::from(i)), 1, u64::from(i), 4096);
                    put(rival, me as u64, i, &bytes);
                    if i % 97 == 0 {
                        rival.flush(&oid(me as u64), &[i / 2]).unwrap();
                    }
                }
            });
        }
        for round in 0..6 {
            assert_reserve_is_kept(&store, &pool, Fill::pick(1 + round % 3));
            pool.flush_object(&oid(1)).unwrap();
        }
    });
    assert_sound(&store);
}

#[test]
fn a_reserve_survives_restarts_and_goes_with_its_pool() {
    let scratch = Scratch::new("reserve");
    let options = scratch.options(MEMORY, 2);
    {
        let store = Store::open(&options).unwrap();
        let pool = store.pool("p", &persistent()).unwrap();
        pool.set_reserve(RESERVE).unwrap();
        (0..100).for_each(|i| _ = put(&pool, 1, i, &page(Fill::Noise, 1, u64::from(i), 4096)));
    }
    let store = Store::open(&options).unwrap();
    let (others, pool) = (
        store.pool("others", &persistent()).unwrap(),
        store.find_pool("p").unwrap().unwrap(),
    );
    assert_eq!(pool.reserve().unwrap(), RESERVE);
    assert_eq!(version(&pool, 1, 7, 1), Some(7));
    fill(&others, Fill::Noise, 1);
    assert_reserve_is_kept(&store, &pool, Fill::Text);
    pool.destroy().unwrap();
    assert_eq!(stat(&store, "promised_bytes"), 0);
    let before = footprint(&others);
    fill(&others, Fill::Noise, 2);
    assert!(
        footprint(&others) >= before + RESERVE / 2,
        "the memory is for all again"
    );
    let next = store.pool("p", &persistent()).unwrap();
    assert_eq!(
        next.reserve().unwrap(),
        0,
        "another pool's reserve is not its"
    );
}

#[test]
fn reserves_that_make_no_sense_are_refused() {
    let store = store(MEMORY, 1);
    let ephemeral = store.pool("e", &inclusive()).unwrap();
    assert!(matches!(
        ephemeral.set_reserve(1 << 20),
        Err(Error::Invalid(_))
    ));
    let quota = PoolSettings {
        quota: 1 << 20,
        ..persistent()
    };
    let pool = store.pool("p", &quota).unwrap();
    assert!(matches!(pool.set_reserve(2 << 20), Err(Error::Invalid(_))));
    pool.set_reserve(1 << 20).unwrap();
    assert!(matches!(pool.set_quota(4096), Err(Error::Invalid(_))));
    assert!(matches!(pool.set_reserve(u64::MAX), Err(Error::Invalid(_))));
    pool.set_quota(0).unwrap();
    assert!(matches!(
        pool.set_reserve(u64::MAX),
        Err(Error::Exhausted(_))
    ));
    assert_eq!(pool.reserve().unwrap(), 1 << 20);
    pool.set_reserve(0).unwrap();
    assert_eq!(stat(&store, "promised_bytes"), 0);
}
