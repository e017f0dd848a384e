//! What is timed: a corpus put into a store or fetched from it, batch by batch, and the same without a store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tmem_core::{Codec, Compressor, Fetch, Form, Oid, Outcome, Pool, checksum};

use crate::Result;
use crate::corpus::{BATCH, Corpus, PAGE};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    Put,
    Get,
}

impl Op {
    pub fn name(self) -> &'static str {
        if self == Op::Put { "put" } else { "get" }
    }
}

/// Batches of 64 pages that can be put and got again and again.
pub trait Workload: Send {
    fn batches(&self) -> usize;
    fn step(&mut self, op: Op, batch: usize) -> Result<()>;
}

/// A batch's oid among those that belong to number `n`.
pub fn oid(n: u64) -> Oid {
    Oid::from_bytes(&n.to_be_bytes()).expect("8 bytes")
}

/// The corpus as one object of a pool.
pub struct Stored {
    pool: Pool,
    oid: Oid,
    corpus: Arc<Corpus>,
    buffer: Vec<u8>,
    /// One call a page.
    single: bool,
}

impl Stored {
    pub fn new(pool: Pool, object: u64, corpus: Arc<Corpus>, single: bool) -> Stored {
        Stored {
            pool,
            oid: oid(object),
            corpus,
            buffer: vec![1; BATCH * PAGE],
            single,
        }
    }

    /// Put every batch once.
    pub fn fill(&mut self) -> Result<()> {
        (0..self.batches()).try_for_each(|batch| self.step(Op::Put, batch))
    }

    fn put(&self, first: usize, pages: &[u8]) -> Result<()> {
        put(&self.pool, &self.oid, first, pages)
    }
}

/// Put neighbouring pages, all of which must be stored.
pub fn put(pool: &Pool, oid: &Oid, first: usize, pages: &[u8]) -> Result<()> {
    match put_some(pool, oid, first, pages)? {
        0 => Ok(()),
        refused => Err(format!("{refused} puts were refused").into()),
    }
}

/// Put neighbouring pages; how many were refused.
pub fn put_some(pool: &Pool, oid: &Oid, first: usize, pages: &[u8]) -> Result<usize> {
    let outcomes = pool.put_range(oid, first as u32, pages)?;
    let refused = |outcome: &&Outcome| matches!(outcome, Outcome::Refused { .. });
    Ok(outcomes.iter().filter(refused).count())
}

/// Get neighbouring pages, all of which must be there.
pub fn get(pool: &Pool, oid: &Oid, first: usize, into: &mut [u8]) -> Result<()> {
    let fetched = pool.get_range(oid, first as u32, into, false)?;
    if fetched.iter().all(|fetch| *fetch == Fetch::Hit) {
        Ok(())
    } else {
        Err("a page was missed".into())
    }
}

impl Workload for Stored {
    fn batches(&self) -> usize {
        self.corpus.batches()
    }

    fn step(&mut self, op: Op, batch: usize) -> Result<()> {
        let first = batch * BATCH;
        match (op, self.single) {
            (Op::Put, false) => self.put(first, self.corpus.batch(batch)),
            (Op::Put, true) => {
                (first..first + BATCH).try_for_each(|page| self.put(page, self.corpus.page(page)))
            }
            (Op::Get, false) => get(&self.pool, &self.oid, first, &mut self.buffer),
            (Op::Get, true) => {
                let mut pages = self.buffer.chunks_mut(PAGE).enumerate();
                pages.try_for_each(|(n, page)| get(&self.pool, &self.oid, first + n, page))
            }
        }
    }
}

/// The work no store can avoid: compress, checksum and copy each page into one buffer, and back.
pub struct Bare {
    corpus: Arc<Corpus>,
    compressor: Compressor,
    scratch: Vec<u8>,
    held: Vec<u8>,
    blocks: Vec<Block>,
    buffer: Vec<u8>,
}

#[derive(Clone, Copy)]
struct Block {
    start: usize,
    len: usize,
    form: Form,
    checksum: u32,
}

/// Blocks longer than this are kept raw, as in a zsmalloc pool.
const LIMIT: usize = 3824;

impl Bare {
    pub fn new(corpus: Arc<Corpus>) -> Bare {
        let mut bare = Bare {
            compressor: Compressor::new(),
            scratch: vec![0; PAGE],
            held: vec![1; corpus.pages() * PAGE],
            blocks: vec![
                Block {
                    start: 0,
                    len: 0,
                    form: Form::Raw,
                    checksum: 0
                };
                corpus.pages()
            ],
            buffer: vec![1; BATCH * PAGE],
            corpus,
        };
        for page in 0..bare.corpus.pages() {
            let start = page.checked_sub(1).map_or(0, |before| {
                bare.blocks[before].start + bare.blocks[before].len
            });
            bare.encode(page, start);
        }
        bare
    }

    fn encode(&mut self, page: usize, start: usize) {
        let codec = Codec::Lz4 { acceleration: 1 };
        let encoded =
            self.compressor
                .encode(codec, self.corpus.page(page), LIMIT, &mut self.scratch);
        let len = encoded.len as usize;
        self.held[start..start + len].copy_from_slice(&self.scratch[..len]);
        self.blocks[page] = Block {
            start,
            len,
            form: encoded.form,
            checksum: encoded.checksum,
        };
    }

    fn decode(&mut self, page: usize) -> Result<()> {
        let Block {
            start,
            len,
            form,
            checksum: expected,
        } = self.blocks[page];
        let into = &mut self.buffer[page % BATCH * PAGE..][..PAGE];
        self.scratch[..len].copy_from_slice(&self.held[start..start + len]);
        self.compressor.decode(form, &self.scratch[..len], into)?;
        if checksum(into) == expected {
            Ok(())
        } else {
            Err("a page is damaged".into())
        }
    }
}

impl Workload for Bare {
    fn batches(&self) -> usize {
        self.corpus.batches()
    }

    fn step(&mut self, op: Op, batch: usize) -> Result<()> {
        for page in batch * BATCH..(batch + 1) * BATCH {
            match op {
                Op::Put => self.encode(page, self.blocks[page].start),
                Op::Get => self.decode(page)?,
            }
        }
        Ok(())
    }
}

/// Seconds that `work` takes, not counting those in which other programs had the processor.
pub fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let (begun, before) = (Instant::now(), seconds_waited());
    work()?;
    Ok(begun.elapsed().as_secs_f64() - (seconds_waited() - before))
}

/// Pages a second.
#[derive(Clone, Copy)]
pub struct Rate {
    pub wall: f64,
    /// Not counting the time in which other programs had the processor.
    pub undisturbed: f64,
}

/// Go round the batches for `seconds`.
pub fn rate(workload: &mut dyn Workload, op: Op, seconds: f64) -> Result<Rate> {
    let (begun, before) = (Instant::now(), seconds_waited());
    let time = Duration::from_secs_f64(seconds);
    let mut pages = 0.0;
    for batch in (0..workload.batches()).cycle() {
        workload.step(op, batch)?;
        pages += BATCH as f64;
        if begun.elapsed() >= time {
            break;
        }
    }
    let (wall, waited) = (begun.elapsed().as_secs_f64(), seconds_waited() - before);
    Ok(Rate {
        wall: pages / wall,
        undisturbed: pages / (wall - waited),
    })
}

/// Seconds this thread was ready to run and another had the processor, as the kernel counts them; 0 where it does not.
fn seconds_waited() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text.split(' ').nth(1).and_then(|word| word.parse().ok());
    nanos.unwrap_or(0.0) / 1e9
}
