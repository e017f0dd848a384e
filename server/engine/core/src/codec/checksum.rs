//! The checksum that tells a good page from a damaged one: CRC-32C, which processors compute in hardware.

/// CRC-32C (Castagnoli) of an uncompressed page.
pub fn checksum(page: &[u8]) -> u32 {
    crc32c::crc32c(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From RFC 3720, appendix B.4. Stored pages depend on these.
    #[test]
    fn the_standard_vectors_hold() {
        assert_eq!(checksum(&[0x00; 32]), 0x8A91_36AA);
        assert_eq!(checksum(&[0xFF; 32]), 0x62A8_AB43);
        assert_eq!(
            checksum(&std::array::from_fn::<u8, 32, _>(|i| i as u8)),
            0x46DD_794E
        );
    }
}
