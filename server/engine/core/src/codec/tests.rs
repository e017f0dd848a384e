//! What holds for every codec, every page size and every kind of content.

use proptest::prelude::*;

use super::*;

const SIZES: [usize; 7] = [4096, 8192, 16384, 32768, 65536, 131072, 262144];
const CODECS: [Codec; 9] = [
    Codec::Lz4 { acceleration: 1 },
    Codec::Lz4 { acceleration: 8 },
    Codec::Lz4hc { level: 3 },
    Codec::Lz4hc { level: 9 },
    Codec::Lz4hc { level: 12 },
    Codec::Zstd { level: -7 },
    Codec::Zstd { level: 1 },
    Codec::Zstd { level: 19 },
    Codec::Raw,
];
/// Bytes on both sides of every output, which must not change.
const GUARD: usize = 64;
const CANARY: u8 = 0xC5;

#[derive(Clone, Copy, Debug)]
enum Content {
    Zero,
    Pattern,
    /// Words drawn from a small set, as in tables and text.
    Compressible,
    /// Noise at the start, then zeros.
    MostlyEmpty,
    Random,
}

const CONTENTS: [Content; 5] = [
    Content::Zero,
    Content::Pattern,
    Content::Compressible,
    Content::MostlyEmpty,
    Content::Random,
];

fn page(content: Content, size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_F491_4F6C_DD1D)
    };
    let fill = random();
    let word = |at: usize| match content {
        Content::Zero => 0,
        Content::Pattern => fill,
        Content::Compressible => (random() >> 58) * 0x0001_0101_0101,
        Content::MostlyEmpty if at < size / 16 => random(),
        Content::MostlyEmpty => 0,
        Content::Random => random(),
    };
    (0..size / 8).map(word).flat_map(u64::to_le_bytes).collect()
}

/// Run `write` on a buffer between two guards, and check them.
fn guarded<T>(size: usize, write: impl FnOnce(&mut [u8]) -> T) -> (T, Vec<u8>) {
    let mut buffer = vec![CANARY; GUARD + size + GUARD];
    let result = write(&mut buffer[GUARD..GUARD + size]);
    let (before, rest) = buffer.split_at(GUARD);
    let (inside, after) = rest.split_at(size);
    assert!(before.iter().chain(after).all(|&byte| byte == CANARY));
    (result, inside.to_vec())
}

fn encode(
    compressor: &mut Compressor,
    codec: Codec,
    page: &[u8],
    limit: usize,
) -> (Encoded, Vec<u8>) {
    let (encoded, mut block) =
        guarded(page.len(), |out| compressor.encode(codec, page, limit, out));
    block.truncate(encoded.len as usize);
    (encoded, block)
}

fn decode(
    compressor: &mut Compressor,
    form: Form,
    block: &[u8],
    size: usize,
) -> Result<Vec<u8>, Undecodable> {
    let (result, page) = guarded(size, |page| compressor.decode(form, block, page));
    result.map(|()| page)
}

fn any_page() -> impl Strategy<Value = Vec<u8>> {
    let choices = (
        prop::sample::select(&CONTENTS),
        prop::sample::select(&SIZES),
        any::<u64>(),
    );
    choices.prop_map(|(content, size, seed)| page(content, size, seed))
}

fn any_codec() -> impl Strategy<Value = Codec> {
    prop_oneof![
        (1u32..=65537).prop_map(|acceleration| Codec::Lz4 { acceleration }),
        (1u32..=8).prop_map(|acceleration| Codec::Lz4 { acceleration }),
        (3i32..=12).prop_map(|level| Codec::Lz4hc { level }),
        (-7i32..=19).prop_map(|level| Codec::Zstd { level }),
        Just(Codec::Raw),
    ]
}

#[test]
fn every_page_comes_back_whatever_the_codec_and_the_size() {
    let mut compressor = Compressor::new();
    for (size, codec, content) in cases() {
        let page = page(content, size, 42);
        let (encoded, block) = encode(&mut compressor, codec, &page, size);
        assert_eq!(
            encoded.form,
            expected_form(codec, content),
            "{size} {codec} {content:?}"
        );
        assert_eq!(encoded.checksum, checksum(&page));
        let back = decode(&mut compressor, encoded.form, &block, size);
        assert_eq!(back.as_ref(), Ok(&page), "{size} {codec} {content:?}");
    }
}

fn cases() -> impl Iterator<Item = (usize, Codec, Content)> {
    let sizes = SIZES.into_iter();
    sizes.flat_map(|size| {
        CODECS
            .into_iter()
            .flat_map(move |codec| CONTENTS.map(|content| (size, codec, content)))
    })
}

fn expected_form(codec: Codec, content: Content) -> Form {
    match (content, codec) {
        (Content::Zero | Content::Pattern, _) => Form::Same,
        (Content::Random, _) | (_, Codec::Raw) => Form::Raw,
        (_, Codec::Lz4 { .. } | Codec::Lz4hc { .. }) => Form::Lz4,
        (_, Codec::Zstd { .. }) => Form::Zstd,
    }
}

#[test]
fn a_form_is_known_by_its_number() {
    for (bits, form) in [
        (1, Form::Same),
        (2, Form::Lz4),
        (3, Form::Zstd),
        (4, Form::Raw),
    ] {
        assert_eq!(Form::from_bits(bits), Some(form));
        assert_eq!(form as u8, bits);
    }
    assert!(
        (5..=u8::MAX)
            .chain([0])
            .all(|bits| Form::from_bits(bits).is_none())
    );
}

#[test]
fn a_block_of_a_smaller_or_larger_page_is_undecodable() {
    let mut compressor = Compressor::new();
    for codec in CODECS {
        let page = page(Content::MostlyEmpty, 8192, 1);
        let (encoded, block) = encode(&mut compressor, codec, &page, 8192);
        for size in [4096, 16384] {
            let back = decode(&mut compressor, encoded.form, &block, size);
            assert_eq!(back, Err(Undecodable), "{codec} {size}");
        }
    }
}

#[test]
fn a_compressor_moves_between_threads() {
    fn sendable<T: Send>() {}
    sendable::<Compressor>();
}

proptest! {
    #[test]
    fn a_block_never_exceeds_the_limit(page in any_page(), codec in any_codec(), share in 0.0..1.0f64) {
        let mut compressor = Compressor::new();
        let limit = (page.len() as f64 * share) as usize;
        let (encoded, block) = encode(&mut compressor, codec, &page, limit);
        match encoded.form {
            Form::Same => prop_assert_eq!(block.len(), 8),
            Form::Raw => prop_assert_eq!(&block, &page),
            Form::Lz4 | Form::Zstd => prop_assert!(block.len() <= limit),
        }
        prop_assert_eq!(decode(&mut compressor, encoded.form, &block, page.len()), Ok(page));
    }

    #[test]
    fn a_cut_block_is_undecodable(page in any_page(), codec in any_codec(), cut in any::<prop::sample::Index>()) {
        let mut compressor = Compressor::new();
        let (encoded, block) = encode(&mut compressor, codec, &page, page.len());
        let cut = &block[..cut.index(block.len())];
        prop_assert_eq!(decode(&mut compressor, encoded.form, cut, page.len()), Err(Undecodable));
    }

    #[test]
    fn a_flipped_bit_is_undecodable_or_fails_the_checksum(
        page in any_page(), codec in any_codec(), at in any::<prop::sample::Index>(), bit in 0..8u8,
    ) {
        let mut compressor = Compressor::new();
        let (encoded, mut block) = encode(&mut compressor, codec, &page, page.len());
        let at = at.index(block.len());
        block[at] ^= 1u8 << bit;
        if let Ok(other) = decode(&mut compressor, encoded.form, &block, page.len()) {
            prop_assert!(other == page || checksum(&other) != encoded.checksum);
        }
        block[at] ^= 1u8 << bit;
        prop_assert_eq!(decode(&mut compressor, encoded.form, &block, page.len()), Ok(page));
    }

    #[test]
    fn noise_stays_within_bounds(noise in prop::collection::vec(any::<u8>(), 0..300), size in prop::sample::select(&SIZES)) {
        let mut compressor = Compressor::new();
        for form in [Form::Same, Form::Lz4, Form::Zstd, Form::Raw] {
            let _ = decode(&mut compressor, form, &noise, size);
        }
    }
}

#[test]
fn with_less_room_than_the_longest_block_takes_the_same_is_written() {
    for (content, size) in CONTENTS.iter().flat_map(|&c| SIZES.map(|size| (c, size))) {
        let (page, mut compressor) = (page(content, size, 11), Compressor::new());
        for limit in [size / 8, size - size / 32, size] {
            let write = |compressor: &mut Compressor, out: &mut [u8]| {
                let encoded = compressor.encode(CODECS[0], &page, limit, out);
                assert!(encoded.form == Form::Raw || encoded.len as usize <= limit);
                encoded
            };
            let (roomy, long) = guarded(Compressor::room(size), |out| write(&mut compressor, out));
            let (tight, short) = guarded(size, |out| write(&mut compressor, out));
            assert_eq!(roomy, tight, "{content:?} {size} {limit}");
            let len = roomy.len as usize;
            assert_eq!(long[..len], short[..len], "{content:?} {size} {limit}");
        }
    }
}
