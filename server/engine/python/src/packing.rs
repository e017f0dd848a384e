//! Batches as they travel: pages packed into LZ4 blocks, blocks unpacked and verified, with the GIL released once.
//!
//! A block as long as a page is the page itself, as on the wire.

use std::cell::RefCell;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use tmem_core::{Codec, Compressor, Form, MAX_PAGE, checksum};

use crate::buffers::{FreshPages, Source};

const LZ4: Codec = Codec::Lz4 { acceleration: 1 };

#[derive(Default)]
struct Scratch {
    compressor: Compressor,
    blocks: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[pyfunction]
pub fn pack<'py>(
    py: Python<'py>,
    pages: Vec<Bound<'py, PyAny>>,
    page_size: usize,
) -> PyResult<(Vec<usize>, Bound<'py, PyBytes>)> {
    check_size(page_size)?;
    let sources = pages
        .iter()
        .map(|page| Source::of(page, "page"))
        .collect::<PyResult<Vec<_>>>()?;
    let pages: Vec<&[u8]> = sources.iter().map(Source::as_slice).collect();
    if let Some(page) = pages.iter().find(|page| page.len() != page_size) {
        let why = format!("a page is {} bytes long, not {page_size}", page.len());
        return Err(PyValueError::new_err(why));
    }
    SCRATCH.with_borrow_mut(|scratch| {
        let lengths = py.detach(|| scratch.pack(&pages, page_size));
        let total = lengths.iter().sum();
        Ok((lengths, PyBytes::new(py, &scratch.blocks[..total])))
    })
}

#[pyfunction]
pub fn unpack<'py>(
    py: Python<'py>,
    blob: &Bound<'py, PyAny>,
    lengths: Vec<usize>,
    checksums: Vec<u32>,
    page_size: usize,
) -> PyResult<Vec<Option<Bound<'py, PyBytes>>>> {
    check_size(page_size)?;
    let source = Source::of(blob, "blob")?;
    let blocks = cut(&lengths, source.as_slice())?;
    if checksums.len() != blocks.len() {
        let (n, m) = (checksums.len(), blocks.len());
        let why = format!("there are {n} checksums for {m} blocks");
        return Err(PyValueError::new_err(why));
    }
    let mut pages = FreshPages::new(py, blocks.len(), page_size)?;
    let slices = pages.slices();
    let sound = SCRATCH
        .with_borrow_mut(|scratch| py.detach(|| scratch.unpack(&blocks, &checksums, slices)));
    let page = |(sound, page): (bool, Bound<'py, PyBytes>)| sound.then_some(page);
    Ok(sound.into_iter().zip(pages).map(page).collect())
}

impl Scratch {
    /// The length of each block; the blocks are at the start of `self.blocks`.
    fn pack(&mut self, pages: &[&[u8]], page_size: usize) -> Vec<usize> {
        let room = Compressor::room(page_size);
        self.blocks.resize(pages.len() * page_size + room, 0);
        let mut rest = &mut self.blocks[..];
        let mut lengths = Vec::with_capacity(pages.len());
        for page in pages {
            let packed = self.compressor.compress(LZ4, page, &mut rest[..room]);
            let length = packed.map_or(page_size, |(_, length)| length.min(page_size));
            if length == page_size {
                rest[..page_size].copy_from_slice(page);
            }
            lengths.push(length);
            rest = &mut rest[length..];
        }
        lengths
    }

    /// Which pages are what their checksums say.
    fn unpack(&mut self, blocks: &[&[u8]], checksums: &[u32], pages: Vec<&mut [u8]>) -> Vec<bool> {
        let each = blocks.iter().zip(checksums).zip(pages);
        each.map(|((block, sum), page)| {
            let form = if block.len() == page.len() {
                Form::Raw
            } else {
                Form::Lz4
            };
            self.compressor.decode(form, block, page).is_ok() && checksum(page) == *sum
        })
        .collect()
    }
}

/// A blob cut into blocks of these lengths, which make it up.
pub fn cut<'b>(lengths: &[usize], mut blob: &'b [u8]) -> PyResult<Vec<&'b [u8]>> {
    let total = lengths
        .iter()
        .try_fold(0usize, |sum, length| sum.checked_add(*length));
    if total != Some(blob.len()) {
        let why = format!("the lengths do not add up to {} bytes", blob.len());
        return Err(PyValueError::new_err(why));
    }
    let next = |&length: &usize| {
        let (block, rest) = blob.split_at(length);
        blob = rest;
        block
    };
    Ok(lengths.iter().map(next).collect())
}

fn check_size(page_size: usize) -> PyResult<()> {
    if (8..=MAX_PAGE).contains(&page_size) && page_size.is_multiple_of(8) {
        return Ok(());
    }
    let why = format!("a page cannot be {page_size} bytes long");
    Err(PyValueError::new_err(why))
}
