//! Memory of connections is the server's, not each one's: they wait for it in line, and whoever stalls is cut off.

mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use support::{PATIENCE, Served, Wire, eventually, serve_with};
use tmem_nbd::protocol::{MAX_DATA, command};
use tmem_nbd::{Backend, Budget, ExportInfo, Later, Reply, Request, Served as Done, Settings};

const LARGE: u32 = MAX_DATA;

/// Answers everything at once: as it comes, or from a thread through tickets.
#[derive(Default)]
struct Quick {
    answerer: Option<Mutex<mpsc::Sender<(tmem_nbd::Ticket, u64, u32)>>>,
    begun: AtomicUsize,
}

impl Quick {
    fn late() -> Arc<Quick> {
        let (sender, tickets) = mpsc::channel::<(tmem_nbd::Ticket, u64, u32)>();
        std::thread::spawn(move || {
            for (ticket, offset, length) in tickets {
                ticket.reply(|reply| {
                    reply.data(offset, length as usize).fill(7);
                    Ok(())
                });
            }
        });
        Arc::new(Quick {
            answerer: Some(Mutex::new(sender)),
            begun: AtomicUsize::new(0),
        })
    }
}

impl Backend for Quick {
    fn info(&self) -> ExportInfo {
        ExportInfo {
            multi_conn: true,
            ..ExportInfo::default()
        }
    }

    fn size(&self) -> u64 {
        1 << 40
    }

    fn serve(&self, request: Request<'_>, reply: &mut Reply<'_>, later: &Later<'_>) -> Done {
        self.begun.fetch_add(1, Ordering::SeqCst);
        if let Request::Read { offset, length } = request {
            if let Some(answerer) = &self.answerer {
                let asked = (later.take(), offset, length);
                answerer.lock().unwrap().send(asked).unwrap();
                return Done::Later;
            }
            reply.data(offset, length as usize).fill(7);
        }
        Done::Now(Ok(()))
    }
}

fn serve(limit: usize, patience: Duration) -> (Served, Arc<Budget>) {
    let budget = Arc::new(Budget::new(limit, patience));
    let settings = Settings {
        budget: budget.clone(),
        ..Settings::default()
    };
    (serve_with(Arc::new(Quick::default()), settings), budget)
}

fn write_all(wire: &mut Wire) {
    wire.write(0, &vec![1; LARGE as usize]).unwrap();
}

#[test]
fn many_large_requests_are_served_one_after_another() {
    let (served, budget) = serve(LARGE as usize, PATIENCE);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut wire = served.connect(false);
                write_all(&mut wire);
                assert_eq!(wire.read(0, LARGE).unwrap().len(), LARGE as usize);
            });
        }
    });
    eventually(|| budget.used() == 0);
    assert_eq!(budget.stalled(), 0);
}

#[test]
fn a_request_larger_than_the_budget_is_served_alone() {
    let (served, _) = serve(1, PATIENCE);
    let mut wire = served.connect(false);
    write_all(&mut wire);
    assert_eq!(wire.read(0, LARGE).unwrap().len(), LARGE as usize);
}

#[test]
fn who_holds_memory_and_is_silent_is_cut_off_once_others_wait() {
    for writes in [true, false] {
        let (served, budget) = serve(LARGE as usize, Duration::from_millis(40));
        let mut silent = served.connect(false);
        if writes {
            silent.ask(command::WRITE, 0, 0, LARGE, &[1; 4 << 20]);
        } else {
            silent.ask(command::READ, 0, 0, LARGE, &[]);
        }
        eventually(|| budget.used() > 0);
        let mut other = served.connect(false);
        write_all(&mut other);
        assert_eq!(other.read(0, LARGE).unwrap().len(), LARGE as usize);
        assert_eq!(budget.stalled(), 1, "writes: {writes}");
        let mut rest = Vec::new();
        let _ = silent.stream.read_to_end(&mut rest);
        assert!(rest.len() < LARGE as usize);
        eventually(|| budget.used() == 0);
    }
}

#[test]
fn who_takes_its_reply_slowly_is_not_cut_off() {
    let (served, budget) = serve(LARGE as usize, Duration::ZERO);
    let mut slow = served.connect(false);
    slow.ask(command::READ, 0, 0, LARGE, &[]);
    for _ in 0..8 {
        // More than the system holds of a reply: the server has sent some in the meantime.
        slow.take(1 << 20);
        assert_eq!(budget.cut_off_stalled(), [""; 0]);
    }
    eventually(|| !budget.cut_off_stalled().is_empty());
    eventually(|| budget.used() == 0);
}

#[test]
fn who_reads_no_replies_is_not_served_on() {
    let quick = Quick::late();
    let settings = Settings {
        max_waiting_bytes: 4 << 20,
        ..Settings::default()
    };
    let served = serve_with(quick.clone(), settings);
    let mut wire = served.connect(false);
    for _ in 0..64 {
        wire.ask(command::READ, 0, 0, 1 << 20, &[]);
    }
    eventually(|| quick.begun.load(Ordering::SeqCst) >= 4);
    for read in 0..64 {
        let begun = quick.begun.load(Ordering::SeqCst);
        assert!(begun <= read + 6, "{begun} begun, {read} read");
        wire.answer(1 << 20);
    }
}

#[test]
fn a_refused_write_is_answered_after_its_data() {
    let (served, _) = serve(LARGE as usize, PATIENCE);
    let path = served.path.clone();
    let stream = UnixStream::connect(path).unwrap();
    let mut plain = stream.try_clone().unwrap();
    let mut wire = Wire::greet(stream);
    wire.go("disk").unwrap();
    wire.ask(command::WRITE, 0, 1 << 40, 4 << 20, &[1; 3 << 20]);
    plain
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    assert!(plain.read(&mut [0; 1]).is_err(), "answered too early");
    plain.set_read_timeout(Some(PATIENCE)).unwrap();
    plain.write_all(&[1; 1 << 20]).unwrap();
    assert_eq!(wire.answer(0).error, Some(tmem_nbd::Errno::NoSpace));
    wire.write(0, &[1; 4096]).unwrap();
}
