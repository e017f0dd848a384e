//! Putting what the SAN gave into the cache: off the way of reads, many at once, and never an older page.
//!
//! A put carries the version of its stripe from before the SAN was read. It is sent under the stripe's lock, and only if
//! the version is still the same; the flush of a later change goes out after that lock was passed, on the same
//! connection, so the cache carries it out later.
//!
//! Puts gather for some milliseconds: each time that the thread, the server and the reader of its answers are woken costs
//! whoever reads at that moment more than a page's put does. While the volume is being changed they wait less, as any
//! change of a stripe makes the puts of all its pages worthless.

use std::sync::Arc;
use std::time::Duration;

use super::cache::link::Session;
use super::cache::put_queue::Put;
use super::shared::Shared;
use crate::client::{Done, Failure};
use crate::protocol::Errno;

/// How long puts gather before they are sent, unless they are many: by default, and after a change.
const GATHER: Duration = Duration::from_millis(10);
const GATHER_BRIEFLY: Duration = Duration::from_millis(1);

/// The thread that puts.
pub fn run(shared: &Arc<Shared>) {
    let page = shared.page as usize;
    let mut changes = 0;
    let changes_now = || shared.counters.san_writes.get();
    while let Some((puts, lost)) = shared.puts.next(page, || match changes_now() == changes {
        true => GATHER,
        false => GATHER_BRIEFLY,
    }) {
        changes = changes_now();
        for session in lost {
            shared.link.lost(&session, "a put was not answered");
        }
        if !puts.is_empty() {
            send(shared, puts);
        }
    }
}

fn send(shared: &Arc<Shared>, puts: Vec<Put>) {
    let page = shared.page as usize;
    let count = |put: &Put| (put.data.len() / page) as u64;
    let (puts, stale, stripes) = shared
        .stripes
        .unchanged(puts, |put| (put.page, put.version));
    for put in stale {
        shared.counters.puts_dropped_stale.add(count(&put));
        shared.puts.answered(put.data.len(), None);
    }
    // Asked for under the stripes' locks: a change that finds this session down begins after them.
    let Some(session) = shared.link.session() else {
        let length = puts.iter().map(|put| put.data.len()).sum();
        return shared.puts.answered(length, None);
    };
    for put in &puts {
        shared.seen.add(&(put.page..put.page + count(put)));
        shared.counters.puts.add(1);
        shared.counters.put_pages.add(count(put));
    }
    let all = puts.iter().map(|put| {
        let done = answer(shared, &session, put.data.len());
        (put.page, &put.data[..], done)
    });
    shared.link.put(&session, all);
    drop(stripes);
}

fn answer(shared: &Arc<Shared>, session: &Arc<Session>, length: usize) -> Done {
    let (on, back) = (session.clone(), shared.clone());
    Box::new(move |answer| match answer {
        Ok(_) => back.puts.answered(length, None),
        Err(Failure::Errno(Errno::NoSpace)) => {
            back.counters.puts_refused.add(1);
            back.puts.answered(length, None);
        }
        Err(_) => back.puts.answered(length, Some(on)),
    })
}
