//! Damaged counts and indices: no wrong page is returned, and every operation ends.

use super::Pool;
use crate::outcome::Counter;
use crate::shard::{Shard, with_shard};
use crate::{Error, Fetch, Kind, Oid, PoolSettings, Store, StoreOptions};

const OID: Oid = Oid([1; 24]);

/// A store of one shard with three pages of a pool.
fn three_pages(kind: Kind) -> (Store, Pool) {
    let options = StoreOptions {
        memory: 4 << 20,
        shards: Some(1),
        ..StoreOptions::default()
    };
    let store = Store::open(&options).unwrap();
    let pool = store.pool("p", &PoolSettings::new(kind)).unwrap();
    let pages: Vec<u8> = (1..4u8).flat_map(|byte| [byte; 4096]).collect();
    pool.put_range(&OID, 0, &pages).unwrap();
    (store, pool)
}

/// Change what the pool's shard says.
fn damage(pool: &Pool, body: impl FnOnce(&Shard<'_>)) {
    with_shard(&pool.arena, 0, body).unwrap();
}

/// A checksum tells a good page from a bad one, but not one page from another. The fuzzer found that an index word damaged to
/// name another page's slot gave that page.
#[test]
fn an_index_that_names_another_pages_slot_gives_no_page_and_is_rebuilt() {
    let (store, pool) = three_pages(Kind::Persistent);
    damage(&pool, |shard| {
        let (node, _) = shard.find(&pool.key(&OID), 0).unwrap();
        let (_, other) = shard.find(&pool.key(&OID), 1).unwrap();
        shard.nodes.replace(node, 0, other.0);
    });
    let mut page = [0; 4096];
    let mut get = || {
        let fetched = pool.get(&OID, &[0], &mut [&mut page], false);
        fetched.map(|fetched| (fetched[0], page[0]))
    };
    assert!(matches!(get(), Err(Error::Damaged { .. })));
    assert_eq!(get().unwrap(), (Fetch::Hit, 1));
    assert_eq!(store.check().unwrap(), Vec::<String>::new());
}

/// The fuzzer found that `relinquish` went round for ever after frames that were counted and nowhere.
#[test]
fn relinquish_comes_to_an_end_where_frames_are_counted_that_are_nowhere() {
    let (store, pool) = three_pages(Kind::Ephemeral);
    damage(&pool, |shard| {
        shard
            .heap(pool.id.slot)
            .unwrap()
            .count(Counter::Frames)
            .add(1000);
    });
    store.relinquish(1 << 30).unwrap();
    assert_eq!(pool.has(&OID, 0, 3).unwrap(), [false; 3]);
}

#[test]
fn destroy_comes_to_an_end_where_pages_are_counted_that_are_nowhere() {
    let (store, pool) = three_pages(Kind::Persistent);
    damage(&pool, |shard| {
        shard
            .heap(pool.id.slot)
            .unwrap()
            .count(Counter::Pages)
            .add(1);
    });
    assert!(matches!(pool.destroy(), Err(Error::Damaged { .. })));
    assert_eq!(store.check().unwrap(), Vec::<String>::new());
}

/// One process destroys a pool while another, attaching, helps to. The faster gives the slot to a new pool: what the slower
/// still does must not touch that one's pages.
#[test]
fn a_purge_that_comes_late_spares_the_slots_next_pool() {
    let options = StoreOptions {
        memory: 4 << 20,
        shards: Some(2),
        ..StoreOptions::default()
    };
    let store = Store::open(&options).unwrap();
    let settings = PoolSettings::new(Kind::Persistent);
    let (old, oid) = (store.pool("old", &settings).unwrap(), OID);
    old.put_range(&oid, 0, &[7; 8 * 4096]).unwrap();
    old.destroy().unwrap();
    let new = store.pool("new", &settings).unwrap();
    assert_eq!(new.id.slot, old.id.slot);
    new.put_range(&oid, 0, &[8; 100 * 4096]).unwrap();
    assert_eq!(old.purge().unwrap(), 0);
    assert_eq!(new.has(&oid, 0, 100).unwrap(), [true; 100]);
    assert_eq!(store.pools().unwrap().len(), 1);
    assert_eq!(store.check().unwrap(), Vec::<String>::new());
}
