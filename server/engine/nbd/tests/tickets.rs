//! Backends that answer later: out of order, from other threads, to clients that are slow, gone or many.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use support::{PATIENCE, eventually, serve, serve_with};
use tmem_nbd::protocol::command;
use tmem_nbd::{
    Backend, Client, Errno, ExportInfo, Later, Reply, Request, Served, Settings, Ticket,
};

const SIZE: u64 = 64 << 20;

/// Holds every request until it is told to answer.
#[derive(Default)]
struct Slow {
    multi_conn: bool,
    held: Mutex<Vec<(Ticket, u64, u32)>>,
    detached: AtomicBool,
}

impl Slow {
    fn held(&self) -> usize {
        self.held.lock().unwrap().len()
    }

    /// Answer all that is held, the last first. A read's bytes are its offset's in pages.
    fn answer(&self) {
        let held = std::mem::take(&mut *self.held.lock().unwrap());
        for (ticket, offset, length) in held.into_iter().rev() {
            ticket.reply(|reply| {
                let byte = (offset / 4096) as u8;
                reply.data(offset, length as usize).fill(byte);
                Ok(())
            });
        }
    }
}

impl Backend for Slow {
    fn info(&self) -> ExportInfo {
        ExportInfo {
            multi_conn: self.multi_conn,
            ..ExportInfo::default()
        }
    }

    fn size(&self) -> u64 {
        SIZE
    }

    fn serve(&self, request: Request<'_>, _: &mut Reply<'_>, later: &Later<'_>) -> Served {
        let Request::Read { offset, length } = request else {
            return Served::Now(Err(Errno::NotSupported));
        };
        let held = (later.take(), offset, length);
        self.held.lock().unwrap().push(held);
        Served::Later
    }

    fn detach(&self, _: &Client) {
        self.detached.store(true, Ordering::SeqCst);
    }
}

#[test]
fn replies_come_in_the_order_of_answers_with_others_between() {
    let slow = Arc::new(Slow::default());
    let served = serve(slow.clone());
    for structured in [false, true] {
        let mut wire = served.connect(structured);
        let cookies: Vec<u64> = (0..10u64)
            .map(|page| wire.ask(command::READ, 0, page * 4096, 4096, &[]))
            .collect();
        eventually(|| slow.held() == 10);
        assert_eq!(wire.run(command::FLUSH, 0, 0, 0), Some(Errno::NotSupported));
        slow.answer();
        for (page, cookie) in cookies.iter().enumerate().rev() {
            let answer = wire.answer(4096);
            assert_eq!((answer.cookie, answer.error), (*cookie, None));
            assert_eq!(answer.data[0].1, [page as u8; 4096]);
        }
        drop(wire);
        eventually(|| served.exports.list()[0].clients.is_empty());
    }
}

#[test]
fn a_dropped_ticket_is_an_io_error() {
    let slow = Arc::new(Slow::default());
    let served = serve(slow.clone());
    let mut wire = served.connect(true);
    wire.ask(command::READ, 0, 0, 4096, &[]);
    eventually(|| slow.held() == 1);
    slow.held.lock().unwrap().clear();
    assert_eq!(wire.answer(4096).error, Some(Errno::Io));
}

#[test]
fn whoever_answers_never_waits_for_a_slow_client() {
    let slow = Arc::new(Slow {
        multi_conn: true,
        ..Slow::default()
    });
    let served = serve(slow.clone());
    let mut sleeper = served.connect(true);
    let mut other = served.connect(true);
    for page in 0..20 {
        sleeper.ask(command::READ, 0, page * 4096, 1 << 20, &[]);
    }
    eventually(|| slow.held() == 20);
    slow.answer();
    other.ask(command::READ, 0, 4096, 4096, &[]);
    eventually(|| slow.held() == 1);
    slow.answer();
    assert_eq!(other.answer(4096).data[0].1, [1; 4096]);
    for page in (0..20).rev() {
        assert_eq!(sleeper.answer(1 << 20).data[0].1, vec![page; 1 << 20]);
    }
}

#[test]
fn a_client_that_is_gone_leaves_when_its_tickets_are_answered() {
    let slow = Arc::new(Slow::default());
    let served = serve(slow.clone());
    let mut wire = served.connect(true);
    for page in 0..5 {
        wire.ask(command::READ, 0, page * 4096, 1 << 20, &[]);
    }
    eventually(|| slow.held() == 5);
    drop(wire);
    let (error, _) = served.try_connect(true).err().unwrap();
    assert_eq!(error, tmem_nbd::protocol::reply::ERR_POLICY);
    assert!(!slow.detached.load(Ordering::SeqCst));
    slow.answer();
    eventually(|| slow.detached.load(Ordering::SeqCst));
    served.connect(true);
}

#[test]
fn no_more_requests_wait_than_may() {
    let slow = Arc::new(Slow::default());
    let settings = Settings {
        max_waiting: 3,
        ..Settings::default()
    };
    let served = serve_with(slow.clone(), settings);
    let mut wire = served.connect(true);
    for page in 0..12 {
        wire.ask(command::READ, 0, page * 4096, 4096, &[]);
    }
    for _ in 0..4 {
        eventually(|| slow.held() == 3);
        assert_eq!(served.exports.list()[0].counters.reads % 3, 0);
        slow.answer();
        for _ in 0..3 {
            assert_eq!(wire.answer(4096).error, None);
        }
    }
    assert!(served.server.stop(PATIENCE));
}
