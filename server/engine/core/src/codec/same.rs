//! Same-filled pages: one 8-byte pattern over and over, zeros above all. The block is the pattern.

/// Bytes of the pattern.
const WORD: usize = 8;

/// The little-endian word that fills the page, if one does.
///
/// A page that equals itself shifted by a word repeats its first word; comparing the two is a `memcmp`, which
/// leaves at the first difference and uses the widest registers there are.
/// Panics unless the page is a whole number of words.
pub fn same_filled(page: &[u8]) -> Option<u64> {
    assert_eq!(page.len() % WORD, 0, "a page is a whole number of words");
    let (first, rest) = page.split_first_chunk()?;
    (*rest == page[..rest.len()]).then(|| u64::from_le_bytes(*first))
}

/// Write the pattern to the start of `out`. Bytes written.
pub fn encode(pattern: u64, out: &mut [u8]) -> usize {
    out[..WORD].copy_from_slice(&pattern.to_le_bytes());
    WORD
}

/// Fill the page. Bytes written; None when the block is not a pattern.
pub fn decode(block: &[u8], page: &mut [u8]) -> Option<usize> {
    let pattern: [u8; WORD] = block.try_into().ok()?;
    let (words, _) = page.as_chunks_mut();
    words.fill(pattern);
    Some(words.len() * WORD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_found_and_filled_in_again() {
        for pattern in [0, 1, u64::MAX, 0x0102_0304_0506_0708] {
            let mut page = [0xAA; 4096];
            assert_eq!(decode(&pattern.to_le_bytes(), &mut page), Some(4096));
            assert_eq!(same_filled(&page), Some(pattern));
        }
    }

    #[test]
    fn one_differing_byte_anywhere_is_noticed() {
        for at in 0..4096 {
            let mut page = [7; 4096];
            page[at] = 8;
            assert_eq!(same_filled(&page), None, "byte {at}");
        }
    }

    #[test]
    fn a_block_that_is_not_eight_bytes_is_no_pattern() {
        for len in [0, 7, 9, 4096] {
            assert_eq!(decode(&vec![0; len], &mut [0; 4096]), None);
        }
    }
}
