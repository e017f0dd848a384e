//! One thread, against the loop that only compresses or decompresses, checksums and copies.

use std::ops::Range;
use std::sync::Arc;

use crate::arena::{persistent, private};
use crate::corpus::{BATCH, Corpus};
use crate::report::{Figure, Pairs};
use crate::workload::{Bare, Op, Stored, Workload, timed};
use crate::{Result, Run};

/// Batches after which ours and the loop take turns: a pair. Short, so that a disturbance spoils few of them.
const TURN: usize = 8;

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
    in_turn(&mut stored, &mut bare, op, &mut Pairs::default())?;
    for _ in 0..run.pairs {
        in_turn(&mut stored, &mut bare, op, &mut pairs)?;
    }
    let how = if single { "single" } else { "batch64" };
    report(run, &format!("{}.{how}", op.name()), &pairs);
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
        in_turn(&mut stored, &mut bare, Op::Put, &mut pairs)?;
    }
    report(run, "put.first_fill", &pairs);
    Ok(())
}

/// Go through the corpus once, turn by turn.
fn in_turn(
    ours: &mut dyn Workload,
    peer: &mut dyn Workload,
    op: Op,
    pairs: &mut Pairs,
) -> Result<()> {
    let turn = TURN.min(ours.batches());
    for first in (0..ours.batches() / turn).map(|n| n * turn) {
        let batches = first..first + turn;
        let seconds = steps(ours, op, batches.clone())?;
        let pages = (turn * BATCH) as f64;
        pairs.push(seconds / pages, steps(peer, op, batches)? / pages);
    }
    Ok(())
}

fn steps(workload: &mut dyn Workload, op: Op, mut batches: Range<usize>) -> Result<f64> {
    timed(|| batches.try_for_each(|batch| workload.step(op, batch)))
}

fn report(run: &Run, name: &str, pairs: &Pairs) {
    Figure {
        name,
        value: pairs.ours() * 1e6,
        unit: "us/page",
        peer: "loop without a store",
        peer_value: pairs.peer() * 1e6,
        ratio: 1.0 / pairs.ratio(),
        corpus: &run.corpus.name,
    }
    .print();
}
