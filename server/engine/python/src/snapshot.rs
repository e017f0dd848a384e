//! `NbdSnapshot`: an export's blocks as they were at one instant. It ends when it is let go, or is told to.

use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use tmem_core::Kind;
use tmem_nbd::{Saving, Snapshot};

use crate::args;
use crate::pool::{FetchedParts, fetched_parts};

/// Pages looked at with one look, and looks of one call.
const LOOK: u32 = 1 << 16;
const LOOKS: u32 = 256;

#[pyclass(frozen, module = "tmem_engine")]
pub struct NbdSnapshot {
    saving: Mutex<Option<Saving>>,
    snapshot: Arc<Snapshot>,
    paused: f64,
}

impl NbdSnapshot {
    pub fn new(saving: Saving) -> NbdSnapshot {
        NbdSnapshot {
            snapshot: saving.snapshot.clone(),
            paused: saving.paused.as_secs_f64(),
            saving: Mutex::new(Some(saving)),
        }
    }

    fn take(&self) -> Option<Saving> {
        let mut saving = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        saving.take()
    }
}

#[pymethods]
impl NbdSnapshot {
    #[getter]
    fn paused(&self) -> f64 {
        self.paused
    }

    /// Indices of pages from `first` on that it has, some at a time, and where to go on; None at the end.
    fn held(&self, py: Python<'_>, first: &Bound<'_, PyAny>) -> PyResult<(Vec<u32>, Option<u64>)> {
        let first: u64 = args::number(first, "first", 0, 1 << 32)?;
        py.detach(|| held(&self.snapshot, first))
            .map_err(PyRuntimeError::new_err)
    }

    fn fetch<'py>(
        &self,
        py: Python<'py>,
        indices: &Bound<'py, PyAny>,
    ) -> PyResult<FetchedParts<'py>> {
        let indices = args::indices(indices)?;
        let found = py.detach(|| self.snapshot.fetch(&indices));
        let found = found.map_err(PyRuntimeError::new_err)?;
        fetched_parts(py, &found, Kind::Persistent)
    }

    fn release(&self, py: Python<'_>, page: &Bound<'_, PyAny>) -> PyResult<()> {
        let page = args::number(page, "page", 0, 1 << 32)?;
        py.detach(|| self.snapshot.release(page));
        Ok(())
    }

    /// End it; why it was no more already, if so.
    fn end(&self, py: Python<'_>) -> Option<String> {
        let before = self.snapshot.ended().map(str::to_owned);
        py.detach(|| drop(self.take()));
        before
    }
}

fn held(snapshot: &Snapshot, first: u64) -> Result<(Vec<u32>, Option<u64>), String> {
    let (mut found, mut at) = (Vec::new(), first);
    for _ in 0..LOOKS {
        if at >= snapshot.pages() {
            return Ok((found, None));
        }
        let held = snapshot.has(at as u32, LOOK)?;
        let indices = (at as u32..).zip(&held);
        found.extend(indices.filter_map(|(index, held)| held.then_some(index)));
        at += held.len() as u64;
        if !found.is_empty() {
            break;
        }
    }
    Ok((found, (at < snapshot.pages()).then_some(at)))
}
