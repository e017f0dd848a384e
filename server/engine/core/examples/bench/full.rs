//! Puts into a full ephemeral pool, each of which evicts, against puts below capacity.

use tmem_core::{AllocatorKind, Kind, Pool, PoolSettings, Store};

use crate::arena::private;
use crate::corpus::{BATCH, Corpus};
use crate::report::{Figure, Pairs};
use crate::workload::{oid, put_some, timed};
use crate::{Result, Run};

/// Batches put between turns.
const TURN: usize = 32;

pub fn full(run: &Run) -> Result<()> {
    [AllocatorKind::Zbud, AllocatorKind::Zsmalloc]
        .into_iter()
        .try_for_each(|allocator| compare(run, allocator))
}

/// An ephemeral pool that is put ever new pages.
struct Stream<'a> {
    store: Store,
    pool: Pool,
    corpus: &'a Corpus,
    next: usize,
    refused: usize,
}

impl<'a> Stream<'a> {
    fn new(corpus: &'a Corpus, memory: u64, allocator: AllocatorKind) -> Result<Stream<'a>> {
        let store = private(memory)?;
        let pool = store.pool(
            "bench",
            &PoolSettings {
                allocator,
                ..PoolSettings::new(Kind::Ephemeral)
            },
        )?;
        Ok(Stream {
            store,
            pool,
            corpus,
            next: 0,
            refused: 0,
        })
    }

    /// Seconds to put the next batches under keys that are new.
    fn put(&mut self) -> Result<f64> {
        let first = self.next;
        self.next += TURN;
        timed(|| self.batches(first))
    }

    /// Seconds to put the last batches again.
    fn replace(&mut self) -> Result<f64> {
        let first = self.next - TURN;
        timed(|| self.batches(first))
    }

    fn batches(&mut self, first: usize) -> Result<()> {
        for batch in first..first + TURN {
            let pages = self.corpus.batch(batch % self.corpus.batches());
            self.refused += put_some(&self.pool, &oid(1), batch * BATCH, pages)?;
        }
        Ok(())
    }

    fn evicted(&self) -> Result<u64> {
        Ok(self.store.stats()?.get("evicted_pages").unwrap_or(0))
    }
}

fn compare(run: &Run, allocator: AllocatorKind) -> Result<()> {
    let corpus = &run.corpus;
    let mut full = Stream::new(corpus, 64 << 20, allocator)?;
    while full.evicted()? < 8192 {
        full.put()?;
    }
    let turns = 8 * run.pairs;
    let roomy_bytes = (turns + 1) * TURN * BATCH * 4096 * 5 / 4;
    let mut roomy = Stream::new(corpus, roomy_bytes as u64 + (64 << 20), allocator)?;
    let before = full.evicted()?;
    let (mut fresh, mut replaced) = (Pairs::default(), Pairs::default());
    // Both go through the corpus at the same place.
    roomy.next = full.next;
    for _ in 0..turns {
        let cost = full.put()?;
        fresh.push(cost, roomy.put()?);
        replaced.push(cost, roomy.replace()?);
    }
    let put = (turns * TURN * BATCH) as f64;
    let figure = Figure {
        name: &format!("full.refused.{}", allocator.name()),
        value: full.refused as f64,
        unit: "pages refused",
        peer: "pages put into the full pool",
        peer_value: put,
        ratio: full.refused as f64 / put,
        corpus: &corpus.name,
    };
    figure.print();
    let evicted = full.evicted()? - before;
    if evicted * 10 < (turns * TURN * BATCH) as u64 * 7 || roomy.evicted()? > 0 {
        return Err(format!(
            "{evicted} pages were evicted from the full pool, {} from the other",
            roomy.evicted()?
        )
        .into());
    }
    report(
        corpus,
        &format!("full.put.{}", allocator.name()),
        "new pages below capacity",
        &fresh,
    );
    report(
        corpus,
        &format!("full.put.{}.in_place", allocator.name()),
        "pages replaced below capacity",
        &replaced,
    );
    Ok(())
}

fn report(corpus: &Corpus, name: &str, peer: &str, pairs: &Pairs) {
    let micros = 1e6 / (TURN * BATCH) as f64;
    let (value, peer_value) = (pairs.ours() * micros, pairs.peer() * micros);
    Figure {
        name,
        value,
        unit: "us/page",
        peer,
        peer_value,
        ratio: pairs.ratio(),
        corpus: &corpus.name,
    }
    .print();
}
