//! LZ4 blocks: small pages at the usual acceleration by `lz4_flex`, all others, and decoding, by the C library.
//!
//! The C library searches in a table of 16 KiB whatever the page's size; beside page and block that is most of a
//! processor's first cache, and is wiped for each page. `lz4_flex` has one of half the size, which costs small pages a
//! few hundredths of a percent to a third of one, and is quicker by 5 to 50 % (docs/adr/0015-lz4-of-small-pages.md).
//! Tables are the caller's and are reused; both wipe theirs for each page, so blocks do not depend on what was
//! compressed before. (`LZ4_compress_fast_extState_fastReset` saves nothing here: it wipes the table too, for any input
//! of 4096 bytes and more.)
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void};

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use lz4_sys::LZ4_decompress_safe;

// Part of the library's stable interface, though lz4-sys does not declare them.
unsafe extern "C" {
    fn LZ4_sizeofState() -> c_int;
    fn LZ4_compress_fast_extState(
        state: *mut c_void,
        source: *const c_char,
        dest: *mut c_char,
        source_size: c_int,
        dest_capacity: c_int,
        acceleration: c_int,
    ) -> c_int;
}

/// Pages of at most this many bytes are small.
const SMALL: usize = 8192;

/// Compression state.
pub struct Lz4 {
    /// The C library's: opaque to us, words because it wants it 8-byte aligned.
    state: Box<[u64]>,
    table: CompressTable,
    /// For the block of a small page where the caller has less room than the longest takes: `lz4_flex` asks for that much.
    block: Box<[u8]>,
}

impl Default for Lz4 {
    fn default() -> Self {
        // SAFETY: takes nothing and returns a constant.
        let bytes = unsafe { LZ4_sizeofState() };
        let words = usize::try_from(bytes)
            .expect("a size")
            .div_ceil(size_of::<u64>());
        Lz4 {
            state: vec![0; words].into_boxed_slice(),
            table: CompressTable::small(),
            block: vec![0; get_maximum_output_size(SMALL)].into_boxed_slice(),
        }
    }
}

/// The longest block that a page may pass through.
pub fn room(page: usize) -> usize {
    get_maximum_output_size(page)
}

impl Lz4 {
    /// Compress the page into `out`, all of which may be scribbled on. Bytes written, at most `limit`; None when it does
    /// not fit. Where `out` has [`room`] nothing is copied.
    pub fn encode(
        &mut self,
        acceleration: u32,
        page: &[u8],
        limit: usize,
        out: &mut [u8],
    ) -> Option<usize> {
        if acceleration == 1 && page.len() <= SMALL {
            self.encode_small(page, limit, out)
        } else {
            self.encode_any(acceleration, page, &mut out[..limit])
        }
    }

    fn encode_small(&mut self, page: &[u8], limit: usize, out: &mut [u8]) -> Option<usize> {
        if out.len() >= room(page.len()) {
            let len = compress_into_with_table(page, out, &mut self.table).ok()?;
            return (len <= limit).then_some(len);
        }
        let len = compress_into_with_table(page, &mut self.block, &mut self.table).ok()?;
        out[..limit]
            .get_mut(..len)?
            .copy_from_slice(&self.block[..len]);
        Some(len)
    }

    fn encode_any(&mut self, acceleration: u32, page: &[u8], out: &mut [u8]) -> Option<usize> {
        let (page_len, room) = (c_int::try_from(page.len()).ok()?, length(out.len()));
        // SAFETY: the state is LZ4_sizeofState() bytes, 8-byte aligned, and exclusively ours; the call initializes it.
        // The library reads `page_len` bytes of the page and writes at most `room` bytes of `out`, which are no more
        // than the slices hold; the slices do not overlap, for one of them is exclusive.
        let written = unsafe {
            LZ4_compress_fast_extState(
                self.state.as_mut_ptr().cast(),
                page.as_ptr().cast(),
                out.as_mut_ptr().cast(),
                page_len,
                room,
                c_int::try_from(acceleration).unwrap_or(c_int::MAX),
            )
        };
        usize::try_from(written).ok().filter(|&len| len > 0)
    }
}

/// Decompress the block into `page`. Bytes written, which may be fewer than the page holds; None when it is damaged.
pub fn decode(block: &[u8], page: &mut [u8]) -> Option<usize> {
    let (block_len, room) = (c_int::try_from(block.len()).ok()?, length(page.len()));
    // SAFETY: the library trusts nothing in the block: it reads at most `block_len` bytes of it and writes at most
    // `room` bytes of the page, which are no more than the slices hold; the slices do not overlap.
    let written = unsafe {
        LZ4_decompress_safe(
            block.as_ptr().cast(),
            page.as_mut_ptr().cast(),
            block_len,
            room,
        )
    };
    usize::try_from(written).ok()
}

/// Room as the library counts it; it cannot be told of more than 2 GiB.
pub(super) fn length(bytes: usize) -> c_int {
    c_int::try_from(bytes).unwrap_or(c_int::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four literals, a match of 55 bytes at distance 4, five last literals.
    const BLOCK: &[u8] = b"\x4Fabcd\x04\x00\x24\x50dabcd";

    #[test]
    fn a_block_written_by_hand_decodes() {
        let mut page = [0; 64];
        assert_eq!(decode(BLOCK, &mut page), Some(64));
        assert_eq!(page, *b"abcd".repeat(16));
    }

    #[test]
    fn the_format_is_the_plain_block_format() {
        let page = b"abcd".repeat(16);
        let mut out = [0; 64];
        let len = Lz4::default().encode(2, &page, 64, &mut out).unwrap();
        assert_eq!(&out[..len], BLOCK);
    }

    /// Both encoders follow the rule of the format's end, five literals at least, each in its own way.
    #[test]
    fn small_pages_come_in_the_same_format() {
        let page = b"abcd".repeat(16);
        let mut out = [0; 64];
        let len = Lz4::default().encode(1, &page, 64, &mut out).unwrap();
        assert_eq!(&out[..len], b"\x4Fabcd\x04\x00\x23\x60cdabcd".as_slice());
        let mut back = [0; 64];
        assert_eq!(decode(&out[..len], &mut back), Some(64));
        assert_eq!(&back[..], page);
    }

    #[test]
    fn a_match_before_the_start_is_refused() {
        assert_eq!(decode(b"\x1Fa\x02\x00\x24\x50dabcd", &mut [0; 64]), None);
    }

    #[test]
    fn a_block_for_a_larger_page_is_refused() {
        assert_eq!(decode(BLOCK, &mut [0; 63]), None);
    }

    #[test]
    fn an_empty_block_is_refused() {
        assert_eq!(decode(b"", &mut [0; 64]), None);
    }
}
