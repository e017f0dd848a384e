//! Exports come and go, are full, are damaged, change their size, and are handed from one client to the next.

mod support;

use std::sync::Arc;

use support::{OID, Wire, disk, eventually, pool, serve};
use tmem_nbd::protocol::{command, flag, reply};
use tmem_nbd::{Errno, ExportError, PoolExport, PoolExportSettings};

const MIB: u64 = 1 << 20;

/// Bytes that no codec shrinks.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15);
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

#[test]
fn without_multi_conn_a_second_client_is_refused_while_the_first_is_there() {
    let served = serve(disk(MIB, false));
    let mut first = served.connect(true);
    let (error, why) = served.try_connect(true).err().unwrap();
    assert_eq!(error, reply::ERR_POLICY);
    assert!(why.contains("in use") && why.contains("disk"), "{why}");
    first.write(0, &[5; 4096]).unwrap();
    let counters = served.exports.list()[0].counters;
    assert_eq!((counters.attached, counters.refused), (1, 1));
}

#[test]
fn a_client_whose_old_connection_died_gets_in_at_once_and_finds_its_data() {
    let served = serve(disk(MIB, false));
    for round in 1..20u8 {
        let mut wire = served.connect(true);
        if round > 1 {
            assert_eq!(wire.read(0, 4096).unwrap(), vec![round - 1; 4096]);
        }
        wire.write(0, &[round; 4096]).unwrap();
        // Gone with requests under way, their replies unread.
        for _ in 0..50 {
            wire.ask(command::READ, 0, 0, 65536, &[]);
        }
    }
}

#[test]
fn what_came_before_a_new_client_never_lands_after_it() {
    let served = serve(disk(4 * MIB, false));
    for round in 0..20u8 {
        let mut old = served.connect(false);
        for _ in 0..30 {
            old.ask(command::WRITE, 0, 0, 65536, &[round; 65536]);
        }
        drop(old);
        let mut new = served.connect(false);
        new.write(0, &[round ^ 0xff; 65536]).unwrap();
        assert_eq!(new.read(0, 65536).unwrap(), vec![round ^ 0xff; 65536]);
    }
}

#[test]
fn a_full_pool_is_no_space_and_frees_with_trim() {
    let settings = PoolExportSettings::default();
    let export = PoolExport::new(pool(2 * MIB), OID, 16 * MIB, settings).unwrap();
    let served = serve(Arc::new(export));
    let mut wire = served.connect(true);
    let mut written = 0;
    let refused = loop {
        match wire.write(written * 65536, &noise(written, 65536)) {
            Ok(()) => written += 1,
            Err(errno) => break errno,
        }
    };
    assert_eq!(refused, Errno::NoSpace);
    assert!(written > 4);
    for piece in 0..written {
        assert!(wire.read(piece * 65536, 65536).unwrap() == noise(piece, 65536));
    }
    assert_eq!(served.exports.list()[0].counters.no_space, 1);
    assert_eq!(wire.run(command::TRIM, 0, 0, (16 * MIB) as u32), None);
    wire.write(0, &noise(1, 65536)).unwrap();
}

/// The rest of a page is in nobody's hands but ours.
#[test]
fn a_part_of_a_page_that_finds_no_room_leaves_the_rest_of_it() {
    let pool = pool(8 * MIB);
    let settings = PoolExportSettings::default();
    let export = PoolExport::new(pool.clone(), OID, MIB, settings).unwrap();
    let served = serve(Arc::new(export));
    let mut wire = served.connect(true);
    wire.write(0, &[5; 8192]).unwrap();
    pool.set_quota(4096).unwrap();
    assert_eq!(wire.write(100, &noise(1, 3000)), Err(Errno::NoSpace));
    assert_eq!(wire.read(0, 8192).unwrap(), [5; 8192]);
}

/// A write that fails has changed nothing, or whole pages of what it covers: none is lost.
#[test]
fn a_write_that_finds_no_room_leaves_each_page_old_or_new() {
    let pool = pool(8 * MIB);
    let settings = PoolExportSettings::default();
    let export = PoolExport::new(pool.clone(), OID, 4 * MIB, settings).unwrap();
    let served = serve(Arc::new(export));
    let mut wire = served.connect(true);
    wire.write(0, &[5; 100 * 4096]).unwrap();
    // Room for some of the pages.
    pool.set_quota(30 * 4096).unwrap();
    let new = noise(1, 50 * 4096);
    assert_eq!(wire.write(0, &new), Err(Errno::NoSpace));
    assert_eq!(
        wire.run(command::WRITE_ZEROES, flag::NO_HOLE, 0, 409_600),
        None
    );
    wire.write(0, &[5; 100 * 4096]).unwrap();
    pool.set_quota(1).unwrap();
    assert_eq!(wire.write(0, &new), Err(Errno::NoSpace));
    let held = wire.read(0, 100 * 4096).unwrap();
    for (page, bytes) in held.chunks(4096).enumerate() {
        let new = new.chunks(4096).nth(page);
        assert!(
            bytes == [5; 4096] || Some(bytes) == new,
            "page {page} is neither"
        );
    }
    assert!(held[50 * 4096..] == [5; 50 * 4096]);
}

#[test]
fn draining_lets_nobody_new_in_and_removal_waits_for_clients_or_cuts_them_off() {
    let served = serve(disk(MIB, true));
    let mut first = served.connect(true);
    served.exports.drain("disk", true).unwrap();
    let (error, why) = served.try_connect(false).err().unwrap();
    assert_eq!(error, reply::ERR_SHUTDOWN);
    assert!(why.contains("drained"), "{why}");
    first.write(0, &[1; 4096]).unwrap();
    let in_use = ExportError::InUse {
        name: "disk".into(),
        clients: 1,
    };
    assert_eq!(served.exports.remove("disk", false).err(), Some(in_use));
    served.exports.drain("disk", false).unwrap();
    drop(served.connect(true));
    let removed = served.exports.remove("disk", true).unwrap();
    assert!(first.is_closed());
    assert_eq!(removed.size(), MIB);
    assert_eq!(
        served.try_connect(false).err().unwrap().0,
        reply::ERR_UNKNOWN
    );
    let unknown = ExportError::Unknown("disk".into());
    assert_eq!(served.exports.remove("disk", true).err(), Some(unknown));
}

#[test]
fn a_smaller_export_refuses_what_is_beyond_and_a_larger_again_reads_zeros_there() {
    let served = serve(disk(MIB, true));
    let mut wire = served.connect(true);
    wire.write(0, &[9; MIB as usize]).unwrap();
    served.exports.resize("disk", 10_000).unwrap();
    assert_eq!(wire.write(8192, &[1; 4096]), Err(Errno::NoSpace));
    assert_eq!(wire.read(8192, 4096), Err(Errno::Invalid));
    assert_eq!(served.connect(true).size, 10_000);
    served.exports.resize("disk", MIB).unwrap();
    let mut expected = vec![9; 10_000];
    expected.resize(MIB as usize, 0);
    assert!(wire.read(0, MIB as u32).unwrap() == expected);
    let refused = served.exports.resize("disk", 0).unwrap_err().to_string();
    assert!(refused.contains("not 0"), "{refused}");
}

#[test]
fn a_corrupt_page_is_an_io_error_and_its_neighbours_are_read() {
    use rustix::fs::SeekFrom;
    use std::os::unix::fs::FileExt;
    let arena = support::path().with_extension("arena");
    let options = tmem_core::StoreOptions {
        memory: 8 * MIB,
        arena: Some(arena.clone()),
        ..Default::default()
    };
    let store = tmem_core::Store::open(&options).unwrap();
    let settings = tmem_core::PoolSettings::new(tmem_core::Kind::Persistent);
    let pool = store.pool("disk", &settings).unwrap();
    let export = PoolExport::new(pool, OID, MIB, PoolExportSettings::default()).unwrap();
    let served = serve(Arc::new(export));
    let mut wire = served.connect(true);
    wire.write(0, &noise(3, 3 * 4096)).unwrap();
    let page = &noise(3, 3 * 4096)[4096..8192];
    let mut file = std::fs::File::options();
    let file = file.read(true).write(true).open(&arena).unwrap();
    let (mut frame, mut at) = ([0; 4096], 0);
    loop {
        at = rustix::fs::seek(&file, SeekFrom::Data(at)).unwrap();
        file.read_exact_at(&mut frame, at).unwrap();
        if frame == *page {
            break;
        }
        at += 4096;
    }
    file.write_at(&[!page[10]], at + 10).unwrap();
    assert_eq!(wire.read(4096, 4096), Err(Errno::Io));
    assert_eq!(wire.read(0, 3 * 4096), Err(Errno::Io));
    assert_eq!(
        wire.write(5000, &[0; 10]),
        Err(Errno::Io),
        "part of a corrupt page"
    );
    assert!(wire.read(0, 4096).unwrap() == noise(3, 4096));
    wire.write(4096, &[1; 4096]).unwrap();
    assert_eq!(wire.read(4096, 4096).unwrap(), vec![1; 4096]);
    assert_eq!(served.exports.list()[0].counters.io_errors, 3);
    std::fs::remove_file(&arena).unwrap();
}

#[test]
fn writers_of_parts_of_one_page_lose_nothing_of_each_other() {
    let served = serve(disk(MIB, true));
    let write = |part: u64| {
        let mut wire = served.connect(true);
        for round in 0..200u8 {
            let offset = part * 512;
            wire.write(offset, &[round; 512]).unwrap();
            assert_eq!(wire.read(offset, 512).unwrap(), [round; 512]);
        }
    };
    std::thread::scope(|scope| (0..4).for_each(|part| drop(scope.spawn(move || write(part)))));
}

#[test]
fn stopping_answers_what_was_received_and_ends_every_connection() {
    let served = serve(disk(MIB, true));
    let mut wires: Vec<Wire> = (0..5).map(|_| served.connect(true)).collect();
    for wire in &mut wires {
        wire.ask(command::WRITE, flag::FUA, 0, 4096, &[1; 4096]);
    }
    eventually(|| served.exports.list()[0].counters.writes == 5);
    assert!(served.server.stop(support::PATIENCE));
    for wire in &mut wires {
        assert_eq!(wire.answer(0).error, None);
        assert!(wire.is_closed());
    }
    assert!(!served.path.exists());
    assert!(served.exports.list()[0].clients.is_empty());
}
