//! The exports by which gateways use ephemeral pools: misses are holes, and nothing of an older session lands.

#[path = "support/proxy.rs"]
#[allow(dead_code)]
mod proxy;
#[path = "support/san.rs"]
#[allow(dead_code)]
mod san;

use san::{Cache, LONG, PAGE};
use tmem_core::{Kind, Oid, PoolSettings};
use tmem_nbd::Errno;
use tmem_nbd::client::{Client, Command, ConnectError, Failure, Options};

fn name(session: u8) -> String {
    let (object, session) = ("ab".repeat(24), format!("{session:02x}").repeat(16));
    format!("cache/p/{object}/{session}")
}

fn put(client: &Client, page: u64, byte: u8) -> Result<(), Failure> {
    let data = [byte; PAGE];
    let write = Command::Write {
        offset: page * PAGE as u64,
        data: &data,
        fua: false,
    };
    client.call(write, LONG).map(|_| ())
}

/// Bytes and holes.
type Got = (Vec<u8>, Vec<(u32, u32)>);

fn get(client: &Client, page: u64, count: u32) -> Result<Got, Failure> {
    let read = Command::Read {
        offset: page * PAGE as u64,
        length: count * PAGE as u32,
    };
    client
        .call(read, LONG)
        .map(|answer| (answer.data, answer.holes))
}

#[test]
fn a_miss_is_a_hole_and_a_page_of_zeros_is_data() {
    let cache = Cache::start(4 << 20, false);
    let client = cache.connect(&name(1));
    put(&client, 63, 7).unwrap();
    put(&client, 64, 0).unwrap();
    let (data, holes) = get(&client, 62, 4).unwrap();
    let holes: u32 = holes.iter().map(|(_, length)| length).sum();
    assert_eq!(holes, 2 * PAGE as u32);
    assert_eq!(data[PAGE..2 * PAGE], [7; PAGE]);
    client
        .call(
            Command::Trim {
                offset: 0,
                length: 1 << 20,
            },
            LONG,
        )
        .unwrap();
    assert_eq!(
        get(&client, 62, 4)
            .unwrap()
            .1
            .iter()
            .map(|(_, length)| length)
            .sum::<u32>(),
        4 * PAGE as u32
    );
}

#[test]
fn a_refused_put_answers_that_there_is_no_room_and_leaves_no_older_page() {
    let cache = Cache::start(4 << 20, false);
    let client = cache.connect(&name(1));
    put(&client, 5, 1).unwrap();
    cache.pool.freeze().unwrap();
    assert_eq!(put(&client, 5, 2), Err(Failure::Errno(Errno::NoSpace)));
    cache.pool.thaw().unwrap();
    assert_eq!(get(&client, 5, 1).unwrap().1, [(0, PAGE as u32)]);
}

#[test]
fn a_newer_session_ends_the_older_and_its_name_does_not_bring_it_back() {
    let cache = Cache::start(4 << 20, false);
    let (old, also_old) = (cache.connect(&name(1)), cache.connect(&name(1)));
    put(&old, 1, 1).unwrap();
    put(&also_old, 2, 1).unwrap();
    let new = cache.connect(&name(2));
    let ended = Err(Failure::Errno(Errno::Shutdown));
    assert_eq!(put(&old, 1, 9), ended);
    assert_eq!(get(&also_old, 1, 1), Err(Failure::Errno(Errno::Shutdown)));
    assert_eq!(get(&new, 1, 1).unwrap().0, [1; PAGE]);
    let again = cache.connect(&name(1));
    assert_eq!(put(&old, 1, 9), ended);
    assert_eq!(get(&again, 1, 1).unwrap().0, [1; PAGE]);
}

#[test]
fn who_only_asks_what_it_is_ends_no_session() {
    let cache = Cache::start(4 << 20, false);
    let client = cache.connect(&name(1));
    let plain = Options::default();
    let refused = Client::connect(&cache.endpoint(), &name(2), &plain);
    assert!(
        matches!(refused.err(), Some(ConnectError::Refused(why)) if why.contains("tmem:pages"))
    );
    put(&client, 1, 1).unwrap();
}

#[test]
fn only_pools_that_a_gateway_can_use_are_opened() {
    let cache = Cache::start(4 << 20, false);
    let private = PoolSettings::new(Kind::Ephemeral);
    cache.store.pool("private", &private).unwrap();
    cache
        .store
        .pool("persistent", &PoolSettings::new(Kind::Persistent))
        .unwrap();
    let large = PoolSettings {
        page_size: 131072,
        inclusive: true,
        ..PoolSettings::new(Kind::Ephemeral)
    };
    cache.store.pool("large", &large).unwrap();
    let (object, session) = ("ab".repeat(24), "cd".repeat(16));
    for (name, why) in [
        (
            format!("cache/large/{object}/{session}"),
            "pages of more than 65536 bytes",
        ),
        (
            format!("cache/private/{object}/{session}"),
            "would remove the page",
        ),
        (format!("cache/persistent/{object}/{session}"), "ephemeral"),
        (format!("cache/p/{object}"), "SESSION"),
        ("cache/p/xy".into(), "hex"),
    ] {
        let options = Options {
            contexts: vec!["tmem:pages".into()],
            ..Options::default()
        };
        let refused = Client::connect(&cache.endpoint(), &name, &options).err();
        assert!(
            matches!(&refused, Some(ConnectError::Refused(said)) if said.contains(why)),
            "{name}: {refused:?}"
        );
    }
}

#[test]
fn what_is_put_is_a_page_of_the_object_by_its_number() {
    let cache = Cache::start(4 << 20, true);
    let client = cache.connect(&format!("cache/p/{}", "ab".repeat(24)));
    put(&client, 77, 3).unwrap();
    let mut page = [0; PAGE];
    cache
        .pool
        .get(&Oid([0xab; 24]), &[77], &mut [&mut page], false)
        .unwrap();
    assert_eq!(page, [3; PAGE]);
}

#[test]
fn a_pool_that_is_not_there_is_made_as_its_gateway_needs_it() {
    let cache = Cache::start(4 << 20, false);
    cache.connect(&format!(
        "cache/one/{}/{}",
        "ab".repeat(24),
        "cd".repeat(16)
    ));
    cache.connect(&format!("cache/many/{}", "ab".repeat(24)));
    let settings = |name| cache.store.find_pool(name).unwrap().unwrap().settings();
    assert!(settings("one").inclusive && !settings("one").shared);
    assert!(settings("many").shared);
}
