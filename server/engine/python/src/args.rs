//! Python values into the core's. Wrong types are `TypeError`, wrong values `ValueError`; each says which argument.

use std::fmt::Display;

use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyInt};
use tmem_core::{Error, Oid};

/// The highest page index, and the most bits of an oid.
pub const MAX_INDEX: u64 = u32::MAX as u64;
const OID_BYTES: usize = 24;

pub fn oid(value: &Bound<'_, PyAny>) -> PyResult<Oid> {
    if let Ok(bytes) = value.cast::<PyBytes>() {
        return Oid::from_bytes(bytes.as_bytes()).map_err(invalid);
    }
    if !value.is_instance_of::<PyInt>() {
        let kind = value.get_type().name()?;
        return Err(PyTypeError::new_err(format!(
            "oid must be an int or bytes, not {kind}; tmem.oid(text) makes one of any text"
        )));
    }
    if let Ok(small) = value.extract::<u64>() {
        let mut oid = [0; OID_BYTES];
        oid[OID_BYTES - 8..].copy_from_slice(&small.to_be_bytes());
        return Ok(Oid(oid));
    }
    let bytes = value
        .call_method1("to_bytes", (OID_BYTES, "big"))
        .map_err(
            |error| match error.is_instance_of::<PyOverflowError>(value.py()) {
                true => PyValueError::new_err("oid is out of range; it must be 0 to 2**192 - 1"),
                false => error,
            },
        )?;
    Oid::from_bytes(bytes.cast::<PyBytes>()?.as_bytes()).map_err(invalid)
}

pub fn index(value: &Bound<'_, PyAny>) -> PyResult<u32> {
    number(value, "index", 0, MAX_INDEX)
}

pub fn indices(values: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    if values.is_instance_of::<PyInt>() {
        return Err(PyTypeError::new_err(
            "indices must be an iterable of ints, not an int",
        ));
    }
    let mut found = Vec::with_capacity(values.len().unwrap_or(0));
    for value in values.try_iter()? {
        found.push(index(&value?)?);
    }
    Ok(found)
}

/// `first` and `count` of a range that ends within the object.
pub fn range(first: &Bound<'_, PyAny>, count: &Bound<'_, PyAny>) -> PyResult<(u32, u32)> {
    let first = number(first, "first", 0, MAX_INDEX)?;
    let count = number(count, "count", 0, MAX_INDEX)?;
    if u64::from(first) + u64::from(count) > MAX_INDEX + 1 {
        let why = format!("the range of {count} pages from {first} ends beyond index {MAX_INDEX}");
        return Err(PyValueError::new_err(why));
    }
    Ok((first, count))
}

/// An int from `low` to `high`. Python's own error for a large one would be `OverflowError`.
pub fn number<T>(value: &Bound<'_, PyAny>, name: &str, low: u64, high: u64) -> PyResult<T>
where
    T: TryFrom<u64>,
{
    let out_of_range = || {
        let why = format!("{name} is {value}; it must be {low} to {high}");
        PyValueError::new_err(why)
    };
    let number: u64 = value.extract().map_err(|error: PyErr| {
        let py = value.py();
        if error.is_instance_of::<PyOverflowError>(py) {
            return out_of_range();
        }
        match value.get_type().name() {
            Ok(kind) if error.is_instance_of::<PyTypeError>(py) => {
                PyTypeError::new_err(format!("{name} must be an int, not {kind}"))
            }
            _ => error,
        }
    })?;
    if !(low..=high).contains(&number) {
        return Err(out_of_range());
    }
    T::try_from(number).map_err(|_| out_of_range())
}

fn invalid(error: impl Into<Error> + Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}
