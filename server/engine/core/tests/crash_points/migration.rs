//! The migration of an arena of the layout before, stopped before any of its stores, is done again by the next to attach.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tmem_core::{Crash, Store, arm, disarm};

use crate::fixture::Fixture;
use crate::support::assert_sound;

#[test]
fn a_migration_that_is_cut_short_is_done_again() {
    let fixture = Fixture::read();
    let mut stores = 0;
    loop {
        let file = fixture.unpack("migration");
        arm(stores);
        let attached = catch_unwind(AssertUnwindSafe(|| Store::attach(&file.0, false)));
        let done = disarm();
        match attached {
            Err(panic) => assert!(panic.is::<Crash>()),
            Ok(store) => drop(store.unwrap()),
        }
        let store = Store::attach(&file.0, false).unwrap();
        fixture.assert_held(&store, true);
        assert_sound(&store);
        // Between them the table of processes is cleared, a word a store.
        stores += if (12..128).contains(&stores) { 29 } else { 1 };
        if done {
            break;
        }
    }
    assert!(stores > 130);
}
