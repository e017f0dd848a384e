//! Converts the core's numbers to Python dicts.

use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Statistics as a flat dict.
pub fn numbers<'py>(
    py: Python<'py>,
    fields: Vec<(&'static str, u64)>,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, value) in fields {
        dict.set_item(name, value)?;
    }
    Ok(dict)
}
