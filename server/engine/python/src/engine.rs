//! `Engine`: an open store. Closing it takes the core away from it and from every pool it gave out; a call under
//! way keeps its own hold, so `close` waits for nobody and the memory goes when the last such call returns.
//!
//! The locks here are taken with the GIL held and released before it is: no fork can find one taken.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use tmem_core::{LOCK_WAIT, Pool, Store, StoreOptions, waiting_at_most};

use crate::args::number;
use crate::dicts::numbers;
use crate::errors::{Errors, lock_of, number_of};
use crate::pool::{Cell, EnginePool};

#[pyclass(frozen, module = "tmem_engine")]
pub struct Engine {
    session: Mutex<Option<Session>>,
    errors: Arc<Errors>,
}

/// What an open engine holds: the store, and the cells of the pools given out.
struct Session {
    store: Store,
    cells: Vec<Weak<Cell>>,
}

#[pymethods]
impl Engine {
    #[staticmethod]
    #[pyo3(signature = (*, errors, memory, accept_threshold, arena=None, shards=None, mlock=false, huge_pages=false, lock_wait=None))]
    #[allow(clippy::too_many_arguments)] // The signature Python sees: keywords only.
    fn open(
        py: Python<'_>,
        errors: &Bound<'_, PyAny>,
        memory: &Bound<'_, PyAny>,
        accept_threshold: &Bound<'_, PyAny>,
        arena: Option<PathBuf>,
        shards: Option<&Bound<'_, PyAny>>,
        mlock: bool,
        huge_pages: bool,
        lock_wait: Option<f64>,
    ) -> PyResult<Engine> {
        let memory = number(memory, "memory", 0, u64::MAX)?;
        let accept_threshold = number(accept_threshold, "accept_threshold", 1, 100)?;
        let shards = shards
            .map(|n| number(n, "shards", 1, u32::MAX.into()))
            .transpose()?;
        let options = StoreOptions {
            memory,
            arena,
            shards,
            mlock,
            huge_pages,
            accept_threshold,
            lock_wait: lock_wait.map_or(Ok(LOCK_WAIT), seconds)?,
        };
        Engine::start(py, errors, || Store::open(&options))
    }

    #[staticmethod]
    #[pyo3(signature = (path, *, errors, mlock=false))]
    fn attach(
        py: Python<'_>,
        path: PathBuf,
        errors: &Bound<'_, PyAny>,
        mlock: bool,
    ) -> PyResult<Engine> {
        Engine::start(py, errors, || Store::attach(&path, mlock))
    }

    #[pyo3(name = "pool")]
    fn open_pool(
        &self,
        py: Python<'_>,
        name: &str,
        settings: &Bound<'_, PyAny>,
    ) -> PyResult<EnginePool> {
        let settings = crate::settings::from_object(settings)?;
        let pool = self.run(py, |store| store.pool(name, &settings))?;
        self.give_out(py, pool)
    }

    fn find_pool(&self, py: Python<'_>, name: &str) -> PyResult<Option<EnginePool>> {
        let found = self.run(py, |store| store.find_pool(name))?;
        found.map(|pool| self.give_out(py, pool)).transpose()
    }

    fn pools(&self, py: Python<'_>) -> PyResult<Vec<EnginePool>> {
        let pools = self.run(py, |store| store.pools())?;
        pools
            .into_iter()
            .map(|pool| self.give_out(py, pool))
            .collect()
    }

    fn info<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let info = self.run(py, |store| Ok(store.options()))?;
        let dict = PyDict::new(py);
        dict.set_item("memory", info.memory)?;
        dict.set_item("shards", info.shards)?;
        dict.set_item("arena", info.arena.map(PathBuf::into_os_string))?;
        dict.set_item("accept_threshold", info.accept_threshold)?;
        Ok(dict)
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let fields = self.run(py, |store| Ok(store.stats()?.fields()))?;
        numbers(py, fields)
    }

    fn compact<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let done = self.run(py, |store| store.compact())?;
        numbers(
            py,
            vec![
                ("moved_pages", done.moved_pages),
                ("freed_bytes", done.freed_bytes),
            ],
        )
    }

    fn relinquish(&self, py: Python<'_>, size: &Bound<'_, PyAny>) -> PyResult<u64> {
        let size = number(size, "size", 0, u64::MAX)?;
        self.run(py, |store| store.relinquish(size))
    }

    fn resize(&self, py: Python<'_>, memory: &Bound<'_, PyAny>) -> PyResult<()> {
        let memory = number(memory, "memory", 0, u64::MAX)?;
        self.run(py, |store| store.resize(memory))
    }

    fn commit_reserves(&self, py: Python<'_>, on: bool) -> PyResult<()> {
        self.run(py, |store| store.commit_reserves(on))
    }

    /// Take a lock and release it, waiting as long as anybody does.
    fn wait_for(&self, py: Python<'_>, lock: i64) -> PyResult<()> {
        self.run(py, move |store| store.wait_for(lock_of(lock)))
    }

    /// The locks that were waited for in vain and are held still, each with the process that says it holds it.
    fn stuck(&self, py: Python<'_>) -> PyResult<Vec<(i64, Option<u32>)>> {
        let stuck = self.run(py, |store| Ok(store.stuck()))?;
        let number = |(lock, process)| (number_of(lock), process);
        Ok(stuck.into_iter().map(number).collect())
    }

    /// Raises where a part of the arena cannot be read any more.
    fn whole(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, |store| store.whole())
    }

    fn check(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        self.run(py, |store| store.check())
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let Some(session) = self.session().take() else {
            return Ok(());
        };
        let cells = session.cells.iter().filter_map(Weak::upgrade);
        let pools: Vec<Arc<Pool>> = cells.filter_map(|cell| cell.take()).collect();
        self.errors.run(py, || {
            drop((pools, session.store));
            Ok(())
        })
    }

    #[getter]
    fn closed(&self) -> bool {
        self.session().is_none()
    }

    /// Fails as a fault inside the engine would; for tests of what callers then see.
    fn _panic(&self, py: Python<'_>, message: String) -> PyResult<()> {
        self.run(py, |_| panic!("{message}"))
    }
}

impl Engine {
    fn start(
        py: Python<'_>,
        errors: &Bound<'_, PyAny>,
        open: impl FnOnce() -> tmem_core::Result<Store> + Send,
    ) -> PyResult<Engine> {
        let errors = Arc::new(Errors::of(errors)?);
        let store = errors.run(py, open)?;
        let session = Session {
            store,
            cells: Vec::new(),
        };
        Ok(Engine {
            session: Mutex::new(Some(session)),
            errors,
        })
    }

    /// The store, for what is to use it beside this engine.
    pub fn store(&self, py: Python<'_>) -> PyResult<Store> {
        self.run(py, |store| Ok(store.clone()))
    }

    fn run<T: Send>(
        &self,
        py: Python<'_>,
        call: impl FnOnce(&Store) -> tmem_core::Result<T> + Send,
    ) -> PyResult<T> {
        let store = self.session().as_ref().map(|session| session.store.clone());
        let store = store.ok_or_else(|| self.errors.closed(py))?;
        self.errors.run(py, move || call(&store))
    }

    /// A pool that `close` will reach; refused when the engine was closed meanwhile.
    fn give_out(&self, py: Python<'_>, pool: Pool) -> PyResult<EnginePool> {
        let pool = EnginePool::new(pool, self.errors.clone());
        let mut session = self.session();
        let session = session.as_mut().ok_or_else(|| self.errors.closed(py))?;
        session.cells.retain(|cell| cell.strong_count() > 0);
        session.cells.push(pool.cell());
        Ok(pool)
    }

    fn session(&self) -> MutexGuard<'_, Option<Session>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// From now on calls of this thread wait for no lock longer than this; None is as long as anybody.
#[pyfunction]
#[pyo3(signature = (limit))]
pub fn set_lock_wait(limit: Option<f64>) -> PyResult<()> {
    waiting_at_most(limit.map(seconds).transpose()?);
    Ok(())
}

fn seconds(number: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(number)
        .map_err(|why| PyValueError::new_err(format!("lock_wait is {number}: {why}")))
}
