//! Stopping an operation before each of its stores, and its recovery too.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tmem_core::{Crash, arm, disarm};

use crate::scene::{Scene, VARIANTS, Variant};

/// Stops tried of an operation with more stores than this are a sample: all at either end, some between.
pub const DENSE: u64 = 80;

pub fn crashes(body: impl FnOnce()) -> bool {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(()) => false,
        Err(panic) if panic.is::<Crash>() => true,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Whether `body` was stopped before its `n`-th store.
pub fn stopped(n: u64, body: impl FnOnce()) -> bool {
    arm(n);
    let crashed = crashes(body);
    assert_ne!(disarm(), crashed);
    crashed
}

/// How many stores an operation makes; a few more or less from one run to the next, for hashes are seeded anew.
pub fn stores(prepare: &dyn Fn() -> Scene, act: &dyn Fn(&Scene)) -> u64 {
    let ends = |n: u64| {
        let scene = prepare();
        !stopped(n, || act(&scene))
    };
    let mut high = 64;
    while !ends(high) {
        high *= 2;
    }
    let mut low = 0;
    while low < high {
        let middle = (low + high) / 2;
        if ends(middle) {
            high = middle
        } else {
            low = middle + 1
        }
    }
    high
}

pub fn stops(total: u64) -> Vec<u64> {
    if total <= DENSE {
        return (0..=total).collect();
    }
    let (end, step) = (DENSE / 4, (total / (DENSE / 2)).max(1) | 1);
    let mut stops: Vec<u64> = (0..end)
        .chain((end..total - end).step_by(step as usize))
        .chain(total - end..=total)
        .collect();
    stops.dedup();
    stops
}

/// Stop the operation everywhere, and every other time stop its recovery too, twice. At last let it come to its end.
pub fn everywhere(name: &str, prepare: &dyn Fn() -> Scene, act: &dyn Fn(&Scene)) {
    let total = stores(prepare, act);
    for (round, n) in stops(total).into_iter().chain([1 << 30]).enumerate() {
        let scene = prepare();
        let what = format!("{name} stopped before store {n} of {total}");
        let crashed = stopped(n, || act(&scene));
        assert!(crashed || n > 0, "{what}: it stores nothing");
        if crashed && round % 2 == 1 {
            stop_recovery(&scene, round as u64);
        }
        scene.verify(&what);
        scene.verify_use(&what);
    }
}

/// The next user of the dirty shards dies too, and so does the one after it.
pub fn stop_recovery(scene: &Scene, round: u64) {
    for m in [round * 7 % 61 + round * 131 % 1700, round * 37 % 400] {
        stopped(m, || drop(scene.store.check().unwrap()));
    }
}

pub fn all_variants(name: &str, prepare: impl Fn(Variant) -> Scene, act: impl Fn(&Scene)) {
    for variant in VARIANTS {
        let name = format!("{name} on {variant:?}");
        everywhere(&name, &|| prepare(variant), &|scene| act(scene));
    }
}
