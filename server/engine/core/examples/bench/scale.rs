//! Two threads and two processes against one, each on its own pages of one store; and, for the machine's own limit, the
//! same loop without a store.

use std::sync::{Arc, Barrier};

use crate::arena::{Nameless, persistent, private};
use crate::report::{Figure, Pairs};
use crate::worker::Worker;
use crate::workload::{Bare, Op, Rate, Stored, Workload, rate};
use crate::{Result, Run};

const SECONDS: f64 = 0.25;

fn room(run: &Run) -> u64 {
    (run.corpus.pages() as u64 * 4096 * 3 / 2).max(64 << 20)
}

/// Two of something that can work alone or at once.
trait Two {
    /// Number `n` alone.
    fn one(&mut self, n: usize, op: Op) -> Result<Rate>;
    fn both(&mut self, op: Op) -> Result<[Rate; 2]>;
}

struct Threads<W>([W; 2]);

impl<W: Workload> Two for Threads<W> {
    fn one(&mut self, n: usize, op: Op) -> Result<Rate> {
        rate(&mut self.0[n], op, SECONDS)
    }

    fn both(&mut self, op: Op) -> Result<[Rate; 2]> {
        let start = Barrier::new(2);
        let work = |workload: &mut W| {
            start.wait();
            rate(workload, op, SECONDS).map_err(|error| error.to_string())
        };
        let [a, b] = &mut self.0;
        let (a, b) = std::thread::scope(|scope| {
            let other = scope.spawn(|| work(b));
            (work(a), other.join().expect("it does not panic"))
        });
        Ok([a?, b?])
    }
}

impl Two for [Worker; 2] {
    fn one(&mut self, n: usize, op: Op) -> Result<Rate> {
        self[n].order(op, SECONDS)?;
        self[n].answer()
    }

    fn both(&mut self, op: Op) -> Result<[Rate; 2]> {
        self.iter_mut()
            .try_for_each(|worker| worker.order(op, SECONDS))?;
        Ok([self[0].answer()?, self[1].answer()?])
    }
}

pub fn threads(run: &Run) -> Result<()> {
    let store = private(room(run))?;
    let pool = persistent(&store)?;
    let stored = |part: usize| -> Result<Stored> {
        let corpus = Arc::new(run.corpus.part(part, 2));
        let mut stored = Stored::new(pool.clone(), part as u64, corpus, false);
        stored.fill()?;
        Ok(stored)
    };
    compare(run, "threads", &mut Threads([stored(0)?, stored(1)?]))
}

pub fn processes(run: &Run) -> Result<()> {
    let (arena, store) = Nameless::create(room(run))?;
    persistent(&store)?;
    let worker = |part| Worker::start(&arena.path(), &run.corpus.path, part, 2);
    compare(run, "processes", &mut [worker(0)?, worker(1)?])
}

/// Both at once against one alone.
#[derive(Default)]
struct Scaling {
    wall: Pairs,
    undisturbed: Pairs,
}

impl Scaling {
    fn measure(&mut self, two: &mut dyn Two, pair: usize, op: Op) -> Result<f64> {
        let one = two.one(pair % 2, op)?;
        let [a, b] = two.both(op)?;
        self.wall.push(a.wall + b.wall, one.wall);
        let both = a.undisturbed + b.undisturbed;
        self.undisturbed.push(both, one.undisturbed);
        Ok((a.wall + b.wall) / one.wall)
    }
}

fn compare(run: &Run, what: &str, ours: &mut dyn Two) -> Result<()> {
    let bare = |part| Bare::new(Arc::new(run.corpus.part(part, 2)));
    let mut bare = Threads([bare(0), bare(1)]);
    for op in [Op::Put, Op::Get] {
        let (mut scaling, mut machine, mut limit) =
            (Scaling::default(), Scaling::default(), Pairs::default());
        for pair in 0..run.pairs {
            let ours = scaling.measure(ours, pair, op)?;
            limit.push(ours, machine.measure(&mut bare, pair, op)?);
        }
        let name = format!("scale.{}.{what}", op.name());
        let one = format!("one of the {what}");
        report(run, &name, "pages/s", &one, &scaling.wall);
        report(
            run,
            &format!("{name}.undisturbed"),
            "pages/s",
            &one,
            &scaling.undisturbed,
        );
        report(
            run,
            &format!("{name}.limit"),
            "times one",
            "two threads without a store",
            &limit,
        );
    }
    Ok(())
}

fn report(run: &Run, name: &str, unit: &str, peer: &str, pairs: &Pairs) {
    let figure = Figure {
        name,
        value: pairs.ours(),
        unit,
        peer,
        peer_value: pairs.peer(),
        ratio: pairs.ratio(),
        corpus: &run.corpus.name,
    };
    figure.print();
}
