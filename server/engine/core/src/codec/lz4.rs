//! LZ4 blocks, by the C library.
//!
//! Compression state is the caller's and is reused; the library wipes its table for each page, so blocks do not
//! depend on what was compressed before. (`LZ4_compress_fast_extState_fastReset` saves nothing here: it wipes the
//! table too, for any input of 4096 bytes and more.)
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void};

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

/// Compression state: opaque to us, words because the library wants it 8-byte aligned.
pub struct Lz4 {
    state: Box<[u64]>,
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
        }
    }
}

impl Lz4 {
    /// Compress the page into `out`. Bytes written; None when it does not fit.
    pub fn encode(&mut self, acceleration: u32, page: &[u8], out: &mut [u8]) -> Option<usize> {
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
        let len = Lz4::default().encode(1, &page, &mut out).unwrap();
        assert_eq!(&out[..len], BLOCK);
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
