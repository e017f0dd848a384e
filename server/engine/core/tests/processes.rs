//! Two writers and a reader on one arena, killed at random instants: nothing acknowledged is lost, and the others go on.
//!
//! Each worker is this test binary, started again. A writer says what it is about to do, does it, and says that it was
//! acknowledged; so for every page the parent knows the versions it may have. A worker is killed after a random number of
//! lines, the parent verifies its pages through its own attachment while the others go on, and a new worker takes its
//! place. `TMEM_KILLS` is the number of kills (30).

mod support;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use support::{Fill, Random, Scratch, oid, page, read, setting, stat, stored};
use tmem_core::{AllocatorKind, Kind, Pool, PoolSettings, Store};

const CHILD: &str = "TMEM_SOAK_WORKER";
const OBJECTS: u64 = 3;
const PAGES: u32 = 150;

/// Worker, pool, object, index.
type Key = (u64, usize, u64, u32);

fn number((worker, pool, object, index): Key) -> u64 {
    worker << 24 | (pool as u64) << 20 | object << 16 | u64::from(index)
}

/// Every worker has its own objects, in the same pools and shards.
fn object_of(worker: u64, object: u64) -> u64 {
    worker * 100 + object
}

fn pools(store: &Store) -> Vec<Pool> {
    let sorts = [
        (Kind::Persistent, AllocatorKind::Zsmalloc),
        (Kind::Persistent, AllocatorKind::Zbud),
        (Kind::Ephemeral, AllocatorKind::Zsmalloc),
    ];
    let open = |(at, (kind, allocator)): (usize, (Kind, AllocatorKind))| {
        let settings = PoolSettings {
            allocator,
            inclusive: kind == Kind::Ephemeral,
            ..PoolSettings::new(kind)
        };
        store
            .pool(&format!("pool {at}"), &settings)
            .expect("a pool")
    };
    sorts.into_iter().enumerate().map(open).collect()
}

// --- the workers ---

fn say(line: &str) {
    // One write, so that a line is told whole or not at all.
    std::io::stderr()
        .write_all(format!("{line}\n").as_bytes())
        .expect("the parent listens");
}

/// What a worker process does until it is killed.
#[test]
fn worker() {
    let Ok(order) = std::env::var(CHILD) else {
        return;
    };
    let words: Vec<&str> = order.split(' ').collect();
    let [path, role, worker, seed] = words[..] else {
        panic!("{order}")
    };
    let (worker, seed) = (worker.parse().unwrap(), seed.parse().unwrap());
    let store = Store::attach(std::path::Path::new(path), false).expect("the arena is there");
    match role {
        "write" => write(&store, worker, seed),
        _ => watch(&store, seed),
    }
}

/// Operations on this worker's own keys, each announced and acknowledged.
fn write(store: &Store, worker: u64, seed: u64) {
    let (pools, mut random) = (pools(store), Random::new(seed));
    for version in seed * 100_000.. {
        let at = random.below(pools.len() as u64) as usize;
        let (pool, object) = (&pools[at], random.below(OBJECTS));
        let first = random.below(u64::from(PAGES)) as u32;
        let count = (1 + random.below(64) as u32).min(PAGES - first);
        let name = oid(object_of(worker, object));
        let tell = |verb: &str| {
            say(&format!(
                "begin {verb} {at} {object} {first} {count} {version}"
            ))
        };
        match random.below(20) {
            0..=13 => {
                tell("put");
                let key = |index| number((worker, at, object, index));
                let data: Vec<u8> = (first..first + count)
                    .flat_map(|i| page(Fill::pick(random.word()), key(i), version, 4096))
                    .collect();
                let outcomes = pool.put_range(&name, first, &data).expect("a put");
                say(&format!(
                    "done {}",
                    outcomes
                        .into_iter()
                        .map(|o| if stored(o) { 's' } else { 'r' })
                        .collect::<String>()
                ));
            }
            14 | 15 => {
                tell("flush");
                pool.flush(&name, &(first..first + count).collect::<Vec<u32>>())
                    .expect("a flush");
                say("done");
            }
            16 => {
                say(&format!("begin flush {at} {object} 0 {PAGES} {version}"));
                pool.flush_object(&name).expect("a flush");
                say("done");
            }
            17 => {
                tell("flush"); // an exclusive get takes what it returns
                pool.get_range(&name, first, &mut vec![0; 4096 * count as usize], true)
                    .expect("a get");
                say("done");
            }
            18 => {
                _ = store.compact().expect("compaction");
                _ = store.relinquish(256 << 10).expect("relinquish");
            }
            _ => {
                let scratch = store
                    .pool(
                        &format!("scratch {worker}"),
                        &PoolSettings::new(Kind::Persistent),
                    )
                    .expect("a pool");
                scratch
                    .put_range(&name, 0, &page(Fill::Text, 1, version, 4096).repeat(3))
                    .expect("a put");
                scratch.destroy().expect("it is ours alone");
            }
        }
    }
}

/// Read everybody's pages; versions of a key never go back.
fn watch(store: &Store, seed: u64) {
    let (pools, mut random) = (pools(store), Random::new(seed));
    let mut seen: HashMap<u64, u64> = HashMap::new();
    for turn in 0u64.. {
        let (worker, at) = (random.below(2), random.below(3) as usize);
        let (object, first) = (
            random.below(OBJECTS),
            random.below(u64::from(PAGES - 8)) as u32,
        );
        let mut bytes = vec![0; 8 * 4096];
        let fetched = pools[at]
            .get_range(&oid(object_of(worker, object)), first, &mut bytes, false)
            .expect("a get");
        for (i, (fetched, bytes)) in fetched.into_iter().zip(bytes.chunks(4096)).enumerate() {
            let key = number((worker, at, object, first + i as u32));
            match (fetched, read(bytes)) {
                (tmem_core::Fetch::Miss, _) => {}
                (tmem_core::Fetch::Hit, Some((of, version))) if of == key => {
                    let newest = seen.entry(key).or_default();
                    if version < *newest {
                        say(&format!(
                            "fault key {key:#x}: version {version} after {newest}"
                        ));
                    }
                    *newest = version;
                }
                other => say(&format!("fault key {key:#x}: {other:?}")),
            }
        }
        if turn % 8 == 0 {
            say("turn");
        }
    }
}

// --- the parent ---

/// What a key may hold: versions, 0 for none.
type May = HashMap<Key, Vec<u64>>;

#[derive(Default)]
struct Told {
    may: May,
    /// The operation begun and not yet acknowledged.
    open: Option<(bool, Vec<Key>, u64)>,
    lines: u64,
    faults: Vec<String>,
}

impl Told {
    fn hear(&mut self, worker: u64, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["begin", verb, at, object, first, count, version] => {
                let n = |text: &str| text.parse::<u64>().expect("a number");
                let key = |i: u64| (worker, n(at) as usize, n(object), (n(first) + i) as u32);
                self.begin(verb == "put", (0..n(count)).map(key).collect(), n(version));
            }
            ["done"] => self.finish(None),
            ["done", outcomes] => self.finish(Some(outcomes)),
            ["turn"] => {}
            ["fault", ..] => self.faults.push(line.to_owned()),
            _ => return, // the test harness's own words
        }
        self.lines += 1;
    }

    fn begin(&mut self, put: bool, keys: Vec<Key>, version: u64) {
        for key in &keys {
            let may = self.may.entry(*key).or_insert_with(|| vec![0]);
            may.push(if put { version } else { 0 });
        }
        self.open = Some((put, keys, version));
    }

    fn finish(&mut self, outcomes: Option<&str>) {
        let (put, keys, version) = self.open.take().expect("what is done was begun");
        let mut outcomes = outcomes.unwrap_or_default().chars();
        for key in keys {
            let kept = put && outcomes.next() == Some('s');
            self.may.insert(key, vec![if kept { version } else { 0 }]);
        }
    }
}

struct Worker {
    child: Child,
    told: Arc<Mutex<Told>>,
    listener: std::thread::JoinHandle<()>,
    id: u64,
    writes: bool,
}

impl Worker {
    /// Start a worker whose told state goes on from an earlier one's; `due` says when it is to be killed.
    fn start(
        path: &std::path::Path,
        id: u64,
        writes: bool,
        seed: u64,
        told: Arc<Mutex<Told>>,
    ) -> Worker {
        let role = if writes { "write" } else { "read" };
        let mut child = Command::new(std::env::current_exe().expect("this test binary"))
            .args(["--exact", "worker", "--nocapture", "--test-threads", "1"])
            .env(CHILD, format!("{} {role} {id} {seed}", path.display()))
            .env("RUST_BACKTRACE", "0")
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("a worker starts");
        let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let heard = told.clone();
        let listener = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if line.contains("panicked") {
                    heard.lock().unwrap().faults.push(line);
                } else {
                    heard.lock().unwrap().hear(id, &line);
                }
            }
        });
        Worker {
            child,
            told,
            listener,
            id,
            writes,
        }
    }

    /// Wait for so many more lines, then kill at whatever the worker is doing.
    fn kill_after(mut self, lines: u64) -> Arc<Mutex<Told>> {
        let heard = || self.told.lock().unwrap().lines;
        let due = heard() + lines;
        while heard() < due {
            assert!(
                !self.listener.is_finished(),
                "worker {} died by itself: {:?}",
                self.id,
                self.told.lock().unwrap().faults
            );
            std::thread::yield_now();
        }
        self.child.kill().expect("a worker can be killed");
        self.child.wait().expect("it is our child");
        self.listener.join().expect("its last words are heard");
        self.told
    }
}

/// What the soak came to.
#[derive(Default, Debug, PartialEq)]
struct Tally {
    kills: u64,
    lost: u64,
    violations: u64,
}

struct Soak {
    store: Store,
    pools: Vec<Pool>,
    tally: Tally,
    /// Memory is short: a put may be refused, and leave nothing.
    tight: bool,
}

impl Soak {
    /// Whether every page of a dead writer is as it was told.
    fn verify(&mut self, told: &mut Told) {
        for (&key, may) in &mut told.may {
            let (worker, at, object, index) = key;
            let held = support::get(&self.pools[at], object_of(worker, object), index)
                .map(|bytes| read(&bytes));
            let version = match held {
                None => 0,
                Some(Some((of, version))) if of == number(key) => version,
                Some(other) => {
                    println!("{key:?} holds {other:?}");
                    u64::MAX
                }
            };
            let excused = version == 0 && (at == 2 || self.tight && may.len() > 1);
            if !may.contains(&version) && !excused {
                println!("{key:?} is at version {version}, and may be at {may:?}");
                self.tally.lost += 1;
            }
            *may = vec![version];
        }
        told.open = None;
        for fault in told.faults.drain(..) {
            println!("{fault}");
            self.tally.violations += 1;
        }
        for fault in self.store.check().expect("the others go on") {
            println!("{fault}");
            self.tally.violations += 1;
        }
        let (used, memory) = (
            stat(&self.store, "used_bytes"),
            stat(&self.store, "memory_bytes"),
        );
        // Other workers are committing while this is read, so what is tried and taken back shows.
        self.tally.violations += u64::from(used > memory + (1 << 20));
    }
}

/// Most kills beyond those asked for, until one has hit a shard at work.
const MORE: u64 = 600;

fn soak(name: &str, memory: u64, tight: bool, kills: u64) -> Tally {
    let file = Scratch::new(name);
    let store = Store::open(&file.options(memory, 2)).unwrap();
    let pools = pools(&store);
    let mut soak = Soak {
        store,
        pools,
        tally: Tally::default(),
        tight,
    };
    let mut random = Random::new(setting("TMEM_SEED", 1) + memory);
    let next = AtomicU64::new(1);
    let start = |id, told| {
        Worker::start(
            &file.0,
            id,
            id < 2,
            next.fetch_add(1, SeqCst) % 40_000,
            told,
        )
    };
    let mut workers: Vec<Worker> = (0..3).map(|id| start(id, Arc::default())).collect();
    // A kill hits a worker that holds a lock once in a while: go on until one has.
    let untested = |store: &Store| kills >= 15 && stat(store, "recoveries") == 0;
    let mut killed = 0;
    while killed < kills || killed < kills + MORE && untested(&soak.store) {
        killed += 1;
        let victim = workers.remove(if random.chance(8) {
            2
        } else {
            random.below(2) as usize
        });
        let (id, lines) = (
            victim.id,
            1 + random.below(if victim.writes { 60 } else { 10 }),
        );
        let told = victim.kill_after(lines);
        soak.tally.kills += 1;
        soak.verify(&mut told.lock().unwrap());
        workers.insert(id as usize, start(id, told));
    }
    for worker in workers {
        let told = worker.kill_after(2);
        soak.verify(&mut told.lock().unwrap());
    }
    let recoveries = stat(&soak.store, "recoveries");
    println!(
        "{name}: {recoveries} shards rebuilt, {} of them from a lock whose owner died",
        stat(&soak.store, "lock_recoveries")
    );
    assert!(kills < 15 || recoveries > 0, "no kill hit a shard at work");
    for pool in soak.pools {
        pool.destroy().unwrap();
    }
    drop(soak.store);
    // Whoever attaches next drops what killed workers were destroying.
    let store = Store::attach(&file.0, false).unwrap();
    // A worker killed before it came to that has left its pool, with none to three pages in it.
    let left = store.pools().unwrap();
    assert!(stat(&store, "pages") <= left.len() as u64 * 3);
    for pool in left {
        pool.destroy().unwrap();
    }
    assert_eq!(stat(&store, "pages"), 0);
    support::assert_sound(&store);
    soak.tally
}

#[test]
fn crash_soak() {
    let kills = setting("TMEM_KILLS", 30);
    let roomy = soak("roomy", 64 << 20, false, kills.div_ceil(2));
    let tight = soak("tight", 3 << 20, true, kills / 2);
    let (lost, violations) = (roomy.lost + tight.lost, roomy.violations + tight.violations);
    println!(
        "kills {} lost {lost} violations {violations}",
        roomy.kills + tight.kills
    );
    assert_eq!((lost, violations), (0, 0));
}
