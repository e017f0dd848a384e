//! Codec: a page in, the fewest bytes worth keeping out, and back again.
//!
//! A page is tried as same-filled first (an 8-byte pattern), then with its pool's codec; when that would take more
//! than the caller's limit it is kept raw. [`Form`] says which of these a stored block is; the page size is not in
//! the block, so a reader must know it.
//! Blocks are untrusted: decoding damaged bytes yields [`Undecodable`] or a wrong page, which the checksum of the
//! uncompressed page then shows; it never panics and never writes outside the page it was given.
//! Locking: none. A [`Compressor`] belongs to one thread at a time and is reused for every page.

mod checksum;
mod lz4;
mod lz4hc;
mod same;
mod zstd;

#[cfg(test)]
mod tests;

pub use checksum::checksum;
pub use same::same_filled;

use crate::types::Codec;

/// How a stored zpage's bytes are to be read. Stable numbers: they are written in the arena.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Form {
    /// The 8-byte pattern that fills the page.
    Same = 1,
    /// One LZ4 block, without a frame.
    Lz4 = 2,
    /// One zstd frame, without magic number, content size and checksum.
    Zstd = 3,
    /// The page itself.
    Raw = 4,
}

/// What became of an encoded page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Encoded {
    pub form: Form,
    /// Bytes written to the caller's buffer.
    pub len: u32,
    /// Checksum of the uncompressed page.
    pub checksum: u32,
}

/// The block does not decode to exactly one page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the block does not decode to a page")]
pub struct Undecodable;

/// One thread's compression state and nothing else.
#[derive(Default)]
pub struct Compressor {
    lz4: lz4::Lz4,
    lz4hc: lz4hc::Lz4hc,
    zstd: zstd::Zstd,
}

impl Form {
    /// The form with this number, if there is one.
    pub fn from_bits(bits: u8) -> Option<Form> {
        [Form::Same, Form::Lz4, Form::Zstd, Form::Raw]
            .into_iter()
            .find(|form| *form as u8 == bits)
    }
}

impl Compressor {
    pub fn new() -> Compressor {
        Compressor::default()
    }

    /// Encode a page into the start of `out`, whose rest may be scribbled on. It is quickest where `out` has
    /// [`Compressor::room`] for the page.
    ///
    /// `limit` is the most bytes a compressed block may take; a page that needs more is copied as [`Form::Raw`].
    /// A same-filled page takes 8 bytes whatever the limit.
    /// Panics unless the page is a whole number of 8-byte words, `limit <= page.len()` and `out` has room for a page.
    pub fn encode(&mut self, codec: Codec, page: &[u8], limit: usize, out: &mut [u8]) -> Encoded {
        let (form, len) = match same_filled(page) {
            Some(pattern) => (Form::Same, same::encode(pattern, out)),
            None => self
                .compress_within(codec, page, limit, out)
                .unwrap_or_else(|| {
                    out[..page.len()].copy_from_slice(page);
                    (Form::Raw, page.len())
                }),
        };
        Encoded {
            form,
            len: u32::try_from(len).expect("a page is shorter than 4 GiB"),
            checksum: checksum(page),
        }
    }

    /// The most bytes that encoding a page may want to write to.
    pub fn room(page: usize) -> usize {
        lz4::room(page)
    }

    /// None: the codec is raw, or the block would not fit in `out`.
    pub fn compress(&mut self, codec: Codec, page: &[u8], out: &mut [u8]) -> Option<(Form, usize)> {
        self.compress_within(codec, page, out.len(), out)
    }

    fn compress_within(
        &mut self,
        codec: Codec,
        page: &[u8],
        limit: usize,
        out: &mut [u8],
    ) -> Option<(Form, usize)> {
        match codec {
            Codec::Lz4 { acceleration } => {
                let len = self.lz4.encode(acceleration, page, limit, out)?;
                Some((Form::Lz4, len))
            }
            Codec::Lz4hc { level } => {
                let len = self.lz4hc.encode(level, page, &mut out[..limit])?;
                Some((Form::Lz4, len))
            }
            Codec::Zstd { level } => {
                let len = self.zstd.encode(level, page, &mut out[..limit])?;
                Some((Form::Zstd, len))
            }
            Codec::Raw => None,
        }
    }

    /// Decode a block into `page`, whose length is the page size. Does not look at the checksum.
    ///
    /// After an error the page holds anything.
    pub fn decode(&mut self, form: Form, block: &[u8], page: &mut [u8]) -> Result<(), Undecodable> {
        let len = match form {
            Form::Same => same::decode(block, page),
            Form::Lz4 => lz4::decode(block, page),
            Form::Zstd => self.zstd.decode(block, page),
            Form::Raw if block.len() == page.len() => {
                page.copy_from_slice(block);
                Some(page.len())
            }
            Form::Raw => None,
        };
        if len == Some(page.len()) {
            Ok(())
        } else {
            Err(Undecodable)
        }
    }
}
