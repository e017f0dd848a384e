//! How long it takes to attach to a filled arena: one left in order, one whose writer was killed, and the worst case, one
//! of another boot, every shard of which is rebuilt and every page of which is verified. Each is the slowest of several.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use tmem_core::{Pool, Store};

use crate::arena::{Nameless, persistent};
use crate::corpus::BATCH;
use crate::random::Random;
use crate::report::Figure;
use crate::worker::Worker;
use crate::workload::{Op, oid, put};
use crate::{Result, Run};

pub fn attach(run: &Run) -> Result<()> {
    let filled: u64 = if run.quick { 512 << 20 } else { 4 << 30 };
    let memory = filled / 8 * 9 + run.corpus.pages() as u64 * 4096;
    let (arena, store) = Nameless::create(memory)?;
    fill(&store, &persistent(&store)?, run, filled)?;
    drop(store);
    let mut attaches = Attaches::new(run, &arena, filled)?;
    for _ in 0..run.pairs {
        attaches.attach()?;
    }
    attaches.report("attach.clean");
    kill_writers(run, &arena, &mut attaches)?;
    attaches.report("attach.killed");
    if forget_the_boot(arena.file())? {
        attaches.attach()?;
        attaches.report("attach.rebuilt");
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

/// Attaches of one kind: how long the slowest took, and how many shards were rebuilt.
struct Attaches<'a> {
    run: &'a Run,
    arena: &'a Nameless,
    filled: u64,
    count: usize,
    slowest: f64,
    rebuilt: u64,
    rebuilt_ever: u64,
}

impl<'a> Attaches<'a> {
    fn new(run: &'a Run, arena: &'a Nameless, filled: u64) -> Result<Attaches<'a>> {
        let rebuilt_ever = recoveries(&Store::attach(&arena.path(), false)?)?;
        Ok(Attaches {
            run,
            arena,
            filled,
            count: 0,
            slowest: 0.0,
            rebuilt: 0,
            rebuilt_ever,
        })
    }

    fn attach(&mut self) -> Result<()> {
        let begun = Instant::now();
        let store = Store::attach(&self.arena.path(), false)?;
        self.slowest = self.slowest.max(begun.elapsed().as_secs_f64());
        self.count += 1;
        let ever = recoveries(&store)?;
        self.rebuilt += ever - self.rebuilt_ever;
        self.rebuilt_ever = ever;
        Ok(())
    }

    /// Print the figure, and begin with the next kind.
    fn report(&mut self, name: &str) {
        let figure = Figure {
            name,
            value: self.slowest,
            unit: "s",
            peer: &format!("shards rebuilt by {} attaches", self.count),
            peer_value: self.rebuilt as f64,
            ratio: self.slowest,
            corpus: &format!("{} MiB of {}", self.filled >> 20, self.run.corpus.name),
        };
        figure.print();
        (self.count, self.slowest, self.rebuilt) = (0, 0.0, 0);
    }
}

fn recoveries(store: &Store) -> Result<u64> {
    Ok(store
        .stats()?
        .get("recoveries")
        .ok_or("there is no statistic recoveries")?)
}

/// Kill writers, and attach after each, until several were caught with a lock in their hands.
fn kill_writers(run: &Run, arena: &Nameless, attaches: &mut Attaches<'_>) -> Result<()> {
    let mut random = Random(1);
    while attaches.count < run.pairs || (attaches.rebuilt < 3 && attaches.count < 20 * run.pairs) {
        let mut writer = Worker::start(&arena.path(), &run.corpus.path, 0, 16)?;
        writer.order(Op::Put, 3600.0)?;
        std::thread::sleep(Duration::from_micros(10_000 + random.below(20_000) as u64));
        drop(writer);
        attaches.attach()?;
    }
    Ok(())
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
