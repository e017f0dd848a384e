//! What a put and a get cost when the store holds many pages: 10 million against 100 thousand.

use tmem_core::{Pool, Store};

use crate::arena::{persistent, private};
use crate::corpus::{BATCH, PAGE};
use crate::random::Random;
use crate::report::{Figure, Pairs};
use crate::workload::{Op, get, oid, put, timed};
use crate::{Result, Run};

/// Pages to an object.
const OBJECT: usize = 100_032;
/// Random words at the start of a page, and up to 16 more: pages that shrink to a sixth, so that 10 million fit in
/// 8 GiB. Smaller pages would weigh the memory's own latency more and the codec less.
const WORDS: usize = 80;
/// Pages moved between turns.
const TURN: usize = 16_384;

/// A store of many small pages.
struct Many {
    store: Store,
    pool: Pool,
    batches: usize,
    random: Random,
    /// Pages to put: none like another.
    fresh: Vec<u8>,
    buffer: Vec<u8>,
}

impl Many {
    /// About `pages` pages: some random bytes, the rest zeros.
    fn new(pages: usize) -> Result<Many> {
        let store = private(12 << 30)?;
        let pool = persistent(&store)?;
        let (buffer, fresh) = (vec![1; BATCH * PAGE], vec![0; 4 * BATCH * PAGE]);
        let mut many = Many {
            store,
            pool,
            batches: pages / BATCH,
            random: Random(pages as u64),
            fresh,
            buffer,
        };
        for batch in 0..many.batches {
            many.renew(batch % 4);
            many.batch(Op::Put, batch)?;
        }
        let held = many.batches * BATCH;
        many.expect(held)
    }

    fn expect(self, pages: usize) -> Result<Many> {
        let held = self.store.stats()?.get("pages");
        if held == Some(pages as u64) {
            Ok(self)
        } else {
            Err(format!("{held:?} pages are held, not {pages}").into())
        }
    }

    /// New pages in a quarter of `fresh`.
    fn renew(&mut self, quarter: usize) {
        for page in self.fresh[quarter * BATCH * PAGE..][..BATCH * PAGE].chunks_mut(PAGE) {
            let words = WORDS + self.random.below(16);
            page[..8 * (WORDS + 16)].fill(0);
            page[..8 * words]
                .chunks_mut(8)
                .for_each(|word| word.copy_from_slice(&self.random.word().to_le_bytes()));
        }
    }

    fn batch(&mut self, op: Op, batch: usize) -> Result<()> {
        self.pages(op, batch * BATCH, BATCH)
    }

    fn pages(&mut self, op: Op, page: usize, count: usize) -> Result<()> {
        let (object, first) = (oid((page / OBJECT) as u64), page % OBJECT);
        match op {
            Op::Put => put(
                &self.pool,
                &object,
                first,
                &self.fresh[page % (4 * BATCH) * PAGE..][..count * PAGE],
            ),
            Op::Get => get(&self.pool, &object, first, &mut self.buffer[..count * PAGE]),
        }
    }

    /// Seconds a page at random places.
    fn cost(&mut self, op: Op, count: usize) -> Result<f64> {
        let places: Vec<usize> = (0..TURN / count)
            .map(|_| self.random.below(self.batches * BATCH / count) * count)
            .collect();
        let seconds = timed(|| {
            places
                .iter()
                .try_for_each(|&page| self.pages(op, page, count))
        })?;
        Ok(seconds / TURN as f64)
    }
}

pub fn size(run: &Run) -> Result<()> {
    let (large, small) = if run.quick {
        (1_000_000, 100_000)
    } else {
        (10_000_000, 100_000)
    };
    let (mut many, mut few) = (Many::new(large)?, Many::new(small)?);
    for (op, count) in [
        (Op::Put, 1),
        (Op::Put, BATCH),
        (Op::Get, 1),
        (Op::Get, BATCH),
    ] {
        let mut pairs = Pairs::default();
        many.cost(op, count)?;
        few.cost(op, count)?;
        for _ in 0..3 * run.pairs {
            pairs.push(many.cost(op, count)?, few.cost(op, count)?);
        }
        let name = format!(
            "size.{}.{}",
            op.name(),
            if count == 1 { "single" } else { "batch64" }
        );
        let (value, peer_value) = (pairs.ours() * 1e6, pairs.peer() * 1e6);
        let corpus = format!("{large} pages of 640 to 768 random bytes");
        let peer = format!("{small} pages");
        Figure {
            name: &name,
            value,
            unit: "us/page",
            peer: &peer,
            peer_value,
            ratio: pairs.ratio(),
            corpus: &corpus,
        }
        .print();
    }
    Ok(())
}
