//! bench: the core's figures, each with its ratio to a peer in the same run, as lines of JSON.
//!
//! `bench FIGURE CORPUS [--pairs N] [--quick]`: CORPUS is a file of 4096-byte pages. Ours and the peer are measured in
//! turn and the ratio is the median of the pairs' ratios, so that a machine with other work disturbs both alike.
//! Nothing is left behind: arenas are private, or files that lose their name as soon as they are made.

mod arena;
mod attach;
mod corpus;
mod density;
mod full;
mod hits;
mod metadata;
mod random;
mod report;
mod scale;
mod size;
mod speed;
mod worker;
mod workload;

use std::process::ExitCode;

use corpus::Corpus;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What a figure is measured with.
struct Run {
    corpus: Corpus,
    pairs: usize,
    /// Smaller stores and fewer requests: for a look, not for the record.
    quick: bool,
}

type Figure = fn(&Run) -> Result<()>;

const FIGURES: [(&str, Figure); 11] = [
    ("put", speed::put),
    ("get", speed::get),
    ("first", speed::first_fill),
    ("threads", scale::threads),
    ("processes", scale::processes),
    ("density", density::density),
    ("metadata", metadata::metadata),
    ("size", size::size),
    ("full", full::full),
    ("hits", hits::hits),
    ("attach", attach::attach),
];

fn usage() -> String {
    let names: Vec<&str> = FIGURES.iter().map(|(name, _)| *name).collect();
    format!(
        "usage: bench FIGURE CORPUS [--pairs N] [--quick]\nFIGURE: {} or all",
        names.join(", ")
    )
}

fn run(arguments: &[String]) -> Result<()> {
    let mut words = Vec::new();
    let (mut pairs, mut quick) = (9, false);
    let mut rest = arguments.iter();
    while let Some(word) = rest.next() {
        match word.as_str() {
            "--quick" => quick = true,
            "--pairs" => pairs = rest.next().ok_or_else(usage)?.parse()?,
            _ => words.push(word.as_str()),
        }
    }
    let [figure, path] = words[..] else {
        return Err(usage().into());
    };
    let chosen: Vec<Figure> = FIGURES
        .iter()
        .filter(|(name, _)| figure == "all" || *name == figure)
        .map(|f| f.1)
        .collect();
    if chosen.is_empty() {
        return Err(usage().into());
    }
    let run = Run {
        corpus: Corpus::read(path)?,
        pairs,
        quick,
    };
    chosen.iter().try_for_each(|figure| figure(&run))
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = if arguments.first().is_some_and(|a| a == "worker") {
        worker::serve(&arguments[1..])
    } else {
        run(&arguments)
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("bench: {why}");
            ExitCode::FAILURE
        }
    }
}
