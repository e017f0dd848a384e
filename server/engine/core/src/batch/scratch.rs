//! What a thread keeps from batch to batch: its buffers, and the pages on their way through them.

use std::cell::RefCell;

use crate::alloc::slot::Header;
use crate::codec::{Compressor, Encoded};
use crate::shard::{Item, PutMode};

/// One thread's buffers, kept from call to call.
#[derive(Default)]
pub struct Scratch {
    pub compressor: Compressor,
    /// Compressed bytes of a stretch.
    pub blocks: Vec<u8>,
    /// One page, where the caller brought none.
    pub page: Vec<u8>,
    /// Positions in the caller's batch, in the order they are worked on.
    pub order: Vec<usize>,
    pub encoded: Vec<Ready>,
    pub copies: Vec<Copied>,
}

thread_local! {
    pub static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

/// A page of a stretch, encoded and ready to be stored.
pub struct Ready {
    /// In the caller's batch.
    pub position: usize,
    pub index: u32,
    pub encoded: Encoded,
    /// Where its bytes start in the scratch's blocks.
    pub start: usize,
}

impl Ready {
    pub fn item<'b>(&self, blocks: &'b [u8], mode: PutMode) -> Item<'b> {
        Item {
            index: self.index,
            form: self.encoded.form,
            checksum: self.encoded.checksum,
            bytes: &blocks[self.start..self.start + self.encoded.len as usize],
            mode,
        }
    }
}

/// A zpage copied out of its shard.
pub struct Copied {
    /// In the caller's batch.
    pub position: usize,
    pub index: u32,
    /// Where its bytes start in the scratch's blocks.
    pub start: usize,
    pub header: Header,
}
