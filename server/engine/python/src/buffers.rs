//! Memory that Python owns, as slices: the only `unsafe` of the bindings.
//!
//! A slice made here outlives the GIL's release, so its owner is held for as long: a `bytes` by reference, anything
//! else by its buffer export, which also keeps a `bytearray` from being resized. The engine only copies bytes in or
//! out and checks what it copied, so a caller that writes to its buffer from another thread during the call tears
//! its own page and nothing else.

#![allow(unsafe_code)]

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// Bytes to read: `bytes`, or any C-contiguous buffer.
pub enum Source<'py> {
    Bytes(Bound<'py, PyBytes>),
    Buffer(PyUntypedBuffer),
}

impl<'py> Source<'py> {
    pub fn of(value: &Bound<'py, PyAny>, name: &str) -> PyResult<Source<'py>> {
        match value.cast::<PyBytes>() {
            Ok(bytes) => Ok(Source::Bytes(bytes.clone())),
            Err(_) => contiguous(value, name).map(Source::Buffer),
        }
    }

    pub fn as_slice(&self) -> &[u8] {
        match self {
            Source::Bytes(bytes) => bytes.as_bytes(),
            Source::Buffer(buffer) if buffer.len_bytes() == 0 => &[],
            // SAFETY: the export holds `len_bytes` contiguous bytes at `buf_ptr` for as long as `self` lives. The
            // engine reads them as plain bytes; what a racing writer of the caller's leaves there is garbage, and valid.
            Source::Buffer(buffer) => unsafe {
                std::slice::from_raw_parts(buffer.buf_ptr().cast(), buffer.len_bytes())
            },
        }
    }
}

/// A caller's buffer to write into.
pub struct Target(PyUntypedBuffer);

impl Target {
    pub fn of(value: &Bound<'_, PyAny>, name: &str, size: usize) -> PyResult<Target> {
        let buffer = contiguous(value, name)?;
        let length = buffer.len_bytes();
        if buffer.readonly() {
            return Err(PyValueError::new_err(format!("{name} is read-only")));
        }
        if length != size {
            let why = format!("{name} is {length} bytes long; the range takes {size}");
            return Err(PyValueError::new_err(why));
        }
        Ok(Target(buffer))
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        if self.0.len_bytes() == 0 {
            return &mut [];
        }
        // SAFETY: the export is contiguous, writable and lives as long as `self`; `&mut self` makes this the only
        // slice of it made here, and the caller of `get_range` keeps other threads off the buffer during the call.
        unsafe { std::slice::from_raw_parts_mut(self.0.buf_ptr().cast(), self.0.len_bytes()) }
    }
}

/// Fresh `bytes` objects of one length, still private: filled through `slices`, then handed out.
pub struct FreshPages<'py>(Vec<Bound<'py, PyBytes>>);

impl<'py> FreshPages<'py> {
    /// Zeroed, so that no memory is read before it was written. `size` is at least 2: shorter `bytes` are shared.
    pub fn new(py: Python<'py>, count: usize, size: usize) -> PyResult<FreshPages<'py>> {
        assert!(size >= 2);
        let page = |_| PyBytes::new_with(py, size, |_| Ok(()));
        (0..count)
            .map(page)
            .collect::<PyResult<_>>()
            .map(FreshPages)
    }

    pub fn slices(&mut self) -> Vec<&mut [u8]> {
        let slice = |page: &mut Bound<'py, PyBytes>| {
            // SAFETY: `page` was made by `new`, nobody else has a reference to it, and `&mut self` keeps it from being
            // handed out while the slice lives; PyBytes_AsString points to its own `len` bytes, and no hash is cached yet.
            unsafe {
                let start = ffi::PyBytes_AsString(page.as_ptr()).cast::<u8>();
                std::slice::from_raw_parts_mut(start, page.as_bytes().len())
            }
        };
        self.0.iter_mut().map(slice).collect()
    }
}

impl<'py> IntoIterator for FreshPages<'py> {
    type Item = Bound<'py, PyBytes>;
    type IntoIter = std::vec::IntoIter<Bound<'py, PyBytes>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

fn contiguous(value: &Bound<'_, PyAny>, name: &str) -> PyResult<PyUntypedBuffer> {
    let buffer = PyUntypedBuffer::get(value).map_err(|error| {
        match (
            error.is_instance_of::<PyTypeError>(value.py()),
            value.get_type().name(),
        ) {
            (true, Ok(kind)) => {
                PyTypeError::new_err(format!("{name} must be bytes or a buffer, not {kind}"))
            }
            _ => error,
        }
    })?;
    match buffer.is_c_contiguous() {
        true => Ok(buffer),
        false => Err(PyValueError::new_err(format!("{name} is not C-contiguous"))),
    }
}
