//! LZ4 blocks by the C library's thorough search: smaller than `lz4`'s, slower to make, and decoded as those are.
//!
//! The state is large (256 KiB), so a thread that never needs it has none; it is kept. From page to page the library
//! only moves on in it, where wiping it would cost more than a page takes at low levels; it looks at no page but the
//! one it was given, so blocks do not depend on what was compressed before.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void};

use super::lz4::length;

// Of the library that lz4-sys builds in, though it does not declare them.
unsafe extern "C" {
    fn LZ4_sizeofStateHC() -> c_int;
    fn LZ4_initStreamHC(state: *mut c_void, bytes: usize) -> *mut c_void;
    fn LZ4_compress_HC_extStateHC_fastReset(
        state: *mut c_void,
        source: *const c_char,
        dest: *mut c_char,
        source_size: c_int,
        dest_capacity: c_int,
        level: c_int,
    ) -> c_int;
}

/// Compression state, made when it is first used.
#[derive(Default)]
pub struct Lz4hc {
    state: Option<Box<[u64]>>,
}

impl Lz4hc {
    /// Compress the page into `out`. Bytes written; None when it does not fit.
    pub fn encode(&mut self, level: i32, page: &[u8], out: &mut [u8]) -> Option<usize> {
        let (page_len, room) = (c_int::try_from(page.len()).ok()?, length(out.len()));
        let state = self.state.get_or_insert_with(initialized);
        // SAFETY: the state is LZ4_sizeofStateHC() bytes, 8-byte aligned, initialized once by LZ4_initStreamHC and
        // exclusively ours. The library reads `page_len` bytes of the page and writes at most `room` bytes of `out`,
        // which are no more than the slices hold; the slices do not overlap, for one of them is exclusive. Of pages
        // given before it keeps positions alone, which lie before the window that it compares within.
        let written = unsafe {
            LZ4_compress_HC_extStateHC_fastReset(
                state.as_mut_ptr().cast(),
                page.as_ptr().cast(),
                out.as_mut_ptr().cast(),
                page_len,
                room,
                level,
            )
        };
        usize::try_from(written).ok().filter(|&len| len > 0)
    }
}

fn initialized() -> Box<[u64]> {
    // SAFETY: takes nothing and returns a constant.
    let bytes = usize::try_from(unsafe { LZ4_sizeofStateHC() }).expect("a size");
    let mut state = vec![0u64; bytes.div_ceil(size_of::<u64>())].into_boxed_slice();
    // SAFETY: the state is `bytes` bytes and more, 8-byte aligned, and exclusively ours.
    let made = unsafe { LZ4_initStreamHC(state.as_mut_ptr().cast(), size_of_val(&*state)) };
    assert!(
        !made.is_null(),
        "the state is as large and as aligned as the library wants"
    );
    state
}

#[cfg(test)]
mod tests {
    use super::super::lz4::{Lz4, decode};
    use super::*;

    fn page(seed: u32) -> Vec<u8> {
        let numbers = (seed..).flat_map(|i| format!("{} ", i * i).into_bytes());
        numbers.take(16384).collect()
    }

    #[test]
    fn the_state_is_made_when_first_used() {
        let mut hc = Lz4hc::default();
        assert!(hc.state.is_none());
        hc.encode(9, &page(1), &mut [0; 16384]).unwrap();
        assert!(hc.state.is_some());
    }

    #[test]
    fn a_reused_state_writes_what_a_new_one_would() {
        let mut reused = Lz4hc::default();
        for (seed, level) in (0..).zip([9, 3, 12, 4, 11, 9, 3, 10]) {
            let (mut one, mut other) = (vec![0; 16384], vec![0; 16384]);
            assert_eq!(reused.encode(level, &page(seed), &mut [0; 16]), None);
            let length = reused.encode(level, &page(seed), &mut one);
            let fresh = Lz4hc::default().encode(level, &page(seed), &mut other);
            assert_eq!(length, fresh, "level {level}");
            assert_eq!(one, other, "level {level}");
        }
    }

    #[test]
    fn its_blocks_are_smaller_and_decode_as_lz4() {
        let (mut quick, mut dense) = (vec![0; 16384], vec![0; 16384]);
        let most = Lz4::default()
            .encode(1, &page(7), 16384, &mut quick)
            .unwrap();
        let mut least = most;
        for level in [3, 9, 12] {
            let length = Lz4hc::default()
                .encode(level, &page(7), &mut dense)
                .unwrap();
            assert!(
                length < most && length <= least,
                "level {level}: {length} of {most}"
            );
            let mut back = vec![0; 16384];
            assert_eq!(decode(&dense[..length], &mut back), Some(16384));
            assert_eq!(back, page(7));
            least = length;
        }
    }

    /// The library counts positions of all pages in 32 bits and starts over after a GiB of them.
    #[test]
    fn a_state_that_has_seen_gigabytes_goes_on() {
        let mut hc = Lz4hc::default();
        let (zeros, mut out) = (vec![0; 64 << 20], vec![0; 1 << 20]);
        for _ in 0..18 {
            hc.encode(3, &zeros, &mut out).unwrap();
        }
        let length = hc.encode(9, &page(3), &mut out).unwrap();
        let mut back = vec![0; 16384];
        assert_eq!(decode(&out[..length], &mut back), Some(16384));
        assert_eq!(back, page(3));
    }
}
