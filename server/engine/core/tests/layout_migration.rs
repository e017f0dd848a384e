//! An arena of the layout before, made by a build of that time, is migrated in place with everything in it.
//!
//! What it holds, and how it was made, is told in `tests/fixtures/README.md`.

#[path = "support/fixture.rs"]
mod fixture;
mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;

use fixture::{Fixture, VERSION_AT};
use support::{Scratch, assert_sound, stat};
use tmem_core::{Error, Store};

/// Where the first shard's header is, and in it its dirty word.
const SHARD: u64 = 4096 + 1024 * 256;
const DIRTY: u64 = SHARD + 64;

fn patch(file: &Scratch, at: u64, word: u32) {
    let open = File::options().write(true).open(&file.0).unwrap();
    open.write_all_at(&word.to_le_bytes(), at).unwrap();
}

fn word(file: &Scratch, at: u64) -> u32 {
    let mut bytes = [0; 4];
    File::open(&file.0)
        .unwrap()
        .read_exact_at(&mut bytes, at)
        .unwrap();
    u32::from_le_bytes(bytes)
}

#[track_caller]
fn refusal(file: &Scratch) -> String {
    match Store::attach(&file.0, false) {
        Err(Error::Arena { why, .. }) => why,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was attached"),
    }
}

#[test]
fn every_page_is_there_after_the_migration_and_the_next_attach() {
    let fixture = Fixture::read();
    let file = fixture.unpack("layout");
    for _ in 0..2 {
        let store = Store::attach(&file.0, false).unwrap();
        fixture.assert_held(&store, true);
        assert_sound(&store);
        assert_eq!((stat(&store, "recoveries"), stat(&store, "pools")), (0, 10));
        assert_eq!(word(&file, VERSION_AT), 5);
    }
}

#[test]
fn after_a_restart_of_the_system_every_persistent_page_is_verified() {
    let fixture = Fixture::read();
    let file = fixture.unpack_old("restarted");
    let store = Store::attach(&file.0, false).unwrap();
    assert_eq!(stat(&store, "recoveries"), stat(&store, "shards"));
    fixture.assert_held(&store, false);
    assert_sound(&store);
}

/// A daemon of that time was killed in the middle of an operation, with its mutex held.
#[test]
fn a_shard_that_was_left_unfinished_is_rebuilt_by_the_migration() {
    let fixture = Fixture::read();
    let file = fixture.unpack("unfinished");
    patch(&file, DIRTY, 1);
    patch(&file, SHARD, 0x8000_1234);
    let store = Store::attach(&file.0, false).unwrap();
    assert_eq!(stat(&store, "recoveries"), 1);
    fixture.assert_held(&store, true);
    assert_sound(&store);
}

/// A process of an earlier build holds byte 1 shared, as it always did.
#[test]
fn an_arena_that_an_earlier_build_has_attached_is_left_alone() {
    let file = Fixture::read().unpack("attached");
    let earlier = File::options()
        .read(true)
        .write(true)
        .open(&file.0)
        .unwrap();
    fixture::lock(&earlier, 1, libc::F_RDLCK);
    let before = std::fs::metadata(&file.0).unwrap().modified().unwrap();
    let why = refusal(&file);
    assert!(why.contains("earlier build"), "{why}");
    let meta = std::fs::metadata(&file.0).unwrap();
    assert_eq!(
        (word(&file, VERSION_AT), meta.modified().unwrap()),
        (4, before)
    );
    drop(earlier);
    Fixture::read().assert_held(&Store::attach(&file.0, false).unwrap(), true);
}

#[test]
fn other_layouts_are_refused_with_the_reason() {
    let file = Fixture::read().unpack("others");
    for (version, says) in [
        (6, "newer build"),
        (3, "a build in between"),
        (0, "version 0"),
    ] {
        patch(&file, VERSION_AT, version);
        let why = refusal(&file);
        assert!(
            why.contains(says) && why.contains(&version.to_string()),
            "{why}"
        );
        assert_eq!(word(&file, VERSION_AT), version);
    }
}
