//! A slot: where a zpage lies, and the header by which it tells its own story.
//!
//! ```text
//! zsmalloc, zbud:  | object | index | checksum | seq | state | payload ...        20 bytes, then the payload
//! raw page:        the same five words in the run's frame-table entry; the payload is the run and nothing else
//! ```
//! A slot is valid when its state word says so, and that word is written last; it is cleared first when the page goes.
//! Whatever else a crash cuts short, the index, the free lists and the counters can be made again from the slots.

use crate::arena::W32;

/// Bytes of a slot's header.
pub const HEADER: usize = 20;
/// Words of a slot's header.
pub const HEADER_WORDS: usize = HEADER / 4;

const VALID: u32 = 1 << 31;
const REFERENCED: u32 = 1 << 30;
const FORM_SHIFT: u32 = 24;
const LEN: u32 = (1 << 20) - 1;

/// A slot's place in its shard: 31 bits of 16-byte units from the first frame, and whether it is a raw page.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Zhandle(pub u32);

const RAW: u32 = 1 << 31;

impl Zhandle {
    /// The slot that starts `offset` bytes after the shard's first frame.
    #[inline(always)]
    pub fn at(offset: u64) -> Zhandle {
        debug_assert!(offset.is_multiple_of(16) && offset / 16 < u64::from(RAW));
        Zhandle((offset / 16) as u32)
    }

    /// The raw page in the run whose first frame is `frame`.
    pub fn raw(frame: u32) -> Zhandle {
        Zhandle(frame << 8 | RAW)
    }

    #[inline(always)]
    pub fn is_raw(self) -> bool {
        self.0 & RAW != 0
    }

    /// Bytes from the shard's first frame.
    #[inline(always)]
    pub fn offset(self) -> u64 {
        u64::from(self.0 & !RAW) * 16
    }

    /// The frame it starts in.
    #[inline(always)]
    pub fn frame(self) -> u32 {
        (self.0 & !RAW) >> 8
    }
}

/// What a valid slot says of its zpage. `object` and `index` are the store's; an allocator only carries them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    pub object: u32,
    pub index: u32,
    pub checksum: u32,
    pub seq: u32,
    /// How the payload is encoded, 3 bits.
    pub form: u8,
    /// Bytes of payload.
    pub len: u32,
}

/// A slot in the arena: the cells of its header, and where its payload starts (an offset of the file).
#[derive(Clone, Copy)]
pub struct Slot<'a> {
    pub cells: &'a [W32],
    pub payload: u64,
}

impl Slot<'_> {
    #[inline(always)]
    pub fn is_valid(&self) -> bool {
        self.cells[4].get() & VALID != 0
    }

    #[inline(always)]
    pub fn header(&self) -> Header {
        let state = self.cells[4].get();
        Header {
            object: self.cells[0].get(),
            index: self.cells[1].get(),
            checksum: self.cells[2].get(),
            seq: self.cells[3].get(),
            form: (state >> FORM_SHIFT & 7) as u8,
            len: state & LEN,
        }
    }

    /// Write the header of a slot whose payload is in place; the last store makes it valid.
    #[inline(always)]
    pub fn publish(&self, header: &Header) {
        self.cells[0].set(header.object);
        self.cells[1].set(header.index);
        self.cells[2].set(header.checksum);
        self.cells[3].set(header.seq);
        self.cells[4].publish(VALID | u32::from(header.form) << FORM_SHIFT | header.len);
    }

    /// The page is gone from this store on.
    #[inline(always)]
    pub fn invalidate(&self) {
        self.cells[4].publish(0);
    }

    /// A hit: spare the page at the hand's next pass.
    #[inline(always)]
    pub fn touch(&self) {
        let state = self.cells[4].get();
        if state & REFERENCED == 0 {
            self.cells[4].set(state | REFERENCED);
        }
    }

    /// Whether the page was used since the hand last passed, and forget it.
    pub fn take_reference(&self) -> bool {
        let state = self.cells[4].get();
        if state & REFERENCED != 0 {
            self.cells[4].set(state & !REFERENCED);
        }
        state & REFERENCED != 0
    }
}
