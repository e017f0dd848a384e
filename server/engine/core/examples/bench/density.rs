//! How much of the memory in use is payload, after filling and after much has changed.

use tmem_core::Store;

use crate::arena::{persistent, private};
use crate::corpus::{BATCH, Corpus, PAGE};
use crate::random::Random;
use crate::report::Figure;
use crate::workload::{oid, put};
use crate::{Result, Run};

pub fn density(run: &Run) -> Result<()> {
    let corpus = &run.corpus;
    let store = private((corpus.pages() * PAGE).max(64 << 20) as u64)?;
    let pool = persistent(&store)?;
    let put_all = |shift: usize| {
        let source = |batch: usize| corpus.batch((batch + shift) % corpus.batches());
        (0..corpus.batches())
            .try_for_each(|batch| put(&pool, &oid(1), batch * BATCH, source(batch)))
    };
    put_all(0)?;
    report("density.filled", &store, corpus)?;
    report_held(&store, corpus)?;

    put_all(corpus.batches() / 3)?;
    put_all(corpus.batches() / 2)?;
    report("density.replaced", &store, corpus)?;
    let mut indices: Vec<u32> = (0..corpus.pages() as u32).collect();
    Random(7).shuffle(&mut indices);
    for some in indices[..corpus.pages() * 7 / 10].chunks(BATCH) {
        pool.flush(&oid(1), some)?;
    }
    store.compact()?;
    report("density.churned", &store, corpus)
}

fn field(store: &Store, name: &str) -> Result<f64> {
    let value = store
        .stats()?
        .get(name)
        .ok_or_else(|| format!("there is no statistic {name}"))?;
    Ok(value as f64)
}

fn report(name: &str, store: &Store, corpus: &Corpus) -> Result<()> {
    let (payload, used) = (field(store, "payload_bytes")?, field(store, "used_bytes")?);
    let figure = Figure {
        name,
        value: used,
        unit: "bytes in use",
        peer: "payload alone",
        peer_value: payload,
        ratio: payload / used,
        corpus: &corpus.name,
    };
    figure.print();
    Ok(())
}

/// Bytes of pages held for each byte in use.
fn report_held(store: &Store, corpus: &Corpus) -> Result<()> {
    let (pages, used) = ((corpus.pages() * PAGE) as f64, field(store, "used_bytes")?);
    let figure = Figure {
        name: "density.held",
        value: used,
        unit: "bytes in use",
        peer: "the pages as they are",
        peer_value: pages,
        ratio: pages / used,
        corpus: &corpus.name,
    };
    figure.print();
    Ok(())
}
