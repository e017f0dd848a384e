//! Seeded random input to whatever takes bytes or arguments from outside, for a bounded time.
//!
//! Each fuzzer is this test binary, started again, which works through seeds and names each before it begins: so a crash, a
//! signal or a hang is a failure with its seed. `TMEM_FUZZ_SECONDS` is the time each takes (10); `TMEM_FUZZ_SEED` the first
//! seed, to see one again.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use support::{Fill, Random, Scratch, oid, page, read, setting, stored};
use tmem_core::{
    AllocatorKind, Codec, Compressor, Error, Fetch, Form, Kind, Oid, Pool, PoolSettings, Store,
    StoreOptions, checksum,
};

const CHILD: &str = "TMEM_FUZZ_CHILD";
/// No case takes this long, on however slow a machine.
const HANG: Duration = Duration::from_secs(60);

/// Run a fuzzer in a process of its own until its time is up.
fn drive(fuzzer: &str) {
    let first = setting("TMEM_FUZZ_SEED", 1);
    let mut child = Command::new(std::env::current_exe().expect("this test binary"))
        .args(["--exact", "child", "--nocapture", "--test-threads", "1"])
        .env(CHILD, fuzzer)
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("a fuzzer starts");
    let (send, lines) = channel();
    let stderr = BufReader::new(child.stderr.take().expect("piped"));
    std::thread::spawn(move || {
        stderr
            .split(b'\n')
            .map_while(Result::ok)
            .try_for_each(|line| send.send(line))
    });
    let (mut seed, mut cases, mut words) = (first, 0, String::new());
    let end = loop {
        match lines.recv_timeout(HANG) {
            Ok(line) => match String::from_utf8_lossy(&line) {
                line if line.starts_with("case ") => {
                    seed = line[5..].parse().expect("a seed");
                    cases += 1;
                }
                line => words = words + &line + "\n",
            },
            Err(RecvTimeoutError::Timeout) => {
                child.kill().expect("it hangs, and can be killed");
                break "hangs".to_owned();
            }
            Err(RecvTimeoutError::Disconnected) => break String::new(),
        }
    };
    let status = child.wait().expect("it is our child");
    assert!(
        status.success() && end.is_empty(),
        "{fuzzer}: TMEM_FUZZ_SEED={seed} {end} {status}\n{words}"
    );
    println!("{fuzzer}: {cases} cases");
    assert!(cases > 0);
}

/// What the process of a fuzzer does.
#[test]
fn child() {
    let Ok(fuzzer) = std::env::var(CHILD) else {
        return;
    };
    let end = Instant::now() + Duration::from_secs(setting("TMEM_FUZZ_SECONDS", 10));
    let mut case: Box<dyn FnMut(u64)> = match fuzzer.as_str() {
        "attach" => Box::new(attach_fuzzer()),
        "hostile" => Box::new(hostile_fuzzer()),
        "blocks" => Box::new(blocks),
        _ => Box::new(calls),
    };
    for seed in setting("TMEM_FUZZ_SEED", 1).. {
        std::io::stderr()
            .write_all(format!("case {seed}\n").as_bytes())
            .expect("the parent listens");
        case(seed);
        if Instant::now() > end {
            break;
        }
    }
}

/// An arena damaged anywhere is refused, or gives a store that gives right pages, misses and errors, and nothing else.
#[test]
fn a_damaged_arena_is_refused_or_works() {
    drive("attach");
}

/// A neighbour that writes anything anywhere, locks and lists included, while a store is used, spoils pages and nothing else.
#[test]
fn a_hostile_neighbour_cannot_steer_a_store() {
    drive("hostile");
}

/// Whatever is handed in as a block decodes to the page that was checked, or to an error.
#[test]
fn blocks_of_any_bytes_are_decoded_or_refused() {
    drive("blocks");
}

/// Any sequence of calls, with any arguments, gives results or errors and leaves a sound store.
#[test]
fn calls_with_any_arguments_leave_a_sound_store() {
    drive("calls");
}

// --- damaged arenas ---

const OBJECTS: u64 = 4;
const PAGES: u32 = 40;
/// Where the superblock keeps the boot id and the hash seed, and where the first shard's dirty word lies (docs/design.md).
const BOOT: u64 = 56;
const SEED: u64 = 104;
const SHARDS: u64 = 4096 + 1024 * 256;
const DIRTY: u64 = SHARDS + 64;
const ADMIN: u64 = 128;

fn key(pool: usize, object: u64, index: u32) -> u64 {
    (pool as u64) << 20 | object << 12 | u64::from(index)
}

fn sorts() -> Vec<PoolSettings> {
    let sort = |kind, allocator, page_size| PoolSettings {
        allocator,
        page_size,
        inclusive: kind == Kind::Ephemeral,
        ..PoolSettings::new(kind)
    };
    vec![
        sort(Kind::Persistent, AllocatorKind::Zsmalloc, 4096),
        sort(Kind::Persistent, AllocatorKind::Zbud, 8192),
        sort(Kind::Ephemeral, AllocatorKind::Zsmalloc, 16384),
        sort(Kind::Ephemeral, AllocatorKind::Zbud, 4096),
        sort(Kind::Ephemeral, AllocatorKind::Zsmalloc, 131072),
    ]
}

/// Frames of an arena's file that are not all zeros.
struct Template {
    len: u64,
    frames: Vec<(u64, Vec<u8>)>,
}

impl Template {
    fn make(file: &Scratch) -> Template {
        drop(Store::open(&file.options(8 << 20, 2)).unwrap());
        let arena = std::fs::File::options()
            .read(true)
            .write(true)
            .open(&file.0)
            .unwrap();
        arena.write_all_at(&[7; 8], SEED).unwrap(); // so that a case can be seen again
        let store = Store::attach(&file.0, false).unwrap();
        for (at, settings) in sorts().into_iter().enumerate() {
            let pool = store.pool(&format!("pool {at}"), &settings).unwrap();
            for (object, index) in (0..OBJECTS).flat_map(|o| (0..PAGES).map(move |i| (o, i))) {
                let n = key(at, object, index);
                support::put(
                    &pool,
                    object,
                    index * 9,
                    &page(Fill::pick(n ^ n >> 5), n, 1, pool.page_size()),
                );
            }
            (0..PAGES)
                .step_by(3)
                .for_each(|i| _ = pool.flush(&oid(0), &[i * 9]).unwrap());
        }
        drop(store);
        let len = arena.metadata().unwrap().len();
        let mut frames = Vec::new();
        let mut chunk = vec![0; 1 << 20];
        for at in (0..len).step_by(1 << 20) {
            let got = arena.read_at(&mut chunk, at).unwrap();
            let used = chunk[..got]
                .chunks(4096)
                .enumerate()
                .filter(|(_, frame)| **frame != [0; 4096]);
            frames.extend(used.map(|(n, frame)| (at + n as u64 * 4096, frame.to_vec())));
        }
        Template { len, frames }
    }

    /// A word written where a neighbour can: into a lock as often as elsewhere.
    fn tamper(&self, arena: &std::fs::File, random: &mut Random) {
        let locks = [
            ADMIN,
            SHARDS,
            SHARDS + (self.len - SHARDS) / 2, // of two
        ];
        let at = locks[random.below(3) as usize];
        let word = match random.below(5) {
            0 => 0,
            1 => random.word() as u32,
            2 => random.below(8) as u32,
            3 => 1 << 31 | random.below(8) as u32,
            _ => return drop(self.damage(arena, random)),
        };
        arena.write_all_at(&word.to_le_bytes(), at).unwrap();
    }

    /// A file with the template's bytes, damaged.
    fn write(&self, file: &Scratch, random: &mut Random) -> Vec<String> {
        let arena = self.write_whole(file);
        match random.below(3) {
            0 => arena.write_all_at(&[0; 16], BOOT).unwrap(),
            1 => arena.write_all_at(&1u32.to_le_bytes(), DIRTY).unwrap(),
            _ => {}
        }
        (0..1 + random.below(6))
            .map(|_| self.damage(&arena, random))
            .collect()
    }

    /// A file with the template's bytes.
    fn write_whole(&self, file: &Scratch) -> std::fs::File {
        let _ = std::fs::remove_file(&file.0);
        let mut options = std::fs::File::options();
        options.write(true).create_new(true).mode(0o600);
        let arena = options.open(&file.0).unwrap();
        arena.set_len(self.len).unwrap();
        self.frames
            .iter()
            .for_each(|(at, bytes)| arena.write_all_at(bytes, *at).unwrap());
        arena
    }

    fn damage(&self, arena: &std::fs::File, random: &mut Random) -> String {
        let (at, frame) = &self.frames[random.below(self.frames.len() as u64) as usize];
        // Where there is something, mostly: zeros are dull.
        let mut within = random.below(1024) as usize * 4;
        if !random.chance(6) {
            let used = |w: &usize| frame[*w..*w + 4] != [0; 4];
            within = (within..4096).step_by(4).find(used).unwrap_or(within);
        }
        let word_at = |at: usize| u32::from_le_bytes(frame[at..at + 4].try_into().expect("4"));
        let (word, other) = (word_at(within), random.below(1024) as usize * 4);
        let new = match random.below(8) {
            0 => word ^ 1 << random.below(32),
            1 => 0,
            2 => u32::MAX,
            3 => random.word() as u32,
            4 => random.below(300) as u32,
            5 => word.wrapping_add(1),
            6 => {
                // Two neighbours change places: each is a good word, and the wrong one.
                let next = (within + 4) % 4096;
                arena
                    .write_all_at(&word.to_le_bytes(), at + next as u64)
                    .unwrap();
                word_at(next)
            }
            _ => word_at(other),
        };
        arena
            .write_all_at(&new.to_le_bytes(), at + within as u64)
            .unwrap();
        format!("{:#x}: {word:#x} -> {new:#x}", at + within as u64)
    }
}

fn attach_fuzzer() -> impl FnMut(u64) {
    let template = Template::make(&Scratch::new("fuzz-template"));
    let file = Scratch::new("fuzz-attach");
    move |seed| {
        let mut random = Random::new(seed);
        let damage = template.write(&file, &mut random);
        let tried = catch_unwind(AssertUnwindSafe(|| {
            if let Ok(store) = Store::attach(&file.0, false) {
                use_damaged(&store, &mut random);
                drop(store);
                if let Ok(store) = Store::attach(&file.0, false) {
                    use_damaged(&store, &mut random);
                }
            }
        }));
        assert!(tried.is_ok(), "seed {seed}: {damage:#?}");
    }
}

fn hostile_fuzzer() -> impl FnMut(u64) {
    let template = Template::make(&Scratch::new("fuzz-hostile-template"));
    let file = Scratch::new("fuzz-hostile");
    move |seed| {
        let mut random = Random::new(seed);
        template.write_whole(&file);
        let store = Store::attach_waiting(&file.0, false, Duration::from_millis(1)).unwrap();
        let arena = std::fs::File::options().write(true).open(&file.0).unwrap();
        let (done, mut own) = (AtomicBool::new(false), random.clone());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(SeqCst) {
                    template.tamper(&arena, &mut own);
                }
            });
            let _done = support::Finish(&done);
            use_hostile(&store, &mut random);
        });
        drop(store);
        let _ = Store::attach_waiting(&file.0, false, Duration::from_millis(1));
    }
}

/// Every operation, whatever comes of it.
fn use_hostile(store: &Store, random: &mut Random) {
    for _ in 0..30 {
        let name = format!("pool {}", random.below(5));
        let (object, index) = (oid(random.below(OBJECTS)), random.below(360) as u32);
        let Ok(Some(pool)) = store.find_pool(&name) else {
            continue;
        };
        let mut pages = vec![3; pool.page_size() * 4];
        for _ in 0..30 {
            _ = match random.below(6) {
                0 | 1 => pool.put_range(&object, index, &pages).is_ok(),
                2 | 3 => pool
                    .get_range(&object, index, &mut pages, random.chance(4))
                    .is_ok(),
                4 => pool.flush(&object, &[index, index + 70]).is_ok(),
                _ => pool.flush_object(&object).is_ok(),
            };
        }
    }
    let _ = (store.compact(), store.check(), store.stats());
}

/// Every operation, with no result but a page that was put under that very key.
fn use_damaged(store: &Store, random: &mut Random) {
    let _ = (store.stats(), store.options());
    let early = random.chance(2);
    if early {
        let _ = store.check();
    }
    for pool in store.pools().unwrap_or_default() {
        let Some(at) = pool
            .name()
            .strip_prefix("pool ")
            .and_then(|at| at.parse::<usize>().ok())
        else {
            continue;
        };
        let _ = (pool.stats(), pool.settings(), pool.frozen());
        (0..OBJECTS).for_each(|object| (0..PAGES).for_each(|index| look(&pool, at, object, index)));
        for _ in 0..60 {
            let (object, index) = (
                random.below(OBJECTS + 3),
                random.below(u64::from(PAGES)) as u32,
            );
            let n = key(at, object, index);
            match random.below(8) {
                0..=4 => {
                    let bytes = page(Fill::pick(random.word()), n, 2, pool.page_size());
                    let outcome = pool.put(&oid(object), &[(index * 9, &bytes)]);
                    if !outcome.is_ok_and(|outcomes| stored(outcomes[0])) {
                        continue;
                    }
                    look(&pool, at, object, index);
                }
                5 => _ = pool.flush(&oid(object), &[index * 9]),
                6 => _ = pool.has(&oid(object), 0, 400),
                _ => _ = pool.flush_object(&oid(object)),
            }
        }
    }
    let _ = (store.compact(), store.relinquish(random.below(4 << 20)));
    let faults = store.check();
    if random.chance(2) {
        store
            .pools()
            .unwrap_or_default()
            .iter()
            .for_each(|pool| _ = pool.destroy());
    }
    drop((faults, store.check(), store.stats()));
}

fn look(pool: &Pool, at: usize, object: u64, index: u32) {
    let mut bytes = vec![0; pool.page_size()];
    let fetched = pool.get(&oid(object), &[index * 9], &mut [&mut bytes], false);
    if fetched.is_ok_and(|fetched| fetched[0] == Fetch::Hit) {
        let of = read(&bytes).map(|(of, _)| of);
        assert_eq!(
            of,
            Some(key(at, object, index)),
            "object {object} page {index} of pool {at} gives wrong bytes"
        );
    }
}

// --- blocks ---

fn blocks(seed: u64) {
    let mut random = Random::new(seed);
    let size = 4096 << random.below(7);
    let store = support::store(8 << 20, 1);
    let pool = store
        .pool(
            "p",
            &PoolSettings {
                page_size: size,
                ..PoolSettings::new(Kind::Persistent)
            },
        )
        .unwrap();
    let mut compressor = Compressor::new();
    for n in 0..40 {
        let (form, block) = some_block(&mut random, &mut compressor, size as usize);
        let mut page = vec![0xa5; size as usize];
        let decoded = compressor.decode(form, &block, &mut page).is_ok();
        if form != Form::Lz4 && form != Form::Same {
            continue;
        }
        let whole = decoded && form == Form::Lz4;
        match pool.put_lz4(&oid(1), &[(n, &block)]) {
            Ok(outcomes) if stored(outcomes[0]) => {
                let kept = support::get(&pool, 1, n).expect("stored");
                assert!(
                    !whole || kept == page,
                    "seed {seed}: what is kept is not what the block decodes to"
                );
            }
            Ok(_) => {}
            Err(Error::Invalid(_)) => assert!(!whole, "seed {seed}: a good block is refused"),
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
    support::assert_sound(&store);
}

fn some_block(random: &mut Random, compressor: &mut Compressor, size: usize) -> (Form, Vec<u8>) {
    let bytes = page(Fill::pick(random.word()), 1, random.below(1 << 20), size);
    let codec = if random.chance(2) {
        Codec::Lz4 { acceleration: 1 }
    } else {
        Codec::Zstd { level: 1 }
    };
    let mut block = vec![0; size];
    let encoded = compressor.encode(codec, &bytes, size, &mut block);
    assert_eq!(encoded.checksum, checksum(&bytes));
    block.truncate(encoded.len as usize);
    for _ in 0..random.below(4) {
        mutate(random, &mut block);
    }
    (encoded.form, block)
}

fn mutate(random: &mut Random, block: &mut Vec<u8>) {
    let at = random.below(block.len() as u64) as usize;
    match random.below(6) {
        0 => block.truncate(at),
        1 => block.extend((0..random.below(300)).map(|n| n as u8)),
        2 if !block.is_empty() => block[at] = random.word() as u8,
        3 if !block.is_empty() => block[at] = 0xff,
        4 => {
            *block = (0..random.below(70_000))
                .map(|_| random.word() as u8)
                .collect()
        }
        _ => block.splice(at..at, [0xff; 8]).for_each(drop),
    }
}

// --- calls ---

fn calls(seed: u64) {
    let mut random = Random::new(seed);
    let options = StoreOptions {
        memory: extreme(&mut random) % (24 << 20),
        shards: [None, Some(0), Some(1), Some(3), Some(16)][random.below(5) as usize],
        accept_threshold: (extreme(&mut random) % 130) as u32,
        ..StoreOptions::default()
    };
    let Ok(store) = Store::open(&options) else {
        return;
    };
    let mut pools: Vec<Pool> = Vec::new();
    for _ in 0..80 {
        if pools.is_empty() || random.chance(6) {
            pools.extend(store.pool(&some_name(&mut random), &some_settings(&mut random)));
            continue;
        }
        let pool = pools[random.below(pools.len() as u64) as usize].clone();
        let tried = call(&mut random, &store, &pool);
        assert!(
            !matches!(tried, Err(Error::Damaged { .. } | Error::Arena { .. })),
            "seed {seed}: {tried:?}"
        );
    }
    support::assert_sound(&store);
}

/// Numbers at which things break.
fn extreme(random: &mut Random) -> u64 {
    let near = [
        0,
        1,
        63,
        64,
        4095,
        4096,
        1 << 20,
        16 << 20,
        1 << 31,
        u64::from(u32::MAX),
        1 << 32,
        1 << 62,
        u64::MAX,
    ];
    let base = near[random.below(near.len() as u64) as usize];
    match random.below(4) {
        0 => random.word(),
        1 => base.wrapping_sub(random.below(3)),
        2 => base.wrapping_add(random.below(3)),
        _ => random.below(base.saturating_add(1).min(1 << 40)),
    }
}

fn some_name(random: &mut Random) -> String {
    let names = ["", "a", "b", "ä€", "\0"];
    match random.below(6) {
        5 => "x".repeat(random.below(80) as usize),
        n => names[n as usize].to_owned(),
    }
}

fn some_settings(random: &mut Random) -> PoolSettings {
    let number = |random: &mut Random| extreme(random) as u32;
    PoolSettings {
        codec: match random.below(4) {
            0 => Codec::Lz4 {
                acceleration: if random.chance(2) { 1 } else { number(random) },
            },
            1 => Codec::Zstd {
                level: number(random) as i32 % 24,
            },
            2 => Codec::Lz4hc {
                level: number(random) as i32 % 16,
            },
            _ => Codec::Raw,
        },
        allocator: if random.chance(2) {
            AllocatorKind::Zbud
        } else {
            AllocatorKind::Zsmalloc
        },
        page_size: if random.chance(4) {
            number(random)
        } else {
            4096 << random.below(7)
        },
        quota: if random.chance(2) { 0 } else { extreme(random) },
        weight: number(random),
        shared: random.chance(4),
        inclusive: random.chance(4),
        max_zpage: if random.chance(3) { number(random) } else { 0 },
        owner: some_name(random),
        ..PoolSettings::new(if random.chance(2) {
            Kind::Persistent
        } else {
            Kind::Ephemeral
        })
    }
}

fn call(random: &mut Random, store: &Store, pool: &Pool) -> Result<(), Error> {
    let object = Oid([random.below(3) as u8 * 0x7f; 24]);
    let (first, count) = (extreme(random) as u32, random.below(130) as u32);
    let size = pool.page_size();
    let index = |i: u32| first.wrapping_add(i.wrapping_mul(7));
    match random.below(16) {
        0..=4 => {
            let one = page(Fill::pick(random.word()), 1, 1, size);
            let odd = random.chance(10);
            let pages: Vec<(u32, &[u8])> = (0..count % 20)
                .map(|i| (index(i), &one[..size - usize::from(odd)]))
                .collect();
            let outcomes = pool.put(&object, &pages);
            assert!(
                !odd || pages.is_empty() || outcomes.is_err(),
                "a short page was taken"
            );
            outcomes.map(drop)
        }
        5 => pool
            .put_range(
                &object,
                first,
                &vec![7; (count as usize % 9) * size + random.below(2) as usize],
            )
            .map(drop),
        6 => pool
            .put_lz4(
                &object,
                &[(
                    first,
                    &vec![random.word() as u8; extreme(random) as usize % 200_000],
                )],
            )
            .map(drop),
        7 | 8 => pool
            .get_range(
                &object,
                first,
                &mut vec![1; (count as usize % 9) * size],
                random.chance(3),
            )
            .map(drop),
        9 => {
            let indices: Vec<u32> = (0..count).map(index).collect();
            let mut bytes = vec![0; size * indices.len()];
            let mut into: Vec<&mut [u8]> = bytes.chunks_mut(size).collect();
            pool.get(&object, &indices, &mut into, random.chance(3))
                .map(drop)
        }
        10 => pool
            .has(&object, first, (extreme(random) % 100_000) as u32)
            .map(drop),
        11 => pool
            .flush(&object, &(0..count).map(index).collect::<Vec<u32>>())
            .map(drop),
        12 => pool.flush_object(&object).map(drop),
        13 => match random.below(5) {
            0 => pool.set_quota(extreme(random)),
            1 => pool.set_weight(extreme(random) as u32),
            2 => pool.freeze(),
            3 => pool.thaw(),
            _ => pool.destroy().map(drop),
        },
        14 => store.resize(extreme(random)),
        _ => match random.below(3) {
            0 => store.compact().map(drop),
            1 => store.relinquish(extreme(random)).map(drop),
            _ => store.stats().and(pool.stats()).map(drop),
        },
    }
}
