//! How long it takes to attach to a filled arena: one left in order, one whose writer was killed, and the worst case, one
//! of another boot, every shard of which is rebuilt and every page of which is verified.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use tmem_core::{Pool, Store};

use crate::arena::{Nameless, persistent};
use crate::corpus::BATCH;
use crate::random::Random;
use crate::report::{Figure, median};
use crate::worker::Worker;
use crate::workload::{Op, oid, put};
use crate::{Result, Run};

pub fn attach(run: &Run) -> Result<()> {
    let filled: u64 = if run.quick { 512 << 20 } else { 4 << 30 };
    let (arena, store) = Nameless::create(filled / 8 * 9 + run.corpus.pages() as u64 * 4096)?;
    fill(&store, &persistent(&store)?, run, filled)?;
    drop(store);
    let clean = (0..run.pairs)
        .map(|_| seconds_to_attach(&arena))
        .collect::<Result<Vec<f64>>>()?;
    report(run, "attach.clean", filled, &clean);
    let killed = (0..run.pairs)
        .map(|n| after_a_kill(run, &arena, n as u64))
        .collect::<Result<Vec<f64>>>()?;
    report(run, "attach.killed", filled, &killed);
    if forget_the_boot(arena.file())? {
        report(run, "attach.rebuilt", filled, &[seconds_to_attach(&arena)?]);
    }
    Ok(())
}

/// Put the corpus again and again until the arena is as full as asked for.
fn fill(store: &Store, pool: &Pool, run: &Run, bytes: u64) -> Result<()> {
    for object in 1000.. {
        for batch in 0..run.corpus.batches() {
            put(pool, &oid(object), batch * BATCH, run.corpus.batch(batch))?;
            if batch % 64 == 0 && store.stats()?.get("used_bytes").unwrap_or(bytes) >= bytes {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn seconds_to_attach(arena: &Nameless) -> Result<f64> {
    let begun = Instant::now();
    let store = Store::attach(&arena.path(), false)?;
    let seconds = begun.elapsed().as_secs_f64();
    drop(store);
    Ok(seconds)
}

fn after_a_kill(run: &Run, arena: &Nameless, seed: u64) -> Result<f64> {
    let mut writer = Worker::start(&arena.path(), &run.corpus.path, 0, 4)?;
    writer.order(Op::Put, 3600.0)?;
    std::thread::sleep(Duration::from_micros(20_000 + Random(seed).word() % 50_000));
    drop(writer);
    seconds_to_attach(arena)
}

/// Make the arena one of another boot; false where it does not say which boot it is of.
fn forget_the_boot(file: &File) -> Result<bool> {
    let mut frame = [0; 4096];
    file.read_exact_at(&mut frame, 0)?;
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let half = u64::from_str_radix(&id.replace('-', "")[..16], 16)?.to_le_bytes();
    let Some(at) = frame.windows(8).position(|window| window == half) else {
        return Ok(false);
    };
    file.write_all_at(&half.map(|byte| !byte), at as u64)?;
    Ok(true)
}

fn report(run: &Run, name: &str, filled: u64, seconds: &[f64]) {
    let value = median(seconds.iter().copied());
    let figure = Figure {
        name,
        value,
        unit: "s",
        peer: &format!("{} MiB in use", filled >> 20),
        peer_value: filled as f64,
        ratio: value,
        corpus: &run.corpus.name,
    };
    figure.print();
}
