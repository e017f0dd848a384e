//! Another process on the same arena, told what to do over its standard input.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

use tmem_core::Store;

use crate::Result;
use crate::arena::persistent;
use crate::corpus::Corpus;
use crate::workload::{Op, Rate, Stored, rate};

/// A worker process. Dropped, it is killed, as it would be by the end of this process.
pub struct Worker {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    /// Start one that has put its part of the corpus as object `part`.
    pub fn start(arena: &Path, corpus: &str, part: usize, of: usize) -> Result<Worker> {
        let mut child = Command::new("/proc/self/exe") // this program, even where its file was replaced
            .args(["worker".as_ref(), arena.as_os_str(), corpus.as_ref()])
            .args([part.to_string(), of.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let orders = child.stdin.take().expect("it is piped");
        let answers = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut worker = Worker {
            child,
            orders,
            answers,
        };
        worker.answer()?;
        Ok(worker)
    }

    pub fn order(&mut self, op: Op, seconds: f64) -> Result<()> {
        Ok(writeln!(self.orders, "{} {seconds}", op.name())?)
    }

    /// Pages a second of the last order.
    pub fn answer(&mut self) -> Result<Rate> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let mut numbers = line.split_whitespace().map_while(|word| word.parse().ok());
        match (numbers.next(), numbers.next()) {
            (Some(wall), Some(undisturbed)) => Ok(Rate { wall, undisturbed }),
            _ => Err("a worker process failed".into()),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The worker's side: `worker ARENA CORPUS PART OF`.
pub fn serve(arguments: &[String]) -> Result<()> {
    let [arena, corpus, part, of] = arguments else {
        return Err("worker: ARENA CORPUS PART OF".into());
    };
    let (part, of) = (part.parse::<usize>()?, of.parse()?);
    let corpus = Arc::new(Corpus::read(corpus)?.part(part, of));
    let store = Store::attach(arena.as_ref(), false)?;
    let mut stored = Stored::new(persistent(&store)?, part as u64, corpus, false);
    stored.fill()?;
    println!("0 0");
    let (orders, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        std::io::stdin()
            .lines()
            .map_while(std::result::Result::ok)
            .for_each(|line| drop(orders.send(line)));
        std::process::exit(0); // whoever gave the orders is gone
    });
    for order in end {
        let (op, seconds) = order
            .split_once(' ')
            .ok_or("worker: an order is OP SECONDS")?;
        let op = if op == "put" { Op::Put } else { Op::Get };
        let Rate { wall, undisturbed } = rate(&mut stored, op, seconds.parse()?)?;
        println!("{wall} {undisturbed}");
    }
    Ok(())
}
