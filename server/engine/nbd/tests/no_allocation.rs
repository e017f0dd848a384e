//! Once warm, the thread that serves a connection takes nothing from the heap: whoever swaps to this very host is never made
//! to wait for the memory that it is freeing.

#![allow(unsafe_code)]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use support::{OID, Wire, serve};
use tmem_core::{Codec, Kind, Pool, PoolSettings, Store, StoreOptions};
use tmem_nbd::protocol::{Errno, command, flag};
use tmem_nbd::{
    Backend, ExportInfo, Later, PoolExport, PoolExportSettings, Reply, Request, Served,
};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;

thread_local! {
    /// Where this thread's allocations are counted.
    static COUNT: Cell<Option<&'static AtomicU64>> = const { Cell::new(None) };
}

/// The system's allocator, which counts for the threads that asked for it.
struct Counting;

impl Counting {
    fn count() {
        if let Ok(Some(count)) = COUNT.try_with(Cell::get) {
            count.fetch_add(1, Ordering::SeqCst);
        }
    }
}

// SAFETY: every call is handed on as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Counting::count();
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Counting::count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Counting::count();
        // SAFETY: as above.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// An export that has the threads that serve it counted.
struct Watched {
    export: PoolExport,
    count: &'static AtomicU64,
}

impl Backend for Watched {
    fn info(&self) -> ExportInfo {
        self.export.info()
    }

    fn size(&self) -> u64 {
        self.export.size()
    }

    fn serve(&self, request: Request<'_>, reply: &mut Reply<'_>, later: &Later<'_>) -> Served {
        COUNT.set(Some(self.count));
        self.export.serve(request, reply, later)
    }
}

fn pool(codec: Codec, memory: u64) -> Pool {
    let options = StoreOptions {
        memory,
        shards: Some(2),
        ..StoreOptions::default()
    };
    let settings = PoolSettings {
        codec,
        ..PoolSettings::new(Kind::Persistent)
    };
    Store::open(&options)
        .unwrap()
        .pool("disk", &settings)
        .unwrap()
}

/// Bytes that compress to about half, and never the same twice.
fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let word = |i: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        if i.is_multiple_of(2) { state } else { 7 }
    };
    (0..length / 8)
        .map(word)
        .flat_map(u64::to_le_bytes)
        .collect()
}

/// One client, and what its server allocates meanwhile.
struct Session {
    wire: Wire,
    count: &'static AtomicU64,
    /// The next offset where nothing was written yet.
    fresh: u64,
    seed: u64,
}

impl Session {
    fn write(&mut self, offset: u64, length: usize) {
        self.seed += 1;
        let data = bytes(self.seed, length);
        self.wire.write(offset, &data).unwrap();
    }

    fn write_fresh(&mut self, length: usize) {
        self.write(self.fresh, length);
        self.fresh += length as u64;
    }

    fn run(&mut self, command: u16, flags: u16, offset: u64, length: u32) {
        assert_eq!(self.wire.run(command, flags, offset, length), None);
    }

    /// A round of everything that a client may ask of an export.
    fn round(&mut self) {
        for n in 0..16 {
            self.write(n * 4096, 4096);
            self.write(MIB + n * 4096, 64 << 10);
            self.write(2 * MIB + n * 4096 + 512, 512);
            self.write_fresh(4096);
            self.write(SIZE - MIB + n * 4096 + 1024, 512);
        }
        self.write(4 * MIB, MIB as usize);
        self.write(8 * MIB + 512, MIB as usize);
        self.write_fresh(64 << 10);
        self.write_fresh(MIB as usize);
        for length in [512, 4096, 64 << 10, MIB as u32] {
            assert!(self.wire.read(4 * MIB, length).is_ok());
            assert!(self.wire.read(4 * MIB + 1024, length).is_ok());
            assert!(self.wire.read(SIZE - 2 * MIB, length).is_ok(), "holes");
        }
        self.run(command::WRITE_ZEROES, flag::NO_HOLE, MIB + 512, MIB as u32);
        self.run(command::WRITE_ZEROES, 0, 5 * MIB + 512, 256 << 10);
        self.run(command::TRIM, 0, 4 * MIB + 1024, 512 << 10);
        self.run(command::TRIM, 0, SIZE - MIB, MIB as u32);
        self.run(command::FLUSH, 0, 0, 0);
        if self.wire.structured {
            self.run(command::BLOCK_STATUS, 0, 0, SIZE as u32);
        }
    }

    fn allocations(&mut self, rounds: u32) -> u64 {
        let before = self.count.load(Ordering::SeqCst);
        (0..rounds).for_each(|_| self.round());
        self.count.load(Ordering::SeqCst) - before
    }
}

fn with_session(codec: Codec, structured: bool, body: impl FnOnce(&mut Session)) {
    with_memory(codec, structured, 64 * MIB, body);
}

fn with_memory(codec: Codec, structured: bool, memory: u64, body: impl FnOnce(&mut Session)) {
    let count: &'static AtomicU64 = Box::leak(Box::default());
    let settings = PoolExportSettings::default();
    let export = PoolExport::new(pool(codec, memory), OID, SIZE, settings).unwrap();
    let served = serve(Arc::new(Watched { export, count }));
    let mut session = Session {
        wire: served.connect(structured),
        count,
        fresh: 16 * MIB,
        seed: 0,
    };
    body(&mut session);
}

fn allocates_nothing_once_warm(codec: Codec, structured: bool) {
    with_session(codec, structured, |session| {
        assert!(session.allocations(2) > 0, "buffers are not counted");
        assert_eq!(session.allocations(10), 0);
    });
}

#[test]
fn a_warm_connection_takes_nothing_from_the_heap() {
    allocates_nothing_once_warm(Codec::Lz4 { acceleration: 1 }, true);
}

#[test]
fn nor_with_simple_replies() {
    allocates_nothing_once_warm(Codec::Lz4 { acceleration: 1 }, false);
}

#[test]
fn nor_with_zstd() {
    allocates_nothing_once_warm(Codec::Zstd { level: 1 }, true);
}

#[test]
fn nor_with_pages_as_they_are() {
    allocates_nothing_once_warm(Codec::Raw, true);
}

/// Where there is no room left the store compacts, and refuses: on what it has.
#[test]
fn nor_does_a_full_store() {
    with_memory(Codec::Lz4 { acceleration: 1 }, true, 24 * MIB, |session| {
        session.allocations(2);
        let before = session.count.load(Ordering::SeqCst);
        let mut refused = 0;
        for n in 0..SIZE / (64 << 10) {
            let result = session.wire.write(n * (64 << 10), &bytes(n, 64 << 10));
            assert!(matches!(result, Ok(()) | Err(Errno::NoSpace)));
            refused += u32::from(result.is_err());
        }
        assert!(refused > 0, "it never was full");
        for n in (0..SIZE / 8192).step_by(3) {
            session.run(command::TRIM, 0, n * 8192, 4096);
        }
        for n in 0..SIZE / (64 << 10) {
            let _ = session.wire.write(n * (64 << 10), &bytes(n, 64 << 10));
        }
        let after = session.count.load(Ordering::SeqCst);
        assert_eq!(after - before, 0);
    });
}
