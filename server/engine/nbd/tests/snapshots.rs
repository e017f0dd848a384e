//! Snapshots of an export in use: what is read is the device as it was at one instant, whatever is written meanwhile.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use support::{OID, Wire, disk, serve};
use tmem_core::{Codec, Compressor, Fetch, Form, Kind, Pool, PoolSettings, Store, StoreOptions};
use tmem_nbd::protocol::{command, flag};
use tmem_nbd::{Backend, PoolExport, PoolExportSettings, Snapshot};

const PAGE: usize = 4096;

/// An export of a store of its own, and the pool for its snapshot.
fn export(memory: u64, size: u64, page_size: u32, accept: u32) -> (Arc<PoolExport>, Pool, Store) {
    let options = StoreOptions {
        memory,
        accept_threshold: accept,
        ..StoreOptions::default()
    };
    let store = Store::open(&options).unwrap();
    let settings = PoolSettings {
        codec: Codec::Zstd { level: 1 },
        page_size,
        ..PoolSettings::new(Kind::Persistent)
    };
    let (pool, shadow) = (
        store.pool("disk", &settings),
        store.pool("shadow", &settings),
    );
    let settings = PoolExportSettings {
        multi_conn: true,
        ..PoolExportSettings::default()
    };
    let export = PoolExport::new(pool.unwrap(), OID, size, settings).unwrap();
    (Arc::new(export), shadow.unwrap(), store)
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % end
    }

    fn noise(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.below(256) as u8).collect()
    }
}

/// Read pages of a snapshot into their places.
fn read(snapshot: &Snapshot, page: usize, indices: &[u32], image: &mut [u8]) {
    let found = snapshot.fetch(indices).unwrap();
    for (&index, block) in indices.iter().zip(&found.pages) {
        assert_eq!(block.fetch, Fetch::Hit, "page {index}");
        let bytes = &found.bytes[block.start..block.start + block.len];
        let mut whole = vec![0; page];
        if block.len == page {
            whole.copy_from_slice(bytes);
        } else {
            Compressor::new()
                .decode(Form::Lz4, bytes, &mut whole)
                .unwrap();
        }
        let at = index as usize * page;
        let length = page.min(image.len() - at);
        image[at..at + length].copy_from_slice(&whole[..length]);
    }
}

fn held(snapshot: &Snapshot) -> Vec<u32> {
    let held = snapshot.has(0, snapshot.pages() as u32).unwrap();
    (0..)
        .zip(held)
        .filter_map(|(index, held)| held.then_some(index))
        .collect()
}

/// Anything that changes the device, carried out on a copy of it as well.
fn step(random: &mut Random, wire: &mut Wire, image: &mut [u8]) {
    let size = image.len() as u64;
    let offset = random.below(size);
    let length = (random.below(40_000) + 1).min(size - offset);
    let span = offset as usize..(offset + length) as usize;
    match random.below(4) {
        0 => {
            assert_eq!(wire.run(command::TRIM, 0, offset, length as u32), None);
            image[span].fill(0);
        }
        1 => {
            let no_hole = if random.below(2) == 0 {
                flag::NO_HOLE
            } else {
                0
            };
            let zeroed = wire.run(command::WRITE_ZEROES, no_hole, offset, length as u32);
            assert_eq!(zeroed, None);
            image[span].fill(0);
        }
        2 => {
            let fill = vec![random.below(256) as u8; length as usize];
            wire.write(offset, &fill).unwrap();
            image[span].copy_from_slice(&fill);
        }
        _ => {
            let bytes = random.noise(length as usize);
            wire.write(offset, &bytes).unwrap();
            image[span].copy_from_slice(&bytes);
        }
    }
}

#[test]
fn a_snapshot_is_the_device_as_it_was_whatever_comes_then() {
    for (page, seed) in [(PAGE, 1), (PAGE, 2), (65536, 3)] {
        let size = 2_000_000;
        let (export, shadow, store) = export(64 << 20, size, page as u32, 90);
        let served = serve(export.clone());
        let mut wire = served.connect(true);
        let (mut random, mut image) = (Random(seed), vec![0; size as usize]);
        (0..60).for_each(|_| step(&mut random, &mut wire, &mut image));
        let saving = export.clone().snapshot(shadow.clone()).unwrap();
        let (then, mut seen) = (image.clone(), vec![0; size as usize]);
        (0..30).for_each(|_| step(&mut random, &mut wire, &mut image));
        let indices = held(&saving.snapshot);
        for some in indices.chunks(7) {
            read(&saving.snapshot, page, some, &mut seen);
            saving.snapshot.release(u64::from(some[some.len() - 1]) + 1);
            step(&mut random, &mut wire, &mut image);
        }
        assert!(seen == then, "pages of {page}, seed {seed}");
        // One at a time; and what was kept is gone with it.
        drop(saving);
        assert_eq!(store.pools().unwrap().len(), 1);
        assert!(wire.read(0, size as u32).unwrap() == image);
        assert_eq!(store.check().unwrap(), Vec::<String>::new());
    }
}

/// Writers that count: each writes its number to one page after the other, round after round, and begins a page when the one
/// before is acknowledged. At any instant no page is newer than the one before it, and none older by more than a round.
#[test]
fn no_block_of_a_snapshot_is_newer_than_one_written_before_it() {
    const PAGES: u64 = 300;
    const WRITERS: u64 = 3;
    let (export, shadow, store) = export(64 << 20, WRITERS * PAGES * PAGE as u64, 4096, 90);
    let served = serve(export.clone());
    let (rounds, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let begun = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let mut wire = served.connect(true);
            let (rounds, begun, done) = (&rounds, &begun, &done);
            scope.spawn(move || {
                for round in 1u64.. {
                    for page in 0..PAGES {
                        let at = (writer * PAGES + page) * PAGE as u64;
                        wire.write(at, &round.to_le_bytes().repeat(PAGE / 8))
                            .unwrap();
                    }
                    rounds.fetch_add(1, SeqCst);
                    begun.fetch_add(u64::from(round == 1), SeqCst);
                    if done.load(SeqCst) {
                        return;
                    }
                }
            });
        }
        let _finish = Finish(&done);
        // Until then there are pages that nobody wrote.
        support::eventually(|| begun.load(SeqCst) == WRITERS);
        for take in 0..4 {
            let before = rounds.load(SeqCst);
            support::eventually(|| rounds.load(SeqCst) > before + WRITERS);
            let settings = shadow.settings();
            let shadow = store.pool(&format!("shadow {take}"), &settings).unwrap();
            let saving = export.clone().snapshot(shadow).unwrap();
            let mut image = vec![0; (WRITERS * PAGES) as usize * PAGE];
            let indices: Vec<u32> = (0..(WRITERS * PAGES) as u32).rev().collect();
            for some in indices.chunks(50) {
                let before = rounds.load(SeqCst);
                read(&saving.snapshot, PAGE, some, &mut image);
                support::eventually(|| rounds.load(SeqCst) > before);
            }
            for blocks in image.chunks(PAGES as usize * PAGE) {
                let number = |page: &[u8]| u64::from_le_bytes(page[..8].try_into().unwrap());
                let numbers: Vec<u64> = blocks.chunks(PAGE).map(number).collect();
                assert!(numbers.is_sorted_by(|a, b| a >= b), "{numbers:?}");
                assert!(numbers[0] - numbers[PAGES as usize - 1] <= 1, "{numbers:?}");
            }
        }
    });
}

struct Finish<'a>(&'a AtomicBool);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// It is never the write that fails: not for the copies, and not where the writes themselves take the last of the memory.
#[test]
fn where_memory_ends_the_snapshot_ends_and_no_write_fails() {
    for (accept, why) in [(50, "no memory"), (100, "a write needed the memory")] {
        let size = 10 << 20;
        let (export, shadow, store) = export(8 << 20, size, 4096, accept);
        let served = serve(export.clone());
        let mut wire = served.connect(true);
        let mut random = Random(1);
        let mut image = random.noise(3 << 20);
        wire.write(0, &image).unwrap();
        let saving = export.clone().snapshot(shadow).unwrap();
        let mut written = 0;
        while saving.snapshot.ended().is_none() {
            // First over what is there, which is kept; then beside it.
            let bytes = random.noise(64 << 10);
            let result = wire.write(written, &bytes);
            assert_eq!(result, Ok(()), "at {written}");
            image.resize(image.len().max(written as usize + bytes.len()), 0);
            image[written as usize..written as usize + bytes.len()].copy_from_slice(&bytes);
            written += bytes.len() as u64;
        }
        let ended = saving.snapshot.fetch(&[0]).err().unwrap();
        assert!(ended.contains(why), "{ended}");
        assert_eq!(
            store.pools().unwrap().len(),
            1,
            "what was kept is given back"
        );
        assert!(wire.read(0, image.len() as u32).unwrap() == image);
        // As many more as there would have been room for without it.
        let more = random.noise(64 << 10);
        assert_eq!(wire.write(image.len() as u64, &more), Ok(()));
    }
}

#[test]
fn one_snapshot_at_a_time_and_none_of_it_is_cut_off() {
    let export = disk(1 << 20, false);
    let shadow = |memory| support::pool(memory);
    let first = export.clone().snapshot(shadow(4 << 20)).unwrap();
    let second = export.clone().snapshot(shadow(4 << 20)).err().unwrap();
    assert!(second.to_string().contains("already"), "{second}");
    assert!(export.resize(4096).is_err());
    export.resize(2 << 20).unwrap();
    assert_eq!(first.snapshot.pages(), 256);
    drop(first);
    export.resize(4096).unwrap();
    drop(export.snapshot(shadow(4 << 20)).unwrap());
}
