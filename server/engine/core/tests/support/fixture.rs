//! The arena of layout 4 that a build of that time made: `tests/fixtures/layout4`.
//!
//! `arena.lz4` is the file's length and its frames that are not zeros: their number, of each its offset and the length of
//! its LZ4 block, then the blocks; one as long as a frame is the frame itself. `pages.txt` has a line for each page: pool, object, index, checksum.
#![allow(dead_code, unsafe_code)] // each test binary uses a part of it; a lock on a byte of a file

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use crate::support::Scratch;
use tmem_core::{Fetch, Oid, Store, checksum};

pub const VERSION_AT: u64 = 8;
const BOOT_AT: u64 = 56;
const FRAME: usize = 4096;

pub struct Fixture {
    length: u64,
    frames: Vec<(u64, Vec<u8>)>,
    pages: Vec<(String, Oid, u32, u32)>,
}

fn path(name: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.join("../../../tests/fixtures/layout4").join(name)
}

impl Fixture {
    pub fn read() -> Fixture {
        let bytes = std::fs::read(path("arena.lz4")).expect("the fixture");
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let count = u32_at(8) as usize;
        let mut at = 12 + 12 * count;
        let unpack = |n: usize| {
            let (offset, length) = (u64_at(12 + 12 * n), u32_at(20 + 12 * n) as usize);
            let block = &bytes[at..at + length];
            at += length;
            let frame = match length {
                FRAME => block.to_vec(),
                _ => lz4_flex::block::decompress(block, FRAME).expect("a block"),
            };
            (offset, frame)
        };
        let frames = (0..count).map(unpack).collect();
        let text = std::fs::read_to_string(path("pages.txt")).expect("the fixture");
        let page = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            let byte = |at: usize| u8::from_str_radix(&words[1][2 * at..2 * at + 2], 16).unwrap();
            let oid = Oid(std::array::from_fn(byte));
            let sum = u32::from_str_radix(words[3], 16).unwrap();
            (words[0].to_owned(), oid, words[2].parse().unwrap(), sum)
        };
        Fixture {
            length: u64_at(0),
            frames,
            pages: text.lines().map(page).collect(),
        }
    }

    /// A copy of the arena, as if it had been made since the system was started.
    pub fn unpack(&self, name: &str) -> Scratch {
        let (scratch, boot) = (self.unpack_old(name), boot_id());
        let file = File::options().write(true).open(&scratch.0).unwrap();
        file.write_all_at(&boot, BOOT_AT).unwrap();
        scratch
    }

    /// A copy of the arena, made before that.
    pub fn unpack_old(&self, name: &str) -> Scratch {
        let scratch = Scratch::new(name);
        let mut options = File::options();
        options.write(true).create_new(true).mode(0o600);
        let file = options.open(&scratch.0).expect("a new file");
        file.set_len(self.length).expect("a length");
        for (offset, frame) in &self.frames {
            file.write_all_at(frame, *offset).expect("room");
        }
        file.write_all_at(&[7; 16], BOOT_AT).expect("room");
        scratch
    }

    /// Every page is there as it was; ephemeral ones, which a restart of the system costs, if `all`.
    #[track_caller]
    pub fn assert_held(&self, store: &Store, all: bool) {
        assert!(self.pages.len() > 200);
        for (pool, oid, index, sum) in &self.pages {
            let pool = store.find_pool(pool).expect("a store").expect("a pool");
            let mut page = vec![0; pool.page_size()];
            let name = pool.name();
            if all && name == "private" {
                assert!(pool.has(oid, *index, 1).unwrap()[0]);
                continue; // a get would take it out
            }
            let fetched = pool
                .get(oid, &[*index], &mut [&mut page], false)
                .expect("a get")[0];
            if !all && ["cache", "shared", "private"].contains(&name) {
                assert_eq!(fetched, Fetch::Miss);
                continue;
            }
            assert_eq!(
                (fetched, checksum(&page)),
                (Fetch::Hit, *sum),
                "{name} {index}"
            );
        }
    }
}

/// Hold a byte of a file locked, as those do who are attached.
pub fn lock(file: &File, byte: i64, kind: libc::c_int) {
    let lock = libc::flock {
        l_type: kind as _,
        l_whence: libc::SEEK_SET as _,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: a plain system call; `lock` outlives it.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    assert_eq!(done, 0);
}

fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let half = |at: usize| {
        u64::from_str_radix(&hex[at..at + 16], 16)
            .unwrap()
            .to_le_bytes()
    };
    [half(0), half(16)].concat().try_into().unwrap()
}
