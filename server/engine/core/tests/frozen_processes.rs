//! A process that is frozen while it holds a lock: who needs the lock is told so in bounded time, everybody else goes on, and
//! what waited goes on when the process does, or dies.
//!
//! The other process is this test binary, started again. It checks the store over and over, so that it holds the lock of a shard
//! most of the time, and is stopped when the arena says that it does.

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::{
    Fill, Scratch, assert_sound, inclusive, oid, page, persistent, put, stat, stored, version,
};
use tmem_core::{
    Error, Fetch, Kind, Lock, Pool, PoolSettings, Store, StoreOptions, waiting_at_most,
};

const CHILD: &str = "TMEM_FROZEN_CHILD";
const PATIENCE: Duration = Duration::from_millis(300);
/// What must come, comes within this on however slow a machine.
const GENEROUS: Duration = Duration::from_secs(60);
const SHARDS: u32 = 4;
const FIRST: u64 = 4096 + 1024 * 256;
const DIRTY: u64 = 64;
const OWNER: u32 = (1 << 30) - 1;

/// What the other process does until it is killed.
#[test]
fn other() {
    if let Ok(path) = std::env::var(CHILD) {
        let store = Store::attach(Path::new(&path), false).expect("the arena is there");
        loop {
            let _ = store.check();
        }
    }
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill")
        .args([name, &child.id().to_string()])
        .status();
    assert!(sent.is_ok_and(|sent| sent.success()));
}

/// Freeze a process; it is when this returns.
fn stop(child: &Child) {
    signal(child, "-STOP");
    let stat = format!("/proc/{}/stat", child.id());
    while !std::fs::read_to_string(&stat).unwrap().contains(") T ") {
        std::thread::yield_now();
    }
}

struct Scene {
    file: Scratch,
    store: Store,
    pool: Pool,
    other: Child,
    /// The shard that the other process holds.
    held: u32,
}

/// A store, and another process that is frozen in one of its shards.
fn frozen(name: &str) -> Scene {
    let file = Scratch::new(name);
    let options = StoreOptions {
        lock_wait: PATIENCE,
        ..file.options(32 << 20, SHARDS)
    };
    let store = Store::open(&options).unwrap();
    let pool = store.pool("p", &persistent()).unwrap();
    let cache = store.pool("cache", &inclusive()).unwrap();
    let private = PoolSettings::new(Kind::Ephemeral);
    let private = store.pool("private", &private).unwrap();
    for index in 0..2000 {
        let page = page(Fill::pick(index), index, 1, 4096);
        assert!(stored(put(&pool, 1, index as u32, &page)));
        assert!(stored(put(&cache, 1, index as u32, &page)));
        assert!(stored(put(&private, 1, index as u32, &page)));
    }
    let mut other = Command::new(std::env::current_exe().unwrap());
    other
        .args(["--exact", "other", "--nocapture"])
        .env(CHILD, &file.0);
    let other = other.stdout(Stdio::null()).spawn().unwrap();
    let arena = File::open(&file.0).unwrap();
    let stride = (arena.metadata().unwrap().len() - FIRST) / u64::from(SHARDS);
    let word = |shard: u32, at: u64| {
        let mut bytes = [0; 4];
        arena
            .read_exact_at(&mut bytes, FIRST + u64::from(shard) * stride + at)
            .unwrap();
        u32::from_le_bytes(bytes)
    };
    let begun = Instant::now();
    let held = loop {
        stop(&other);
        let held = |shard: &u32| word(*shard, 0) & OWNER != 0 && word(*shard, DIRTY) != 0;
        if let Some(shard) = (0..SHARDS).find(held) {
            break shard;
        }
        signal(&other, "-CONT");
        assert!(begun.elapsed() < GENEROUS, "it is never found in a shard");
    };
    Scene {
        file,
        store,
        pool,
        other,
        held,
    }
}

impl Scene {
    /// An index whose page is in the held shard, and one whose is not.
    fn indices(&self) -> (u32, u32) {
        waiting_at_most(Some(Duration::ZERO));
        let busy = |index: &u32| self.pool.has(&oid(1), *index, 1).is_err();
        let found = (0..2000).step_by(64);
        let found = (
            found.clone().find(busy),
            found.clone().find(|index| !busy(index)),
        );
        waiting_at_most(None);
        (
            found.0.expect("a page in the held shard"),
            found.1.expect("a page beside it"),
        )
    }

    #[track_caller]
    fn assert_busy<T: std::fmt::Debug>(&self, done: tmem_core::Result<T>) {
        match done {
            Err(Error::Busy { lock, holder, .. }) => {
                assert_eq!(
                    (lock, holder),
                    (Lock::Shard(self.held), Some(self.other.id()))
                );
            }
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.other.kill();
        let _ = self.other.wait();
    }
}

#[test]
fn a_frozen_holder_costs_its_shard_a_bounded_wait_and_the_others_nothing() {
    let scene = frozen("frozen");
    let (held, beside) = scene.indices();
    assert_eq!(scene.store.stuck(), []);
    let begun = Instant::now();
    let new = page(Fill::Text, held.into(), 2, 4096);
    scene.assert_busy(scene.pool.put(&oid(1), &[(held, &new)]));
    assert!(begun.elapsed() >= PATIENCE);
    assert_eq!(
        scene.store.stuck(),
        [(Lock::Shard(scene.held), Some(scene.other.id()))]
    );
    // Once it was waited for in vain, the others wait briefly.
    let begun = Instant::now();
    for _ in 0..3 {
        scene.assert_busy(scene.pool.flush(&oid(1), &[held]));
    }
    assert!(begun.elapsed() < 3 * PATIENCE);
    scene.assert_busy(
        scene
            .pool
            .get(&oid(1), &[held], &mut [&mut [0; 4096]], true),
    );
    scene.assert_busy(scene.pool.freeze());
    assert!(!scene.pool.frozen().unwrap());
    // A batch takes nothing out, or an error would lose it; a pool that gives its pages up has misses.
    let indices: Vec<u32> = (0..2000).step_by(64).collect();
    scene.assert_busy(get_all(&scene.pool, &indices));
    let private = scene.store.find_pool("private").unwrap().unwrap();
    waiting_at_most(Some(Duration::ZERO));
    let first = indices
        .iter()
        .position(|&index| private.has(&oid(1), index, 1).is_ok());
    waiting_at_most(None);
    let got = get_all(&private, &indices[first.unwrap()..]).unwrap();
    assert!(got.contains(&Fetch::Hit) && got.contains(&Fetch::Miss));
    // The care of the store goes around it, and the others are served.
    scene.store.stats().unwrap();
    scene.store.compact().unwrap();
    scene.store.relinquish(1 << 20).unwrap();
    assert_eq!(version(&scene.pool, 1, beside, beside.into()), Some(1));
    let another = Store::attach_waiting(&scene.file.0, false, PATIENCE).unwrap();
    let pool = another.find_pool("p").unwrap().unwrap();
    assert!(stored(put(
        &pool,
        1,
        beside,
        &page(Fill::Text, beside.into(), 3, 4096)
    )));
    // Nothing was changed, and it goes on when the other does.
    signal(&scene.other, "-CONT");
    let begun = Instant::now();
    while scene.pool.has(&oid(1), held, 1).is_err() {
        assert!(begun.elapsed() < GENEROUS);
    }
    for index in indices.iter().filter(|index| **index != beside) {
        assert_eq!(version(&scene.pool, 1, *index, u64::from(*index)), Some(1));
    }
    assert_eq!(
        get_all(&scene.pool, &indices).unwrap(),
        vec![Fetch::Hit; indices.len()]
    );
    assert_eq!(scene.pool.has(&oid(1), held, 1).unwrap(), [false]);
}

fn get_all(pool: &Pool, indices: &[u32]) -> tmem_core::Result<Vec<Fetch>> {
    let mut bytes = vec![0; 4096 * indices.len()];
    let mut into: Vec<&mut [u8]> = bytes.chunks_mut(4096).collect();
    pool.get(&oid(1), indices, &mut into, true)
}

#[test]
fn a_frozen_holder_that_is_killed_is_recovered_from_at_once() {
    let mut scene = frozen("killed");
    let (held, _) = scene.indices();
    let before = stat(&scene.store, "lock_recoveries");
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let store = Store::attach_waiting(&scene.file.0, false, GENEROUS).unwrap();
            let pool = store.find_pool("p").unwrap().unwrap();
            put(&pool, 1, held, &page(Fill::Text, held.into(), 2, 4096))
        });
        while stat(&scene.store, "lock_recoveries") == before && !waits.is_finished() {
            signal(&scene.other, "-KILL");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(stored(waits.join().unwrap()));
    });
    scene.other.wait().unwrap();
    assert!(stat(&scene.store, "lock_recoveries") > before);
    assert_eq!(version(&scene.pool, 1, held, held.into()), Some(2));
    assert_sound(&scene.store);
}

/// Who attaches while another is frozen in doing so waits no longer than it is told to.
#[test]
fn a_frozen_attacher_holds_up_nobody_for_good() {
    let file = Scratch::new("attaching");
    drop(Store::open(&file.options(4 << 20, 1)).unwrap());
    let other = File::options()
        .read(true)
        .write(true)
        .open(&file.0)
        .unwrap();
    fixture::lock(&other, 0, libc::F_WRLCK);
    match Store::attach_waiting(&file.0, false, PATIENCE) {
        Err(Error::Busy {
            lock: Lock::Attaching,
            ..
        }) => {}
        other => panic!("{:?}", other.err()),
    }
    drop(other);
    Store::attach_waiting(&file.0, false, PATIENCE).unwrap();
}

#[path = "support/fixture.rs"]
mod fixture;
