//! The page that is kept decompressed: given out again while it is what the store holds, and never once it is not.

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use support::{Fill, Scratch, inclusive, oid, page, persistent, put, stat, store, stored};
use tmem_core::{Codec, Fetch, Kind, LastPage, Pool, PoolSettings, Store};

const SIZE: usize = 256 << 10;
const CHILD: &str = "TMEM_LAST_WRITER";

fn large(settings: PoolSettings) -> PoolSettings {
    PoolSettings {
        page_size: SIZE as u32,
        ..settings
    }
}

fn text(version: u64) -> Vec<u8> {
    page(Fill::Text, 1, version, SIZE)
}

/// What a reader has of page 0 of object 1; None on a miss.
fn read(pool: &Pool, last: &mut LastPage) -> Option<Vec<u8>> {
    let fetch = pool.get_last(&oid(1), 0, last).unwrap();
    assert_ne!(fetch, Fetch::Corrupt);
    (fetch == Fetch::Hit).then(|| last.bytes().to_vec())
}

/// Damage the only page of an arena's file: whoever decompresses it again finds it corrupt.
fn damage(arena: &Path, bytes: &[u8]) {
    let file = File::options().read(true).write(true).open(arena).unwrap();
    let mut chunk = vec![0; 1 << 20];
    for at in (0..file.metadata().unwrap().len()).step_by(1 << 20) {
        let got = file.read_at(&mut chunk, at).unwrap();
        let found = chunk[..got]
            .windows(64)
            .position(|some| some == &bytes[4096..4160]);
        if let Some(within) = found {
            file.write_all_at(&[0xff; 64], at + within as u64).unwrap();
            return;
        }
    }
    panic!("the page is nowhere in the file");
}

#[test]
fn a_page_that_stayed_is_not_decompressed_again() {
    let file = Scratch::new("last");
    let store = Store::open(&file.options(8 << 20, 1)).unwrap();
    let raw = PoolSettings {
        codec: Codec::Raw,
        ..large(persistent())
    };
    let pool = store.pool("p", &raw).unwrap();
    let bytes = page(Fill::Noise, 1, 1, SIZE);
    put(&pool, 1, 0, &bytes);
    let mut last = LastPage::default();
    assert_eq!(read(&pool, &mut last).as_ref(), Some(&bytes));
    damage(&file.0, &bytes);
    assert_eq!(read(&pool, &mut last), Some(bytes));
    assert_eq!(stat(&store, "gets_hit"), 2);
    let fresh = pool.get_last(&oid(1), 0, &mut LastPage::default());
    assert_eq!(fresh.unwrap(), Fetch::Corrupt);
    // What was made of it is not given out as the page.
    last.change()[0] ^= 1;
    assert_eq!(
        pool.get_last(&oid(1), 0, &mut last).unwrap(),
        Fetch::Corrupt
    );
}

/// Each way in which a page may become another, or none.
#[test]
fn whatever_changes_a_page_is_seen() {
    let store = store(16 << 20, 1);
    let pool = store.pool("p", &large(persistent())).unwrap();
    let mut last = LastPage::default();
    let mut see = |what: &str, change: &dyn Fn(), expected: Option<Vec<u8>>| {
        put(&pool, 1, 0, &text(1));
        assert_eq!(read(&pool, &mut last), Some(text(1)), "before {what}");
        assert_eq!(
            read(&pool, &mut last),
            Some(text(1)),
            "before {what}, again"
        );
        change();
        assert!(read(&pool, &mut last) == expected, "after {what}");
        pool.thaw().unwrap();
    };
    let name = oid(1);
    see("a put", &|| _ = put(&pool, 1, 0, &text(2)), Some(text(2)));
    see(
        "a replacement",
        &|| {
            pool.replace_pages(&name, 0, &text(3), &mut Vec::new())
                .unwrap()
        },
        Some(text(3)),
    );
    see(
        "zeros",
        &|| _ = put(&pool, 1, 0, &vec![0; SIZE]),
        Some(vec![0; SIZE]),
    );
    see(
        "two puts, back to the same",
        &|| {
            put(&pool, 1, 0, &text(2));
            put(&pool, 1, 0, &text(1));
        },
        Some(text(1)),
    );
    see("a flush", &|| _ = pool.flush(&name, &[0]).unwrap(), None);
    see(
        "a flush and a put",
        &|| {
            pool.flush(&name, &[0]).unwrap();
            put(&pool, 1, 0, &text(4));
        },
        Some(text(4)),
    );
    see(
        "a flush of the object",
        &|| _ = pool.flush_object(&name).unwrap(),
        None,
    );
    see(
        "an exclusive get",
        &|| {
            pool.get(&name, &[0], &mut [&mut vec![0; SIZE]], true)
                .unwrap();
        },
        None,
    );
    see(
        "a refused put",
        &|| {
            pool.freeze().unwrap();
            assert!(!stored(put(&pool, 1, 0, &text(5))));
        },
        None,
    );
    see(
        "a put by another handle",
        &|| {
            put(&store.find_pool("p").unwrap().unwrap(), 1, 0, &text(6));
        },
        Some(text(6)),
    );
}

#[test]
fn the_same_key_of_another_pool_object_or_arena_is_another_page() {
    let (store, other) = (store(16 << 20, 1), store(16 << 20, 1));
    let pools = [("p", &store), ("q", &store), ("p", &other)]
        .map(|(name, store)| store.pool(name, &large(persistent())).unwrap());
    let mut last = LastPage::default();
    for (version, pool) in (1..).zip(&pools) {
        put(pool, 1, 0, &text(version));
    }
    for (version, pool) in (1..).zip(&pools).cycle().take(9) {
        assert_eq!(read(pool, &mut last), Some(text(version)));
    }
    put(&pools[0], 2, 0, &text(7));
    put(&pools[0], 1, 64, &text(8));
    for (object, index, version) in [(1, 0, 1), (2, 0, 7), (1, 64, 8), (1, 0, 1)] {
        pools[0].get_last(&oid(object), index, &mut last).unwrap();
        assert_eq!(last.bytes(), text(version));
    }
}

#[test]
fn a_pool_made_anew_under_the_name_has_none_of_it() {
    let store = store(16 << 20, 1);
    let mut last = LastPage::default();
    for version in [None, Some(2)] {
        let pool = store.pool("p", &large(persistent())).unwrap();
        put(&pool, 1, 0, &text(1));
        assert_eq!(read(&pool, &mut last), Some(text(1)));
        pool.destroy().unwrap();
        assert!(pool.get_last(&oid(1), 0, &mut last).is_err());
        let next = store.pool("p", &large(persistent())).unwrap();
        if let Some(version) = version {
            put(&next, 1, 0, &text(version));
        }
        assert_eq!(read(&next, &mut last), version.map(text));
        next.destroy().unwrap();
    }
}

#[test]
fn evicted_pages_are_gone_and_moved_ones_are_the_same() {
    let store = store(16 << 20, 1);
    let pool = store.pool("e", &large(inclusive())).unwrap();
    let mut last = LastPage::default();
    put(&pool, 1, 0, &text(1));
    assert_eq!(read(&pool, &mut last), Some(text(1)));
    store.relinquish(16 << 20).unwrap();
    assert_eq!(read(&pool, &mut last), None);
    let kept = store.pool("p", &large(persistent())).unwrap();
    (1..40).for_each(|i| _ = put(&kept, 1, i, &page(Fill::Text, i.into(), 1, SIZE)));
    put(&kept, 1, 0, &text(1));
    (1..40).for_each(|i| _ = kept.flush(&oid(1), &[i]).unwrap());
    assert_eq!(read(&kept, &mut last), Some(text(1)));
    store.compact().unwrap();
    assert!(stat(&store, "moved_pages") > 0);
    assert_eq!(read(&kept, &mut last), Some(text(1)));
    put(&kept, 1, 0, &text(2));
    assert_eq!(read(&kept, &mut last), Some(text(2)));
}

#[test]
fn a_pool_whose_gets_take_the_page_out_gives_it_once() {
    let store = store(16 << 20, 1);
    let private = large(PoolSettings::new(Kind::Ephemeral));
    let pool = store.pool("e", &private).unwrap();
    let mut last = LastPage::default();
    put(&pool, 1, 0, &text(1));
    assert_eq!(read(&pool, &mut last), Some(text(1)));
    assert_eq!(read(&pool, &mut last), None);
}

/// What the other process does.
#[test]
fn writer() {
    let Ok(path) = std::env::var(CHILD) else {
        return;
    };
    let store = Store::attach(Path::new(&path), false).unwrap();
    let pool = store.find_pool("p").unwrap().unwrap();
    assert!(stored(put(&pool, 1, 0, &text(2))));
}

#[test]
fn another_process_of_the_arena_is_seen() {
    let file = Scratch::new("last-other");
    let store = Store::open(&file.options(8 << 20, 1)).unwrap();
    let pool = store.pool("p", &large(persistent())).unwrap();
    let mut last = LastPage::default();
    put(&pool, 1, 0, &text(1));
    assert_eq!(read(&pool, &mut last), Some(text(1)));
    let done = Command::new(std::env::current_exe().unwrap())
        .args(["writer", "--exact"])
        .env(CHILD, &file.0)
        .status();
    assert!(done.unwrap().success());
    assert_eq!(read(&pool, &mut last), Some(text(2)));
}
