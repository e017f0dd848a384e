//! zstd frames, by the C library, stripped of what the page's slot says already: magic number, content size, checksum.
//!
//! Contexts are made when first used, for they are large (a thread that only ever sees LZ4 has none) and are kept.
//! Decoding is in one shot, straight into the page: whatever window a damaged frame claims, no memory is taken for it.

use zstd_safe::{CCtx, CParameter, DCtx, DParameter, FrameFormat, ParamSwitch, ResetDirective};

#[derive(Default)]
pub struct Zstd {
    encoder: Option<Encoder>,
    decoder: Option<DCtx<'static>>,
}

struct Encoder {
    context: CCtx<'static>,
    level: i32,
}

impl Zstd {
    /// Compress the page into `out`. Bytes written; None when it does not fit.
    pub fn encode(&mut self, level: i32, page: &[u8], out: &mut [u8]) -> Option<usize> {
        self.encoder
            .get_or_insert_with(|| Encoder::new(level))
            .encode(level, page, out)
    }

    /// Decompress the block into `page`. Bytes written, which may be fewer than the page holds; None when damaged.
    pub fn decode(&mut self, block: &[u8], page: &mut [u8]) -> Option<usize> {
        self.decoder
            .get_or_insert_with(decoder)
            .decompress(page, block)
            .ok()
    }
}

impl Encoder {
    fn new(level: i32) -> Encoder {
        let mut context = CCtx::create();
        for parameter in [
            CParameter::Format(FrameFormat::Magicless),
            CParameter::ContentSizeFlag(false),
            CParameter::ChecksumFlag(false),
            // Left to itself the library does so at high levels and for large windows alone.
            CParameter::UseBlockSplitter(ParamSwitch::Enable),
            CParameter::CompressionLevel(level),
        ] {
            set(&mut context, parameter);
        }
        Encoder { context, level }
    }

    fn encode(&mut self, level: i32, page: &[u8], out: &mut [u8]) -> Option<usize> {
        if level != self.level {
            set(&mut self.context, CParameter::CompressionLevel(level));
            self.level = level;
        }
        let written = self.context.compress2(out, page);
        if written.is_err() {
            // A frame that did not fit is still open.
            self.context
                .reset(ResetDirective::SessionOnly)
                .expect("a session can always be reset");
        }
        written.ok()
    }
}

fn set(context: &mut CCtx<'_>, parameter: CParameter) {
    context
        .set_parameter(parameter)
        .expect("the library knows the parameter");
}

fn decoder() -> DCtx<'static> {
    let mut context = DCtx::create();
    context
        .set_parameter(DParameter::Format(FrameFormat::Magicless))
        .expect("the library knows the parameter");
    context
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Vec<u8> {
        let numbers = (0u32..).flat_map(|i| format!("{} ", i * i).into_bytes());
        numbers.take(4096).collect()
    }

    #[test]
    fn contexts_are_made_when_first_used() {
        let mut zstd = Zstd::default();
        let mut out = vec![0; 4096];
        let len = zstd.encode(1, &page(), &mut out).unwrap();
        assert!(zstd.encoder.is_some() && zstd.decoder.is_none());
        assert_eq!(zstd.decode(&out[..len], &mut [0; 4096]), Some(4096));
    }

    #[test]
    fn a_reused_context_writes_what_a_new_one_would() {
        let mut reused = Zstd::default();
        for level in [1, 19, -7, 3, 1] {
            let (mut one, mut other) = (vec![0; 4096], vec![0; 4096]);
            assert_eq!(reused.encode(level, &page(), &mut [0; 16]), None);
            assert_eq!(
                reused.encode(level, &page(), &mut one),
                Zstd::default().encode(level, &page(), &mut other)
            );
            assert_eq!(one, other, "level {level}");
        }
    }

    #[test]
    fn a_page_of_parts_that_differ_is_smaller_than_the_library_makes_it_unasked() {
        let text = (0u32..).flat_map(|i| format!("{} ", i * 7919).into_bytes());
        let words =
            (0u32..).flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 13 & !0xff).to_le_bytes());
        let page: Vec<u8> = text.take(40_000).chain(words).take(65536).collect();
        let mut out = vec![0; 65536];
        for level in [1, 3, 9] {
            let mut plain = Encoder::new(level);
            set(
                &mut plain.context,
                CParameter::UseBlockSplitter(ParamSwitch::Auto),
            );
            let unasked = plain.encode(level, &page, &mut out).unwrap();
            let length = Zstd::default().encode(level, &page, &mut out).unwrap();
            assert!(
                length * 1000 < unasked * 995,
                "level {level}: {length} of {unasked}"
            );
        }
    }

    #[test]
    fn a_claimed_window_takes_no_memory() {
        let mut zstd = Zstd::default();
        let mut out = vec![0; 4096];
        let len = zstd.encode(1, &page(), &mut out).unwrap();
        let before = zstd.decoder.get_or_insert_with(decoder).sizeof();
        for window in [0x50, 0xA0] {
            out[1] = window; // the window descriptor: 1 MiB, 1 GiB
            assert_eq!(zstd.decode(&out[..len], &mut [0; 4096]), Some(4096));
            assert_eq!(zstd.decoder.as_ref().unwrap().sizeof(), before);
        }
    }
}
