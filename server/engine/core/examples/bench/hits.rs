//! How often an ephemeral pool still has what is asked for, against an exact LRU of as many pages.
//!
//! Nine requests in ten follow Zipf's law with exponent 0.9 over scattered pages; one in ten belongs to a sequential scan
//! of a range of its own. A page that is missed is put.

use tmem_core::{AllocatorKind, Fetch, Kind, Pool, PoolSettings, Store};

use crate::arena::private;
use crate::corpus::{Corpus, PAGE};
use crate::random::Random;
use crate::report::Figure;
use crate::workload::{oid, put_some};
use crate::{Result, Run};

/// Pages asked for by Zipf's law, and in scans.
const HOT: usize = 100_000;
const COLD: usize = 100_000;
/// Requests of one scan.
const SCAN: usize = 2_000;
const EXPONENT: f64 = 0.9;
/// Requests between looks at how many pages are held.
const LOOK: usize = 5_000;

pub fn hits(run: &Run) -> Result<()> {
    let requests = stream(if run.quick { 300_000 } else { 1_000_000 });
    [AllocatorKind::Zbud, AllocatorKind::Zsmalloc]
        .into_iter()
        .try_for_each(|allocator| compare(run, allocator, &requests))
}

fn stream(length: usize) -> Vec<usize> {
    let mut random = Random(1);
    let mut pages: Vec<usize> = (0..HOT).collect();
    random.shuffle(&mut pages);
    let mut sum = 0.0;
    let sums: Vec<f64> = (1..=HOT)
        .map(|rank| {
            sum += (rank as f64).powf(-EXPONENT);
            sum
        })
        .collect();
    let mut zipf = |_| {
        let at = random.unit() * sum;
        pages[sums.partition_point(|&s| s <= at).min(HOT - 1)]
    };
    let (mut requests, mut scanned) = (Vec::with_capacity(length), 0);
    while requests.len() < length {
        requests.extend((0..9 * SCAN).map(&mut zipf));
        requests.extend((scanned..scanned + SCAN).map(|page| HOT + page % COLD));
        scanned += SCAN;
    }
    requests
}

/// Whether this request counts: the first quarter only fills.
fn counts(requests: &[usize], at: usize) -> bool {
    at >= requests.len() / 4
}

struct Outcome {
    hits: usize,
    /// Pages held, on average.
    held: f64,
}

fn play(store: &Store, pool: &Pool, corpus: &Corpus, requests: &[usize]) -> Result<Outcome> {
    let mut page = vec![0; PAGE];
    let (mut hits, mut looks, mut held) = (0, 0, 0);
    for (at, &wanted) in requests.iter().enumerate() {
        let hit = pool.get_range(&oid(1), wanted as u32, &mut page, false)?[0] == Fetch::Hit;
        if !hit {
            put_some(pool, &oid(1), wanted, corpus.page(wanted % corpus.pages()))?;
        }
        hits += usize::from(hit && counts(requests, at));
        if counts(requests, at) && at % LOOK == 0 {
            looks += 1;
            held += store.stats()?.get("pages").unwrap_or(0);
        }
    }
    Ok(Outcome {
        hits,
        held: held as f64 / f64::from(looks),
    })
}

/// A list of pages, most recently used first.
struct Lru {
    newer: Vec<usize>,
    older: Vec<usize>,
    held: usize,
    capacity: usize,
}

const NONE: usize = usize::MAX;
/// The list's head: its `older` is the newest page, its `newer` the oldest.
const HEAD: usize = HOT + COLD;

impl Lru {
    fn new(capacity: usize) -> Lru {
        let (mut newer, mut older) = (vec![NONE; HEAD + 1], vec![NONE; HEAD + 1]);
        (newer[HEAD], older[HEAD]) = (HEAD, HEAD);
        Lru {
            newer,
            older,
            held: 0,
            capacity,
        }
    }

    fn unlink(&mut self, page: usize) {
        let (newer, older) = (self.newer[page], self.older[page]);
        (self.older[newer], self.newer[older]) = (older, newer);
        self.newer[page] = NONE;
    }

    /// Ask for a page, and keep it; whether it was there.
    fn request(&mut self, page: usize) -> bool {
        let hit = self.newer[page] != NONE;
        if hit {
            self.unlink(page);
        } else if self.held == self.capacity {
            self.unlink(self.newer[HEAD]);
        } else {
            self.held += 1;
        }
        let newest = self.older[HEAD];
        (self.older[page], self.newer[page]) = (newest, HEAD);
        (self.newer[newest], self.older[HEAD]) = (page, page);
        hit
    }
}

fn compare(run: &Run, allocator: AllocatorKind, requests: &[usize]) -> Result<()> {
    let store = private(32 << 20)?;
    let settings = PoolSettings {
        allocator,
        inclusive: true,
        ..PoolSettings::new(Kind::Ephemeral)
    };
    let pool = store.pool("bench", &settings)?;
    let ours = play(&store, &pool, &run.corpus, requests)?;
    let mut lru = Lru::new(ours.held.round() as usize);
    let hits = requests
        .iter()
        .enumerate()
        .filter(|&(at, &page)| lru.request(page) && counts(requests, at))
        .count();
    let asked = (0..requests.len())
        .filter(|&at| counts(requests, at))
        .count() as f64;
    let figure = Figure {
        name: &format!("hits.{}", allocator.name()),
        value: ours.hits as f64 / asked,
        unit: "hit ratio",
        peer: &format!("exact LRU of {} pages", lru.capacity),
        peer_value: hits as f64 / asked,
        ratio: ours.hits as f64 / hits as f64,
        corpus: &run.corpus.name,
    };
    figure.print();
    Ok(())
}
