//! `SanGateway`: a volume with its cache, served to NBD clients from threads of this process.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use tmem_nbd::client::{ClientTls, Endpoint, Uri};
use tmem_nbd::san::{
    Backing, CacheAddress, FileBacking, Gateway, NbdBacking, Register, Settings, Status, Tokens,
    Volume, default_state,
};
use tmem_nbd::{Access, Exports, Listen, Server, Settings as Serving};

/// For connecting to the cache, and for its answers to puts and flushes.
const CONNECT: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_millis(500);

/// How long the start waits for the cache.
const AT_FIRST: Duration = Duration::from_millis(500);

#[pyclass(frozen, module = "tmem_engine")]
pub struct SanGateway {
    running: Mutex<Option<Running>>,
    addresses: Vec<String>,
    size: u64,
    warm: bool,
}

struct Running {
    server: Server,
    gateway: Arc<Gateway>,
}

#[pymethods]
impl SanGateway {
    #[new]
    #[pyo3(signature = (backing, server, pool, listen, *, page_size, shared_object, state, key, trust, max_delay, scan, readahead, readahead_memory, threads, tls=None, san_timeout=60.0))]
    #[allow(clippy::too_many_arguments)] // The signature Python sees.
    fn new(
        py: Python<'_>,
        backing: &str,
        server: &str,
        pool: &str,
        listen: Vec<String>,
        page_size: u32,
        shared_object: Option<[u8; 24]>,
        state: Option<PathBuf>,
        key: String,
        trust: bool,
        max_delay: f64,
        scan: u64,
        readahead: u64,
        readahead_memory: u64,
        threads: usize,
        tls: Option<(PathBuf, Option<(PathBuf, PathBuf)>)>,
        san_timeout: f64,
    ) -> PyResult<SanGateway> {
        let value = |why: String| PyValueError::new_err(why);
        let endpoint = Endpoint::parse(server).map_err(value)?;
        let listen = listen.iter().map(|address| address.parse());
        let listen: Vec<Listen> = listen.collect::<Result<_, _>>().map_err(value)?;
        let max_delay = Duration::try_from_secs_f64(max_delay)
            .map_err(|_| value(format!("max_delay is {max_delay}; it is seconds")))?;
        let san_timeout = Duration::try_from_secs_f64(san_timeout)
            .map_err(|_| value(format!("san_timeout is {san_timeout}; it is seconds")))?;
        if !matches!(page_size, 4096 | 8192 | 16384 | 32768 | 65536) {
            return Err(value(format!(
                "page_size is {page_size}; a gateway's must be 4096, 8192, 16384, 32768 or 65536"
            )));
        }
        let state = match state.or_else(default_state) {
            Some(state) => state,
            None => {
                return Err(value(
                    "nothing says where the state is kept: --state".into(),
                ));
            }
        };
        let register = Register::of_user(&state);
        let tokens = Some(Tokens {
            directory: state,
            key,
            trust,
        });
        let tls = tls.map(|(ca, own)| ClientTls { ca, own });
        if let Some(tls) = &tls {
            tls.load().map_err(value)?; // at the start what is wrong is said, later it is waited for
            if matches!(endpoint, Endpoint::Unix(_)) {
                return Err(value(format!(
                    "{server} is a Unix socket, and TLS is for TCP"
                )));
            }
        }
        let settings = Settings {
            cache: CacheAddress {
                endpoint,
                tls,
                pool: pool.into(),
                page: page_size,
                connect: CONNECT,
                patience: PATIENCE,
            },
            volume: match shared_object {
                Some(object) => Volume::Shared { object },
                None => Volume::Exclusive { tokens },
            },
            register: Some(register),
            max_delay,
            scan,
            readahead,
            readahead_memory,
        };
        let read_only = shared_object.is_some();
        let opened = py.detach(|| open(backing, read_only, threads, san_timeout))?;
        let started = py.detach(|| start(opened, &listen, settings));
        started.map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy => PyOSError::new_err(format!("{backing}: {error}")),
            _ => error.into(),
        })
    }

    #[getter]
    fn addresses(&self) -> Vec<String> {
        self.addresses.clone()
    }

    #[getter]
    fn size(&self) -> u64 {
        self.size
    }

    #[getter]
    fn warm(&self) -> bool {
        self.warm
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let status = self.status(py)?;
        let mut fields = status.counters;
        fields.push(("cache_up", u64::from(status.cache_down.is_none())));
        fields.push(("san_up", u64::from(status.san_down.is_none())));
        fields.push(("cache_latency_us", status.cache_micros));
        fields.push(("san_latency_us", status.san_micros));
        crate::engine::numbers(py, fields)
    }

    #[allow(clippy::type_complexity)] // By name: bounds with counts, the count, the sum.
    fn latencies(
        &self,
        py: Python<'_>,
    ) -> PyResult<Vec<(&'static str, (Vec<(u64, u64)>, u64, u64))>> {
        let status = self.status(py)?;
        Ok(vec![
            ("cache", status.hit_latency),
            ("san", status.miss_latency),
        ])
    }

    #[getter]
    fn cache_down(&self, py: Python<'_>) -> PyResult<Option<String>> {
        Ok(self.status(py)?.cache_down)
    }

    #[getter]
    fn san_down(&self, py: Python<'_>) -> PyResult<Option<String>> {
        Ok(self.status(py)?.san_down)
    }

    fn wait_cache(&self, py: Python<'_>, seconds: f64) -> PyResult<bool> {
        let gateway = self.gateway()?;
        Ok(py.detach(|| gateway.wait_cache(Duration::from_secs_f64(seconds.clamp(0.0, 1e6)))))
    }

    #[pyo3(signature = (detach=true, grace=30.0))]
    fn stop(&self, py: Python<'_>, detach: bool, grace: f64) -> PyResult<bool> {
        let Some(running) = self.running().take() else {
            return Ok(false);
        };
        let grace = Duration::from_secs_f64(grace.clamp(0.0, 1e6));
        let stopped = py.detach(move || {
            running
                .server
                .stop(if detach { grace } else { Duration::ZERO });
            match detach {
                true => running.gateway.detach(grace),
                false => Ok(false),
            }
        });
        stopped.map_err(PyErr::from)
    }
}

impl SanGateway {
    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gateway(&self) -> PyResult<Arc<Gateway>> {
        let running = self.running();
        let gateway = running.as_ref().map(|running| running.gateway.clone());
        gateway.ok_or_else(|| PyOSError::new_err("the gateway is stopped"))
    }

    fn status(&self, py: Python<'_>) -> PyResult<Status> {
        let gateway = self.gateway()?;
        Ok(py.detach(|| gateway.status()))
    }
}

fn start(
    backing: Arc<dyn Backing>,
    listen: &[Listen],
    settings: Settings,
) -> io::Result<SanGateway> {
    let size = backing.size();
    let gateway = Arc::new(Gateway::start(backing, settings)?);
    gateway.wait_cache(AT_FIRST); // so that, as a rule, the first read finds it
    let exports = Exports::new();
    exports
        .add("", gateway.backend(), Access::Everybody)
        .map_err(io::Error::other)?;
    let server = Server::start(listen, exports, Serving::default())?;
    Ok(SanGateway {
        addresses: server.addresses().to_vec(),
        size,
        warm: gateway.is_warm(),
        running: Mutex::new(Some(Running { server, gateway })),
    })
}

fn open(
    path: &str,
    read_only: bool,
    threads: usize,
    patience: Duration,
) -> PyResult<Arc<dyn Backing>> {
    if Uri::is_one(path) {
        let uri = Uri::parse(path).map_err(PyValueError::new_err)?;
        let backing = NbdBacking::open(&uri, read_only, patience).map_err(PyOSError::new_err)?;
        return Ok(Arc::new(backing));
    }
    let named = |error: io::Error| PyOSError::new_err(format!("{path}: {error}"));
    let backing = FileBacking::open(path.as_ref(), read_only, threads).map_err(named)?;
    Ok(Arc::new(backing))
}
