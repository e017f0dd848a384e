//! A pool's settings, as Python has them and as the core does: attributes of any object in, a dict out.

use std::fmt::Display;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use tmem_core::{AllocatorKind, Codec, Kind, PoolSettings};

use crate::args::{MAX_INDEX, number};

pub fn from_object(value: &Bound<'_, PyAny>) -> PyResult<PoolSettings> {
    let text = |name: &str| {
        let given = value.getattr(name)?.extract::<String>();
        given.map_err(|error| about(name, &error, value))
    };
    let flag = |name: &str| {
        let given = value.getattr(name)?.extract::<bool>();
        given.map_err(|error| about(name, &error, value))
    };
    let small = |name: &str| number(&value.getattr(name)?, name, 0, MAX_INDEX);
    Ok(PoolSettings {
        kind: Kind::parse(&text("kind")?).map_err(invalid)?,
        codec: Codec::parse(&text("codec")?).map_err(invalid)?,
        allocator: AllocatorKind::parse(&text("allocator")?).map_err(invalid)?,
        page_size: small("page_size")?,
        quota: number(&value.getattr("quota")?, "quota", 0, u64::MAX)?,
        weight: small("weight")?,
        shared: flag("shared")?,
        inclusive: flag("inclusive")?,
        max_zpage: small("max_zpage")?,
        owner: text("owner")?,
    })
}

pub fn to_dict<'py>(py: Python<'py>, settings: &PoolSettings) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("kind", settings.kind.name())?;
    dict.set_item("codec", settings.codec.to_string())?;
    dict.set_item("allocator", settings.allocator.name())?;
    dict.set_item("page_size", settings.page_size)?;
    dict.set_item("quota", settings.quota)?;
    dict.set_item("weight", settings.weight)?;
    dict.set_item("shared", settings.shared)?;
    dict.set_item("inclusive", settings.inclusive)?;
    dict.set_item("max_zpage", settings.max_zpage)?;
    dict.set_item("owner", &settings.owner)?;
    Ok(dict)
}

fn about(name: &str, error: &PyErr, value: &Bound<'_, PyAny>) -> PyErr {
    PyTypeError::new_err(format!("{name}: {}", error.value(value.py())))
}

fn invalid(error: impl Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}
