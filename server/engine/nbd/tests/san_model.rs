//! The gateway against a reference image, whatever happens to the cache, the gateway and the volume: every block is right.

#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/san.rs"]
#[allow(dead_code)]
mod san;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use san::{Cache, Host, LONG, Lagging, PAGE, Random, read, settings, write};
use tempfile::TempDir;
use tmem_nbd::client::{Client, Command};
use tmem_nbd::san::{Register, Volume};

const PAGES: usize = 512;
/// Clients at once; each owns every so manyth page, so that they meet in all stripes.
const USERS: usize = 3;

/// The reference, and what changes and checks the volume by it.
struct User {
    number: usize,
    image: Vec<u8>,
    random: Random,
}

impl User {
    fn offset(&mut self) -> usize {
        // Most of what is done is done to a few pages, so that it meets.
        let hot = self.random.below(4) > 0;
        let page = self
            .random
            .below(if hot { 30 } else { (PAGES / USERS) as u64 - 1 }) as usize;
        (page * USERS + self.number) * PAGE
    }

    fn step(&mut self, client: &Client) {
        let offset = self.offset();
        let start = self.random.below(PAGE as u64) as usize;
        let (from, to) = match self.random.below(3) {
            0 => (offset + start, offset + PAGE),
            _ => (offset, offset + PAGE),
        };
        match self.random.below(12) {
            0..2 => {
                let byte = self.random.below(255) as u8;
                let data: Vec<u8> = (from..to).map(|at| byte ^ (at / 64) as u8).collect();
                write(client, from as u64, &data);
                self.image[from..to].copy_from_slice(&data);
            }
            2 => {
                let (offset, length) = (from as u64, (to - from) as u32);
                let zero = Command::WriteZeroes {
                    offset,
                    length,
                    no_hole: false,
                };
                client.call(zero, LONG).unwrap();
                self.image[from..to].fill(0);
            }
            3 => self.walk(client, offset),
            _ => self.check(client, from, to),
        }
    }

    /// Read some pages in a row, so that the next ones are read ahead, and then those that are this user's.
    fn walk(&self, client: &Client, offset: usize) {
        let pages = offset / PAGE..PAGES.min(offset / PAGE + 12);
        for page in pages.clone() {
            match page % USERS == self.number {
                true => self.check(client, page * PAGE, (page + 1) * PAGE),
                false => drop(read(client, (page * PAGE) as u64, PAGE)),
            }
        }
    }

    fn check(&self, client: &Client, from: usize, to: usize) {
        let found = read(client, from as u64, to - from).unwrap();
        if found != self.image[from..to] {
            let at = from
                + found
                    .iter()
                    .zip(&self.image[from..to])
                    .take_while(|(a, b)| a == b)
                    .count();
            panic!(
                "user {}: byte {at} of page {} is wrong",
                self.number,
                at / PAGE
            );
        }
    }

    fn check_all(&self, client: &Client) {
        for page in (self.number..PAGES).step_by(USERS) {
            self.check(client, page * PAGE, (page + 1) * PAGE);
        }
    }
}

/// What happens to the cache while users are at work.
fn trouble(cache: &mut Cache, random: &mut Random) {
    match random.below(16) {
        0 => cache.proxy.cut(),
        1 => cache.proxy.hold(),
        2 => cache.proxy.hold_all(),
        3 => cache.proxy.delay(Duration::from_micros(random.below(3000))),
        4 => {
            cache.store.relinquish(1 << 20).unwrap();
        }
        5 => {
            cache.kill();
            thread::sleep(Duration::from_millis(random.below(50)));
            cache.resume();
        }
        6 => cache.pool.freeze().unwrap(),
        _ => {
            cache.proxy.release();
            cache.proxy.delay(Duration::ZERO);
            cache.pool.thaw().unwrap();
        }
    }
    thread::sleep(Duration::from_millis(random.below(60)));
}

fn at_work(host: &Host, users: &mut [User], cache: &mut Cache, random: &mut Random, rounds: u32) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for user in users.iter_mut() {
            let (client, over) = (host.connect(), &over);
            scope.spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    user.step(&client);
                }
            });
        }
        (0..rounds).for_each(|_| trouble(cache, random));
        over.store(true, Ordering::SeqCst);
    });
    cache.proxy.release();
    cache.proxy.delay(Duration::ZERO);
    cache.pool.thaw().unwrap();
    let client = host.connect();
    users.iter().for_each(|user| user.check_all(&client));
}

/// Write to the volume behind the gateway's back.
fn meddle(path: &Path, users: &mut [User]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().write(true).open(path).unwrap();
    for user in users {
        let offset = user.offset();
        user.image[offset..offset + PAGE].fill(0xee);
        file.write_all_at(&[0xee; PAGE], offset as u64).unwrap();
    }
}

#[test]
fn every_block_is_right_whatever_happens() {
    let directory = TempDir::new().unwrap();
    let (path, state) = (
        directory.path().join("volume"),
        directory.path().join("state"),
    );
    std::fs::write(&path, vec![0; PAGES * PAGE]).unwrap();
    let mut cache = Cache::start(4 << 20, false);
    let mut random = Random(std::env::var("SEED").map_or(1, |seed| seed.parse().unwrap()));
    let mut users: Vec<User> = (0..USERS)
        .map(|number| User {
            number,
            image: vec![0; PAGES * PAGE],
            random: Random(random.below(1 << 30)),
        })
        .collect();
    let (mut warm, mut hits, mut expect) = (0, 0, None);
    let mut told = Vec::new();
    let rounds = std::env::var("ROUNDS").map_or(8, |rounds| rounds.parse().unwrap());
    for round in 0..rounds {
        let mut settings = settings(&cache, Some(&state));
        settings.readahead *= round % 2;
        let host = Host::start(Lagging::open(&path, 2000), settings);
        if let Some(expect) = expect {
            assert_eq!(host.gateway.is_warm(), expect);
        }
        warm += u32::from(host.gateway.is_warm());
        assert!(
            host.gateway.wait_cache(LONG),
            "{:?}",
            host.gateway.status().cache_down
        );
        at_work(&host, &mut users, &mut cache, &mut random, 12);
        hits += host.count("hit_pages");
        told.push(host.gateway.status());
        expect = match random.below(3) {
            0 => {
                host.crash();
                Some(false)
            }
            choice => {
                assert!(
                    host.gateway.wait_cache(LONG),
                    "{:?}",
                    host.gateway.status().cache_down
                );
                assert!(host.detach());
                if choice == 1 {
                    meddle(&path, &mut users);
                }
                Some(choice != 1)
            }
        };
    }
    println!("{warm} warm starts, {hits} hits");
    assert!(hits > 500, "the cache was hardly used: {told:#?}");
}

/// A volume full of ones, in a directory that goes with the test.
fn ones() -> (TempDir, PathBuf) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("volume");
    std::fs::write(&path, vec![1; PAGES * PAGE]).unwrap();
    (directory, path)
}

#[test]
fn a_put_that_was_given_up_lands_nowhere() {
    let (_directory, path) = ones();
    let cache = Cache::start(16 << 20, false);
    let host = Host::start(Lagging::open(&path, 0), settings(&cache, None));
    assert!(host.gateway.wait_cache(LONG));
    let client = host.connect();
    cache.proxy.hold(); // the put of page 5 is on its way
    assert_eq!(read(&client, 5 * PAGE as u64, PAGE).unwrap(), [1; PAGE]);
    let deadline = Instant::now() + LONG;
    while host.count("sessions") < 2 {
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(1));
    }
    assert!(host.gateway.wait_cache(LONG));
    write(&client, 5 * PAGE as u64, &[2; PAGE]);
    cache.proxy.release();
    let deadline = Instant::now() + Duration::from_secs(1);
    while Instant::now() < deadline {
        assert_eq!(read(&client, 5 * PAGE as u64, PAGE).unwrap(), [2; PAGE]);
    }
}

#[test]
fn what_the_san_gave_before_a_write_is_not_put_after_it() {
    let (_directory, path) = ones();
    let cache = Cache::start(16 << 20, false);
    let volume = Lagging::open(&path, 0);
    let host = Host::start(volume.clone(), settings(&cache, None));
    assert!(host.gateway.wait_cache(LONG));
    volume.held.store(true, Ordering::SeqCst);
    let (slow, client) = (host.connect(), host.connect());
    let reader = thread::spawn(move || read(&slow, 5 * PAGE as u64, PAGE).unwrap());
    while volume.waiting.load(Ordering::SeqCst) == 0 {
        thread::yield_now();
    }
    write(&client, 5 * PAGE as u64, &[2; PAGE]);
    volume.held.store(false, Ordering::SeqCst);
    assert_eq!(reader.join().unwrap(), [1; PAGE]);
    assert!(host.gateway.wait_idle(LONG));
    assert_eq!(read(&client, 5 * PAGE as u64, PAGE).unwrap(), [2; PAGE]);
    assert_eq!(host.count("puts_dropped_stale"), 1);
    assert_eq!(host.count("hit_pages"), 1);
}

#[test]
fn a_token_is_good_for_one_start() {
    let directory = TempDir::new().unwrap();
    let (path, state) = (
        directory.path().join("volume"),
        directory.path().join("state"),
    );
    std::fs::write(&path, vec![1; PAGES * PAGE]).unwrap();
    let cache = Cache::start(16 << 20, false);
    let start = || {
        let mut settings = settings(&cache, Some(&state));
        if let Volume::Exclusive {
            tokens: Some(tokens),
        } = &mut settings.volume
        {
            tokens.trust = true;
        }
        settings.register = Some(Register::at(&state));
        let mut volume = Lagging::new(&path, 0);
        volume.nameless = true;
        let host = Host::start(Arc::new(volume), settings);
        assert!(host.gateway.wait_cache(LONG));
        host
    };
    let host = start();
    assert!(!host.gateway.is_warm());
    assert_eq!(read(&host.connect(), 0, PAGE).unwrap(), [1; PAGE]);
    assert!(host.detach());
    let host = start();
    assert!(host.gateway.is_warm());
    let client = host.connect();
    write(&client, 0, &[2; PAGE]);
    host.crash();
    let host = start();
    assert!(!host.gateway.is_warm());
    assert_eq!(read(&host.connect(), 0, PAGE).unwrap(), [2; PAGE]);
}

#[test]
fn a_write_is_acknowledged_in_time_by_a_cache_that_stands_still_and_is_not_forgotten() {
    let (_directory, path) = ones();
    let cache = Cache::start(16 << 20, false);
    let mut settings = settings(&cache, None);
    settings.cache.patience = 10 * LONG;
    let host = Host::start(Lagging::open(&path, 0), settings);
    assert!(host.gateway.wait_cache(LONG));
    let client = host.connect();
    let offset = 5 * PAGE as u64;
    assert_eq!(read(&client, offset, PAGE).unwrap(), [1; PAGE]);
    assert!(host.gateway.wait_idle(LONG));
    cache.proxy.hold_all();
    write(&client, offset, &[2; PAGE]);
    assert_eq!(host.count("flushes_late"), 1);
    assert_eq!(read(&client, offset, PAGE).unwrap(), [2; PAGE]);
    cache.proxy.release();
    assert!(host.gateway.wait_cache(LONG));
    let deadline = Instant::now() + LONG;
    while host.count("hit_pages") == 0 {
        assert!(Instant::now() < deadline);
        assert_eq!(read(&client, offset, PAGE).unwrap(), [2; PAGE]);
    }
    assert_eq!(host.count("sessions"), 1, "the session rested");
}

/// The end of a gateway waits for the flush, in vain, and says that the cache holds what the volume has not.
#[test]
fn an_end_while_an_owed_flush_is_under_way_leaves_no_token() {
    let (directory, path) = ones();
    let cache = Cache::start(16 << 20, false);
    let begin = || {
        let state = directory.path().join("state");
        let mut settings = settings(&cache, Some(&state));
        settings.cache.patience = Duration::from_secs(2);
        let host = Host::start(Lagging::open(&path, 0), settings);
        assert!(host.gateway.wait_cache(LONG));
        host
    };
    let host = begin();
    let client = host.connect();
    assert_eq!(read(&client, 0, PAGE).unwrap(), [1; PAGE]);
    assert!(host.gateway.wait_idle(LONG));
    cache.proxy.hold_all();
    write(&client, 0, &[2; PAGE]);
    assert_eq!(host.count("flushes_late"), 1);
    assert!(!host.detach());
    cache.proxy.release();
    let host = begin();
    assert!(!host.gateway.is_warm());
    assert_eq!(read(&host.connect(), 0, PAGE).unwrap(), [2; PAGE]);
}
