//! The fixed headers of both phases. Parsing checks the magic and nothing else; lengths are the caller's to judge.

use super::{CHUNK_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC};

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// Build a header out of its fields.
fn pack<const N: usize>(fields: &[&[u8]]) -> [u8; N] {
    let mut header = [0; N];
    let mut at = 0;
    for field in fields {
        header[at..at + field.len()].copy_from_slice(field);
        at += field.len();
    }
    debug_assert_eq!(at, N);
    header
}

/// A command. A write's data follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
}

impl RequestHeader {
    pub const SIZE: usize = 28;

    /// None: the magic is wrong.
    #[inline]
    pub fn parse(bytes: &[u8; Self::SIZE]) -> Option<RequestHeader> {
        (u32_at(bytes, 0) == REQUEST_MAGIC).then(|| RequestHeader {
            flags: u16_at(bytes, 4),
            command: u16_at(bytes, 6),
            cookie: u64_at(bytes, 8),
            offset: u64_at(bytes, 16),
            length: u32_at(bytes, 24),
        })
    }

    pub fn bytes(&self) -> [u8; Self::SIZE] {
        pack(&[
            &REQUEST_MAGIC.to_be_bytes(),
            &self.flags.to_be_bytes(),
            &self.command.to_be_bytes(),
            &self.cookie.to_be_bytes(),
            &self.offset.to_be_bytes(),
            &self.length.to_be_bytes(),
        ])
    }
}

/// A reply without structure. A read's data follows where `error` is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimpleReply {
    pub error: u32,
    pub cookie: u64,
}

impl SimpleReply {
    pub const SIZE: usize = 16;

    /// None: the magic is wrong.
    pub fn parse(bytes: &[u8; Self::SIZE]) -> Option<SimpleReply> {
        (u32_at(bytes, 0) == SIMPLE_REPLY_MAGIC).then(|| SimpleReply {
            error: u32_at(bytes, 4),
            cookie: u64_at(bytes, 8),
        })
    }

    pub fn bytes(&self) -> [u8; Self::SIZE] {
        pack(&[
            &SIMPLE_REPLY_MAGIC.to_be_bytes(),
            &self.error.to_be_bytes(),
            &self.cookie.to_be_bytes(),
        ])
    }
}

/// The head of a structured reply's chunk; `length` bytes follow, of which a data chunk's first 8 are its offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub flags: u16,
    pub kind: u16,
    pub cookie: u64,
    pub length: u32,
}

impl Chunk {
    pub const SIZE: usize = 20;
    /// Where its flags are.
    pub const FLAGS: usize = 4;

    /// None: the magic is wrong.
    pub fn parse(bytes: &[u8; Self::SIZE]) -> Option<Chunk> {
        (u32_at(bytes, 0) == CHUNK_MAGIC).then(|| Chunk {
            flags: u16_at(bytes, 4),
            kind: u16_at(bytes, 6),
            cookie: u64_at(bytes, 8),
            length: u32_at(bytes, 16),
        })
    }

    #[inline]
    pub fn bytes(&self) -> [u8; Self::SIZE] {
        pack(&[
            &CHUNK_MAGIC.to_be_bytes(),
            &self.flags.to_be_bytes(),
            &self.kind.to_be_bytes(),
            &self.cookie.to_be_bytes(),
            &self.length.to_be_bytes(),
        ])
    }
}

/// The head of an option; `length` bytes follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionRequest {
    pub option: u32,
    pub length: u32,
}

impl OptionRequest {
    pub const SIZE: usize = 16;

    /// None: the magic is wrong.
    pub fn parse(bytes: &[u8; Self::SIZE]) -> Option<OptionRequest> {
        (u64_at(bytes, 0) == OPTION_MAGIC).then(|| OptionRequest {
            option: u32_at(bytes, 8),
            length: u32_at(bytes, 12),
        })
    }

    pub fn bytes(&self) -> [u8; Self::SIZE] {
        pack(&[
            &OPTION_MAGIC.to_be_bytes(),
            &self.option.to_be_bytes(),
            &self.length.to_be_bytes(),
        ])
    }
}

/// The head of a reply to an option; `length` bytes follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReply {
    pub option: u32,
    pub kind: u32,
    pub length: u32,
}

impl OptionReply {
    pub const SIZE: usize = 20;

    /// None: the magic is wrong.
    pub fn parse(bytes: &[u8; Self::SIZE]) -> Option<OptionReply> {
        (u64_at(bytes, 0) == OPTION_REPLY_MAGIC).then(|| OptionReply {
            option: u32_at(bytes, 8),
            kind: u32_at(bytes, 12),
            length: u32_at(bytes, 16),
        })
    }

    pub fn bytes(&self) -> [u8; Self::SIZE] {
        pack(&[
            &OPTION_REPLY_MAGIC.to_be_bytes(),
            &self.option.to_be_bytes(),
            &self.kind.to_be_bytes(),
            &self.length.to_be_bytes(),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_header_is_read_as_it_was_written_and_no_other_magic_is() {
        macro_rules! round {
            ($value:expr, $kind:ty) => {
                let mut bytes = $value.bytes();
                assert_eq!(<$kind>::parse(&bytes), Some($value));
                bytes[0] ^= 1;
                assert_eq!(<$kind>::parse(&bytes), None);
            };
        }
        let (flags, cookie, length) = (0x0102, 0x0304_0506_0708_090a, 0x0b0c_0d0e);
        round!(
            RequestHeader {
                flags,
                command: 7,
                cookie,
                offset: 1 << 40,
                length
            },
            RequestHeader
        );
        round!(SimpleReply { error: 28, cookie }, SimpleReply);
        round!(
            Chunk {
                flags,
                kind: 5,
                cookie,
                length
            },
            Chunk
        );
        round!(OptionRequest { option: 7, length }, OptionRequest);
        round!(
            OptionReply {
                option: 7,
                kind: 3,
                length
            },
            OptionReply
        );
    }
}
