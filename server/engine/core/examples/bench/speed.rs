//! One thread, against the loop that only compresses or decompresses, checksums and copies.

use std::ops::Range;
use std::sync::Arc;

use crate::arena::{persistent, private};
use crate::corpus::{BATCH, Corpus};
use crate::report::{Figure, Pairs};
use crate::workload::{Bare, Op, Stored, Workload, timed};
use crate::{Result, Run};

/// Batches after which ours and the loop take turns.
const TURN: usize = 16;

pub fn put(run: &Run) -> Result<()> {
    [false, true]
        .into_iter()
        .try_for_each(|single| compare(run, Op::Put, single))
}

pub fn get(run: &Run) -> Result<()> {
    [false, true]
        .into_iter()
        .try_for_each(|single| compare(run, Op::Get, single))
}

fn room(corpus: &Corpus) -> u64 {
    (corpus.pages() as u64 * 4096 * 5 / 4).max(64 << 20)
}

fn compare(run: &Run, op: Op, single: bool) -> Result<()> {
    let corpus = Arc::new(run.corpus.clone());
    let store = private(room(&corpus))?;
    let mut stored = Stored::new(persistent(&store)?, 1, corpus.clone(), single);
    stored.fill()?;
    let mut bare = Bare::new(corpus.clone());
    let mut pairs = Pairs::default();
    in_turn(&mut stored, &mut bare, op)?;
    for _ in 0..run.pairs {
        let (ours, peer) = in_turn(&mut stored, &mut bare, op)?;
        pairs.push(ours, peer);
    }
    report(
        run,
        &format!(
            "{}.{}",
            op.name(),
            if single { "single" } else { "batch64" }
        ),
        &pairs,
    );
    Ok(())
}

/// The first fill of a new arena, which has to get its memory from the system.
pub fn first_fill(run: &Run) -> Result<()> {
    let corpus = Arc::new(run.corpus.clone());
    let mut bare = Bare::new(corpus.clone());
    let mut pairs = Pairs::default();
    for _ in 0..run.pairs {
        let store = private(room(&corpus))?;
        let mut stored = Stored::new(persistent(&store)?, 1, corpus.clone(), false);
        let (ours, peer) = in_turn(&mut stored, &mut bare, Op::Put)?;
        pairs.push(ours, peer);
    }
    report(run, "put.first_fill", &pairs);
    Ok(())
}

/// Seconds of ours and of the loop for the whole corpus.
fn in_turn(ours: &mut dyn Workload, peer: &mut dyn Workload, op: Op) -> Result<(f64, f64)> {
    let mut seconds = (0.0, 0.0);
    for first in (0..ours.batches()).step_by(TURN) {
        let batches = first..(first + TURN).min(ours.batches());
        seconds.0 += steps(ours, op, batches.clone())?;
        seconds.1 += steps(peer, op, batches)?;
    }
    Ok(seconds)
}

fn steps(workload: &mut dyn Workload, op: Op, mut batches: Range<usize>) -> Result<f64> {
    timed(|| batches.try_for_each(|batch| workload.step(op, batch)))
}

fn report(run: &Run, name: &str, pairs: &Pairs) {
    let micros = 1e6 / (run.corpus.batches() * BATCH) as f64;
    Figure {
        name,
        value: pairs.ours() * micros,
        unit: "us/page",
        peer: "loop without a store",
        peer_value: pairs.peer() * micros,
        ratio: 1.0 / pairs.ratio(),
        corpus: &run.corpus.name,
    }
    .print();
}
