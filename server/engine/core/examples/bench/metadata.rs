//! Bytes of metadata to a page: slot header, index, frame table, everything.

use tmem_core::{CLUSTER, Pool};

use crate::arena::{persistent, private};
use crate::corpus::{BATCH, Corpus};
use crate::report::Figure;
use crate::workload::{oid, put};
use crate::{Result, Run};

type Fill = fn(&Pool, &Corpus) -> Result<()>;

pub fn metadata(run: &Run) -> Result<()> {
    measure(run, "metadata.dense", dense)?;
    measure(run, "metadata.sparse", sparse)?;
    measure(run, "metadata.objects", objects)
}

/// One object of neighbouring pages.
fn dense(pool: &Pool, corpus: &Corpus) -> Result<()> {
    (0..corpus.batches())
        .try_for_each(|batch| put(pool, &oid(1), batch * BATCH, corpus.batch(batch)))
}

/// One object with one page to a cluster.
fn sparse(pool: &Pool, corpus: &Corpus) -> Result<()> {
    (0..corpus.pages())
        .try_for_each(|page| put(pool, &oid(1), page * CLUSTER as usize, corpus.page(page)))
}

/// One page to an object.
fn objects(pool: &Pool, corpus: &Corpus) -> Result<()> {
    (0..corpus.pages()).try_for_each(|page| put(pool, &oid(page as u64), 0, corpus.page(page)))
}

fn measure(run: &Run, name: &str, fill: Fill) -> Result<()> {
    let store = private((run.corpus.pages() as u64 * 4096 * 5 / 4).max(64 << 20))?;
    fill(&persistent(&store)?, &run.corpus)?;
    let stats = store.stats()?;
    let [metadata, headers, pages] = ["metadata_bytes", "slot_header_bytes", "pages"]
        .map(|name| stats.get(name).map_or(f64::NAN, |n| n as f64));
    let figure = Figure {
        name,
        value: metadata / pages,
        unit: "bytes/page",
        peer: "slot headers alone",
        peer_value: headers / pages,
        ratio: metadata / pages,
        corpus: &run.corpus.name,
    };
    figure.print();
    Ok(())
}
