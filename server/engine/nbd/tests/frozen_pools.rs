//! Exports on a pool that is frozen: what would change it waits until the thaw, whatever is read goes on, and nothing fails.

mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use support::{OID, PATIENCE, Served, Wire, pool, serve};
use tmem_core::Pool;
use tmem_nbd::protocol::{command, flag};
use tmem_nbd::{PoolExport, PoolExportSettings};

const MIB: u32 = 1 << 20;
const OLD: [u8; 4096] = [1; 4096];

/// A frozen export of old blocks.
fn frozen() -> (Pool, Served, Wire) {
    let pool = pool(64 << 20);
    let settings = PoolExportSettings {
        multi_conn: true,
        ..PoolExportSettings::default()
    };
    let export = PoolExport::new(pool.clone(), OID, 8 << 20, settings).unwrap();
    let served = serve(Arc::new(export));
    let mut wire = served.connect(true);
    wire.write(0, &OLD.repeat(1024)).unwrap();
    pool.freeze().unwrap();
    (pool, served, wire)
}

/// Take so many answers, none of which is an error.
fn answers(wire: &mut Wire, count: usize) -> HashMap<u64, usize> {
    let taken = (0..count).map(|nth| {
        let answer = wire.answer(0);
        assert_eq!(answer.error, None);
        (answer.cookie, nth)
    });
    taken.collect()
}

#[test]
fn changes_wait_for_the_thaw_and_reads_do_not_wait_for_them() {
    let (pool, served, mut wire) = frozen();
    let asked = [
        wire.ask(command::WRITE, 0, 0, 4096, &[2; 4096]),
        wire.ask(command::WRITE, 0, 5000, 100, &[3; 100]),
        wire.ask(command::TRIM, 0, 8192, 4096, &[]),
        wire.ask(command::TRIM, 0, 16000, 10, &[]),
        wire.ask(command::WRITE_ZEROES, flag::NO_HOLE, 20480, 4096, &[]),
    ];
    // Each finds its own answer, and none of those.
    let mut other = served.connect(true);
    for _ in 0..3 {
        assert!(wire.read(0, MIB).unwrap() == OLD.repeat(256));
        assert!(other.read(0, MIB).unwrap() == OLD.repeat(256));
        assert_eq!(wire.run(command::FLUSH, 0, 0, 0), None);
    }
    // Nothing but its own end makes it smaller.
    assert!(served.exports.resize("disk", 4096).is_err());
    pool.thaw().unwrap();
    let taken = answers(&mut wire, asked.len());
    assert!(asked.iter().all(|cookie| taken.contains_key(cookie)));
    let mut now = OLD.repeat(256);
    now[..4096].fill(2);
    now[5000..5100].fill(3);
    now[8192..12288].fill(0);
    now[16000..16010].fill(0);
    now[20480..24576].fill(0);
    assert!(other.read(0, MIB).unwrap() == now);
    assert_eq!(served.exports.list()[0].counters.errors, 0);
}

/// More than may wait aside, and one larger than is taken in at once: those hold up what comes after them, and fail no less.
#[test]
fn as_many_as_a_client_sends_are_carried_out_after_the_thaw() {
    let (pool, served, wire) = frozen();
    let mut other = served.connect(true);
    let writer = std::thread::spawn(move || {
        let mut wire = wire;
        for block in 0..100u64 {
            wire.ask(command::WRITE, 0, block * 4096, 4096, &[7; 4096]);
        }
        wire.ask(command::WRITE, 0, 1 << 20, MIB, &vec![8; MIB as usize]);
        answers(&mut wire, 101);
        wire
    });
    assert!(other.read(0, MIB).unwrap() == OLD.repeat(256));
    pool.thaw().unwrap();
    let _wire = writer.join().unwrap();
    assert!(other.read(0, 409_600).unwrap() == [7; 409_600]);
    assert!(other.read(1 << 20, MIB).unwrap() == vec![8; MIB as usize]);
}

#[test]
fn who_waits_for_a_thaw_holds_up_no_end() {
    for length in [4096, 192 << 10] {
        let data = vec![2; length as usize];
        let (pool, served, mut wire) = frozen();
        wire.ask(command::WRITE, 0, 0, length, &data);
        served.exports.remove("disk", true).unwrap();
        assert!(wire.is_closed());
        drop(pool);

        let (_, served, mut wire) = frozen();
        wire.ask(command::WRITE, 0, 0, length, &data);
        drop(wire);
        assert!(served.exports.wait_idle("disk", PATIENCE).unwrap());

        let (pool, served, mut wire) = frozen();
        wire.ask(command::WRITE, 0, 0, length, &data);
        let mut other = served.connect(true);
        assert!(other.read(0, 4096).unwrap() == OLD);
        // In good time, and without an answer.
        assert!(served.server.stop(Duration::from_secs(30)));
        assert!(wire.is_closed());
        let mut held = vec![0; 4096];
        pool.get_range(&OID, 0, &mut held, false).unwrap();
        assert!(held == OLD);
    }
}
