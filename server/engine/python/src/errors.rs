//! The exceptions of one engine, and the guard between the core and Python.
//!
//! The opener of an engine names the classes to raise (any object with these attributes: a module will do). So the
//! core's errors arrive in the caller's own tree without a wrapper in Python, and this module depends on neither.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use tmem_core::{Error, Lock, Result};

/// Exception classes by the attribute they are read from.
pub struct Errors {
    closed: Py<PyAny>,
    mismatch: Py<PyAny>,
    unknown_pool: Py<PyAny>,
    exhausted: Py<PyAny>,
    arena: Py<PyAny>,
    corrupt_page: Py<PyAny>,
    internal: Py<PyAny>,
    unavailable: Py<PyAny>,
}

/// Why a call into the core gave nothing.
pub enum Fault {
    Error(Error),
    Panic(String),
}

impl Errors {
    pub fn of(namespace: &Bound<'_, PyAny>) -> PyResult<Errors> {
        let class = |name: &str| namespace.getattr(name).map(Bound::unbind);
        Ok(Errors {
            closed: class("ClosedError")?,
            mismatch: class("MismatchError")?,
            unknown_pool: class("UnknownPoolError")?,
            exhausted: class("ExhaustedError")?,
            arena: class("ArenaError")?,
            corrupt_page: class("CorruptPageError")?,
            internal: class("InternalError")?,
            unavailable: class("UnavailableError")?,
        })
    }

    /// Call the core with the GIL released; a panic in it becomes `InternalError`.
    pub fn run<T: Send>(
        &self,
        py: Python<'_>,
        call: impl FnOnce() -> Result<T> + Send,
    ) -> PyResult<T> {
        py.detach(|| guard(call))
            .map_err(|fault| self.raise(py, fault))
    }

    pub fn closed(&self, py: Python<'_>) -> PyErr {
        instance(py, &self.closed, ("the store is closed",))
    }

    pub fn corrupt_page(&self, pages: Bound<'_, PyDict>, indices: Vec<u32>) -> PyErr {
        let py = pages.py();
        match PyTuple::new(py, indices) {
            Ok(indices) => instance(py, &self.corrupt_page, (pages, indices)),
            Err(error) => error,
        }
    }

    fn raise(&self, py: Python<'_>, fault: Fault) -> PyErr {
        match fault {
            Fault::Panic(message) => instance(py, &self.internal, (message,)),
            Fault::Error(error) => self.raise_error(py, error),
        }
    }

    /// The table of engine errors and Python exceptions.
    fn raise_error(&self, py: Python<'_>, error: Error) -> PyErr {
        match error {
            Error::Invalid(why) => PyValueError::new_err(why),
            Error::Mismatch(why) => instance(py, &self.mismatch, (why,)),
            Error::UnknownPool(name) => instance(py, &self.unknown_pool, (name,)),
            Error::Exhausted(why) => instance(py, &self.exhausted, (why,)),
            Error::Arena { path, why } => instance(py, &self.arena, (path, why)),
            Error::Io { path, what, source } => {
                instance(py, &self.arena, (path, format!("{what}: {source}")))
            }
            Error::Busy { lock, waited, .. } => {
                let held = instance(py, &self.unavailable, (error.to_string(),));
                let told = held.value(py).setattr("lock", number_of(lock));
                told.and_then(|()| held.value(py).setattr("waited", waited))
                    .map_or_else(|error| error, |()| held)
            }
            Error::Damaged { shard, why } => instance(
                py,
                &self.arena,
                ("", format!("shard {shard} is damaged: {why}")),
            ),
        }
    }
}

/// A lock as a number: 0 for the pool table's, then the shards', -1 for the one of attaching.
pub fn number_of(lock: Lock) -> i64 {
    match lock {
        Lock::Attaching => -1,
        Lock::Admin => 0,
        Lock::Shard(shard) => i64::from(shard) + 1,
    }
}

/// The lock of a number.
pub fn lock_of(number: i64) -> Lock {
    match number {
        ..0 => Lock::Attaching,
        0 => Lock::Admin,
        _ => Lock::Shard((number - 1) as u32),
    }
}

fn guard<T>(call: impl FnOnce() -> Result<T>) -> std::result::Result<T, Fault> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(answer) => answer.map_err(Fault::Error),
        Err(payload) => {
            let text = payload.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
            Err(Fault::Panic(
                text.unwrap_or("panic in the engine").to_owned(),
            ))
        }
    }
}

fn instance<'py, A>(py: Python<'py>, class: &Py<PyAny>, args: A) -> PyErr
where
    A: pyo3::call::PyCallArgs<'py>,
{
    class
        .bind(py)
        .call1(args)
        .map_or_else(|error| error, PyErr::from_value)
}
