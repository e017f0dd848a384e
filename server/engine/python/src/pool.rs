//! `EnginePool`: the pages of one pool. Batches in, one GIL release, batches out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyList};
use tmem_core::{Fetch, Fetched, FetchedPage, Kind, Outcome, Pool, Result, ScanCursor};

use crate::args;
use crate::buffers::{FreshPages, Source, Target};
use crate::dicts::numbers;
use crate::errors::Errors;
use crate::packing::cut;
use crate::settings;

/// Where a pool handle finds its pool, until the engine is closed.
pub struct Cell(Mutex<Option<Arc<Pool>>>);

#[pyclass(frozen, module = "tmem_engine")]
pub struct EnginePool {
    cell: Arc<Cell>,
    errors: Arc<Errors>,
    name: String,
    id: u64,
    page_size: usize,
    kind: Kind,
}

#[pymethods]
impl EnginePool {
    #[getter]
    fn name(&self) -> &str {
        &self.name
    }

    #[getter]
    fn id(&self) -> u64 {
        self.id
    }

    #[getter]
    fn page_size(&self) -> usize {
        self.page_size
    }

    fn put<'py>(
        &self,
        py: Python<'py>,
        oid: &Bound<'py, PyAny>,
        pages: &Bound<'py, PyDict>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        self.put_each(py, oid, pages, "page", Pool::put)
    }

    fn put_lz4<'py>(
        &self,
        py: Python<'py>,
        oid: &Bound<'py, PyAny>,
        blocks: &Bound<'py, PyDict>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        self.put_each(py, oid, blocks, "block", Pool::put_lz4)
    }

    #[pyo3(signature = (oid, indices, lengths, blob))]
    fn put_packed<'py>(
        &self,
        py: Python<'py>,
        oid: &Bound<'py, PyAny>,
        indices: &Bound<'py, PyAny>,
        lengths: Option<Vec<usize>>,
        blob: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let oid = args::oid(oid)?;
        let indices = args::indices(indices)?;
        let source = Source::of(blob, "blob")?;
        let lengths = lengths.unwrap_or_else(|| vec![self.page_size; indices.len()]);
        let blocks = cut(&lengths, source.as_slice())?;
        if blocks.len() != indices.len() {
            let (n, m) = (blocks.len(), indices.len());
            return Err(PyValueError::new_err(format!(
                "there are {n} blocks for {m} indices"
            )));
        }
        let batch: Vec<_> = indices.into_iter().zip(blocks).collect();
        let outcomes = self.run(py, |pool| pool.put_packed(&oid, &batch))?;
        Ok(codes(py, &outcomes))
    }

    fn put_range<'py>(
        &self,
        py: Python<'py>,
        oid: &Bound<'py, PyAny>,
        first: &Bound<'py, PyAny>,
        buffer: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let oid = args::oid(oid)?;
        let first = args::number(first, "first", 0, u32::MAX.into())?;
        let source = Source::of(buffer, "buffer")?;
        let data = source.as_slice();
        let outcomes = self.run(py, |pool| pool.put_range(&oid, first, data))?;
        Ok(codes(py, &outcomes))
    }

    #[pyo3(signature = (oid, indices, exclusive=false))]
    fn get<'py>(
        &self,
        py: Python<'py>,
        oid: &Bound<'py, PyAny>,
        indices: &Bound<'py, PyAny>,
        exclusive: bool,
    ) -> PyResult<Bound<'py, PyDict>> {
        let oid = args::oid(oid)?;
        let indices = args::indices(indices)?;
        let mut pages = FreshPages::new(py, indices.len(), self.page_size)?;
        let mut slices = pages.slices();
        let fetches = self.run(py, |pool| pool.get(&oid, &indices, &mut slices, exclusive))?;
        let hits = PyDict::new(py);
        for ((index, fetch), page) in indices.iter().zip(&fetches).zip(pages) {
            if *fetch == Fetch::Hit {
                hits.set_item(index, page)?;
            }
        }
        match self.corrupt(&fetches, |at| indices[at]) {
            None => Ok(hits),
            Some(bad) => Err(self.errors.corrupt_page(hits, bad)),
        }
    }

    #[pyo3(signature = (oid, first, count, into=None, exclusive=false))]
    fn get_range<'py>(
        &self,
        py: Python<'py>,
        oid: &Bound<'py, PyAny>,
        first: &Bound<'py, PyAny>,
        count: &Bound<'py, PyAny>,
        into: Option<Bound<'py, PyAny>>,
        exclusive: bool,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyBytes>)> {
        let oid = args::oid(oid)?;
        let (first, count) = args::range(first, count)?;
        let size = count as usize * self.page_size;
        let into = match into {
            Some(buffer) => buffer,
            None => PyByteArray::new_with(py, size, |_| Ok(()))?.into_any(),
        };
        let mut target = Target::of(&into, "into", size)?;
        let slice = target.as_mut_slice();
        let fetches = self.run(py, |pool| pool.get_range(&oid, first, slice, exclusive))?;
        match self.corrupt(&fetches, |at| first + at as u32) {
            None => Ok((
                into,
                mask(py, fetches.iter().map(|fetch| *fetch == Fetch::Hit)),
            )),
            Some(bad) => Err(self
                .errors
                .corrupt_page(self.good(py, first, &fetches, slice)?, bad)),
        }
    }

    #[pyo3(signature = (oid, indices, lz4=false))]
    fn fetch<'py>(
        &self,
        py: Python<'py>,
        oid: &Bound<'py, PyAny>,
        indices: &Bound<'py, PyAny>,
        lz4: bool,
    ) -> PyResult<FetchedParts<'py>> {
        let oid = args::oid(oid)?;
        let indices = args::indices(indices)?;
        let found = self.run(py, |pool| pool.fetch(&oid, &indices, lz4))?;
        fetched_parts(py, &found, self.kind)
    }

    fn flush_if(
        &self,
        py: Python<'_>,
        oid: &Bound<'_, PyAny>,
        stamps: HashMap<u32, u32>,
    ) -> PyResult<u64> {
        let oid = args::oid(oid)?;
        let stamps: Vec<(u32, u32)> = stamps.into_iter().collect();
        self.run(py, |pool| pool.flush_if(&oid, &stamps))
    }

    fn scan<'py>(
        &self,
        py: Python<'py>,
        cursor: &Bound<'py, PyBytes>,
        limit: usize,
    ) -> PyResult<(Vec<ScannedParts<'py>>, Bound<'py, PyBytes>)> {
        let cursor = match cursor.as_bytes() {
            b"" => ScanCursor::START,
            bytes => ScanCursor::from_bytes(bytes)
                .map_err(|error| PyValueError::new_err(error.to_string()))?,
        };
        let (clusters, next) = self.run(py, |pool| pool.scan(cursor, limit))?;
        let parts = clusters.iter().map(|cluster| {
            let (indices, stamps) = cluster.pages.iter().copied().unzip();
            (PyBytes::new(py, &cluster.oid.0), indices, stamps)
        });
        let next = next.map_or_else(Vec::new, ScanCursor::to_bytes);
        Ok((parts.collect(), PyBytes::new(py, &next)))
    }

    fn has<'py>(
        &self,
        py: Python<'py>,
        oid: &Bound<'py, PyAny>,
        first: &Bound<'py, PyAny>,
        count: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let oid = args::oid(oid)?;
        let (first, count) = args::range(first, count)?;
        let held = self.run(py, |pool| pool.has(&oid, first, count))?;
        Ok(mask(py, held.into_iter()))
    }

    fn flush(
        &self,
        py: Python<'_>,
        oid: &Bound<'_, PyAny>,
        indices: &Bound<'_, PyAny>,
    ) -> PyResult<u64> {
        let oid = args::oid(oid)?;
        let indices = args::indices(indices)?;
        self.run(py, |pool| pool.flush(&oid, &indices))
    }

    fn flush_object(&self, py: Python<'_>, oid: &Bound<'_, PyAny>) -> PyResult<u64> {
        let oid = args::oid(oid)?;
        self.run(py, |pool| pool.flush_object(&oid))
    }

    fn destroy(&self, py: Python<'_>) -> PyResult<u64> {
        self.run(py, Pool::destroy)
    }

    fn freeze(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, Pool::freeze)
    }

    fn thaw(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, Pool::thaw)
    }

    fn frozen(&self, py: Python<'_>) -> PyResult<bool> {
        self.run(py, Pool::frozen)
    }

    fn set_quota(&self, py: Python<'_>, size: &Bound<'_, PyAny>) -> PyResult<()> {
        let size = args::number(size, "quota", 0, u64::MAX)?;
        self.run(py, |pool| pool.set_quota(size))
    }

    fn reserve(&self, py: Python<'_>) -> PyResult<u64> {
        self.run(py, Pool::reserve)
    }

    fn set_reserve(&self, py: Python<'_>, size: &Bound<'_, PyAny>) -> PyResult<()> {
        let size = args::number(size, "reserve", 0, u64::MAX)?;
        self.run(py, |pool| pool.set_reserve(size))
    }

    fn set_weight(&self, py: Python<'_>, weight: &Bound<'_, PyAny>) -> PyResult<()> {
        let weight = args::number(weight, "weight", 1, u32::MAX.into())?;
        self.run(py, |pool| pool.set_weight(weight))
    }

    fn settings<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let settings = self.run(py, |pool| pool.frozen().map(|_| pool.settings()))?; // frozen: it is there
        settings::to_dict(py, &settings)
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.run(py, Pool::stats)?;
        let dict = numbers(py, stats.fields())?;
        let classes = PyList::empty(py);
        for class in &stats.classes {
            let fields = vec![
                ("size", class.size),
                ("frames", class.frames),
                ("objects_per_zspage", class.objects_per_zspage),
                ("zspages", class.zspages),
                ("objects", class.objects),
                ("capacity", class.capacity),
                ("freeable_frames", class.freeable_frames),
            ];
            classes.append(numbers(py, fields)?)?;
        }
        dict.set_item("size_histogram", stats.size_histogram)?;
        dict.set_item("classes", classes)?;
        Ok(dict)
    }
}

/// Oid of a cluster, and index and stamp of each of its pages.
type ScannedParts<'py> = (Bound<'py, PyBytes>, Vec<u32>, Vec<u32>);

/// What became of each page; lengths, checksums and stamps of the hits; their bytes.
pub type FetchedParts<'py> = (
    Bound<'py, PyBytes>,
    Vec<usize>,
    Vec<u32>,
    Vec<u32>,
    Bound<'py, PyBytes>,
);

/// What was fetched, as Python has it.
pub fn fetched_parts<'py>(
    py: Python<'py>,
    found: &Fetched,
    kind: Kind,
) -> PyResult<FetchedParts<'py>> {
    let code = |page: &FetchedPage| match page.fetch {
        Fetch::Hit => 1,
        Fetch::Corrupt if kind == Kind::Persistent => 2,
        Fetch::Miss | Fetch::Corrupt => 0,
    };
    let codes: Vec<u8> = found.pages.iter().map(code).collect();
    let hits = || found.pages.iter().filter(|page| page.fetch == Fetch::Hit);
    let bytes = PyBytes::new_with(py, found.bytes.len(), |mut rest| {
        for page in hits() {
            let (here, after) = rest.split_at_mut(page.len);
            here.copy_from_slice(&found.bytes[page.start..page.start + page.len]);
            rest = after;
        }
        Ok(())
    })?;
    Ok((
        PyBytes::new(py, &codes),
        hits().map(|page| page.len).collect(),
        hits().map(|page| page.checksum).collect(),
        hits().map(|page| page.seq).collect(),
        bytes,
    ))
}

type PutEach = fn(&Pool, &tmem_core::Oid, &[(u32, &[u8])]) -> Result<Vec<Outcome>>;

impl EnginePool {
    pub fn new(pool: Pool, errors: Arc<Errors>) -> EnginePool {
        let settings = pool.settings();
        EnginePool {
            name: pool.name().to_owned(),
            id: pool.id(),
            page_size: settings.page_size as usize,
            kind: settings.kind,
            cell: Arc::new(Cell(Mutex::new(Some(Arc::new(pool))))),
            errors,
        }
    }

    pub fn cell(&self) -> Weak<Cell> {
        Arc::downgrade(&self.cell)
    }

    /// The pool itself, for who serves it.
    pub fn core(&self, py: Python<'_>) -> PyResult<Pool> {
        let pool = self.cell.get().ok_or_else(|| self.errors.closed(py))?;
        Ok((*pool).clone())
    }

    fn run<T: Send>(
        &self,
        py: Python<'_>,
        call: impl FnOnce(&Pool) -> Result<T> + Send,
    ) -> PyResult<T> {
        let pool = self.cell.get().ok_or_else(|| self.errors.closed(py))?;
        self.errors.run(py, move || call(&pool))
    }

    fn put_each<'py>(
        &self,
        py: Python<'py>,
        oid: &Bound<'py, PyAny>,
        pages: &Bound<'py, PyDict>,
        name: &str,
        put: PutEach,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let oid = args::oid(oid)?;
        let items = pages.items();
        let mut sources = Vec::with_capacity(items.len());
        for item in items {
            let (index, page): (Bound<'py, PyAny>, Bound<'py, PyAny>) = item.extract()?;
            sources.push((args::index(&index)?, Source::of(&page, name)?));
        }
        let slices: Vec<_> = sources
            .iter()
            .map(|(index, page)| (*index, page.as_slice()))
            .collect();
        let outcomes = self.run(py, |pool| put(pool, &oid, &slices))?;
        Ok(codes(py, &outcomes))
    }

    /// The corrupt pages of a persistent pool, if any; an ephemeral pool has merely lost them.
    fn corrupt(&self, fetches: &[Fetch], index: impl Fn(usize) -> u32) -> Option<Vec<u32>> {
        if self.kind == Kind::Ephemeral || !fetches.contains(&Fetch::Corrupt) {
            return None;
        }
        let bad = fetches
            .iter()
            .enumerate()
            .filter(|(_, fetch)| **fetch == Fetch::Corrupt);
        Some(bad.map(|(at, _)| index(at)).collect())
    }

    /// Copies of the pages of a range that arrived.
    fn good<'py>(
        &self,
        py: Python<'py>,
        first: u32,
        fetches: &[Fetch],
        data: &[u8],
    ) -> PyResult<Bound<'py, PyDict>> {
        let pages = PyDict::new(py);
        for ((index, fetch), page) in (first..).zip(fetches).zip(data.chunks(self.page_size)) {
            if *fetch == Fetch::Hit {
                pages.set_item(index, PyBytes::new(py, page))?;
            }
        }
        Ok(pages)
    }
}

impl Cell {
    fn get(&self) -> Option<Arc<Pool>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub fn take(&self) -> Option<Arc<Pool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// One byte a page, as on the wire.
fn codes<'py>(py: Python<'py>, outcomes: &[Outcome]) -> Bound<'py, PyBytes> {
    let bytes = outcomes.iter().map(|outcome| outcome.byte());
    PyBytes::new(py, &bytes.collect::<Vec<u8>>())
}

/// One byte a page: 1 where it is there, else 0.
fn mask<'py>(py: Python<'py>, found: impl Iterator<Item = bool>) -> Bound<'py, PyBytes> {
    PyBytes::new(py, &found.map(u8::from).collect::<Vec<u8>>())
}
