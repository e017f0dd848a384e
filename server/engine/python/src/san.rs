//! `SanGateway`: a volume with its cache, served to NBD clients from threads of this process.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use tmem_nbd::client::{ClientTls, Endpoint, Uri};
use tmem_nbd::san::{
    Backing, CacheAddress, FileBacking, Gateway, NbdBacking, Register, Settings, Status, Tokens,
    Volume, default_state, exposition,
};
use tmem_nbd::stdio::{self, Stream};
use tmem_nbd::{
    Access, Budget, Exports, Listen, MetricsServer, Renewal, Server, Settings as Serving, Tls,
    TlsFiles,
};

/// For connecting to the cache, and for its answers to puts and flushes.
const CONNECT: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_millis(500);

/// How long who reads standard output may take for a line.
const READY: Duration = Duration::from_secs(1);

/// How long the start waits for the cache.
const AT_FIRST: Duration = Duration::from_millis(500);

#[pyclass(frozen, module = "tmem_engine")]
pub struct SanGateway {
    running: Mutex<Option<Running>>,
    addresses: Vec<String>,
    metrics: Option<String>,
    size: u64,
    warm: bool,
}

struct Running {
    servers: Vec<Server>,
    metrics_server: Option<MetricsServer>,
    gateway: Arc<Gateway>,
}

/// Where it is served, and to whom.
struct Listeners {
    listen: Vec<Listen>,
    metrics: Option<Listen>,
    tls: Option<TlsFiles>,
    insecure: bool,
    buffers: usize,
}

/// Who vouches for the server, and this client's certificate and key.
type ServerTls = (PathBuf, Option<(PathBuf, PathBuf)>);

/// Certificate, key, and who vouches for clients.
type OwnTls = (PathBuf, PathBuf, Option<PathBuf>);

#[pymethods]
impl SanGateway {
    #[new]
    #[pyo3(signature = (backing, server, pool, listen, *, page_size, shared_object, state, key, trust, max_delay, scan, readahead, readahead_memory, threads, tls=None, san_timeout=60.0, own_tls=None, insecure=false, metrics=None, buffers=256 << 20))]
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
        tls: Option<ServerTls>,
        san_timeout: f64,
        own_tls: Option<OwnTls>,
        insecure: bool,
        metrics: Option<&str>,
        buffers: usize,
    ) -> PyResult<SanGateway> {
        stdio::open_standard();
        let value = |why: String| PyValueError::new_err(why);
        let listeners = Listeners::parse(&listen, metrics, own_tls, insecure, buffers);
        let listeners = listeners.map_err(value)?;
        let own = listeners.admit().map_err(value)?;
        let san_timeout = seconds("san_timeout", san_timeout).map_err(value)?;
        let state = state.or_else(default_state);
        let state = state.ok_or_else(|| {
            value("there is no folder to keep the state in: name one with --state".into())
        })?;
        let settings = Settings {
            cache: cache_address(server, pool, page_size, tls).map_err(value)?,
            register: Some(Register::of_user(&state)),
            volume: match shared_object {
                Some(object) => Volume::Shared { object },
                None => Volume::Exclusive {
                    tokens: Some(Tokens {
                        directory: state,
                        key,
                        trust,
                    }),
                },
            },
            max_delay: seconds("max_delay", max_delay).map_err(value)?,
            scan,
            readahead,
            readahead_memory,
        };
        let read_only = shared_object.is_some();
        let opened = py.detach(|| open(backing, read_only, threads, san_timeout))?;
        let started = py.detach(|| start(opened, listeners, own, settings));
        started.map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy => PyOSError::new_err(format!("{backing}: {error}")),
            io::ErrorKind::InvalidInput => PyValueError::new_err(error.to_string()),
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

    /// Where metrics are served, as HOST:PORT.
    #[getter]
    fn metrics(&self) -> Option<String> {
        self.metrics.clone()
    }

    /// Write a line to standard output, or standard error, without waiting for who reads it.
    #[staticmethod]
    fn say(py: Python<'_>, line: &str, error: bool) {
        py.detach(|| match error {
            true => stdio::say(Stream::Error, line, Duration::ZERO),
            false => stdio::say(Stream::Output, line, READY),
        });
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
            drop(running.metrics_server);
            for server in running.servers {
                server.stop(if detach { grace } else { Duration::ZERO });
            }
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

impl Listeners {
    fn parse(
        listen: &[String],
        metrics: Option<&str>,
        tls: Option<OwnTls>,
        insecure: bool,
        buffers: usize,
    ) -> Result<Listeners, String> {
        let metrics = metrics.map(|address| {
            let parsed = format!("tcp:{address}").parse();
            parsed.map_err(|_| format!("{address:?} is not HOST:PORT"))
        });
        let listen = listen.iter().map(|address| address.parse());
        Ok(Listeners {
            listen: listen.collect::<Result<_, _>>()?,
            metrics: metrics.transpose()?,
            tls: tls.map(|(cert, key, client_ca)| TlsFiles {
                cert,
                key,
                client_ca,
            }),
            insecure,
            buffers,
        })
    }

    /// The certificates, if there are any and every door may be opened.
    fn admit(&self) -> Result<Option<Tls>, String> {
        if self.insecure && self.tls.is_some() {
            return Err(
                "--insecure is for serving without TLS: give either it or --tls-cert".into(),
            );
        }
        for address in self.listen.iter().chain(&self.metrics) {
            address.admit(self.tls.is_some(), self.insecure)?;
        }
        self.tls.as_ref().map(TlsFiles::load).transpose()
    }

    fn renewal(&self) -> Option<Box<Renewal>> {
        let told = |why: &str| complain(&format!("the previous certificates stay in use: {why}"));
        self.tls
            .as_ref()
            .map(|files| files.renewal(told) as Box<Renewal>)
    }

    fn serve(&self, exports: &Arc<Exports>, own: Option<Tls>) -> io::Result<Vec<Server>> {
        let serving = Serving {
            budget: Arc::new(Budget::new(self.buffers, Budget::default().patience())),
            tls: own,
            insecure: self.insecure,
            ..Serving::default()
        };
        let servers = Server::start_each(self.listen.clone(), exports, serving)?;
        for server in &servers {
            if let Some(renewal) = self.renewal() {
                server.renew_tls(renewal);
            }
        }
        Ok(servers)
    }

    fn measure(
        &self,
        gateway: &Arc<Gateway>,
        own: Option<Tls>,
    ) -> io::Result<Option<MetricsServer>> {
        let Some(listen) = &self.metrics else {
            return Ok(None);
        };
        let gateway = Arc::downgrade(gateway);
        let page = move || match gateway.upgrade() {
            Some(gateway) => exposition(&gateway.status()),
            None => String::new(),
        };
        let secured = own.zip(self.renewal());
        MetricsServer::start(listen, Box::new(page), secured, self.insecure).map(Some)
    }
}

/// Where the cache is, checked as far as that can be at the start; what goes wrong later is waited for.
fn cache_address(
    server: &str,
    pool: &str,
    page_size: u32,
    tls: Option<ServerTls>,
) -> Result<CacheAddress, String> {
    let endpoint = Endpoint::parse(server)?;
    if !matches!(page_size, 4096 | 8192 | 16384 | 32768 | 65536) {
        return Err(format!(
            "page_size is {page_size}; a gateway's must be 4096, 8192, 16384, 32768 or 65536"
        ));
    }
    let tls = tls.map(|(ca, own)| ClientTls { ca, own });
    if let Some(tls) = &tls {
        tls.load()?;
        if matches!(endpoint, Endpoint::Unix(_)) {
            return Err(format!("{server} is a Unix socket, and TLS is for TCP"));
        }
    }
    Ok(CacheAddress {
        endpoint,
        tls,
        pool: pool.into(),
        page: page_size,
        connect: CONNECT,
        patience: PATIENCE,
    })
}

fn seconds(name: &str, number: f64) -> Result<Duration, String> {
    Duration::try_from_secs_f64(number).map_err(|_| format!("{name} is {number}; it is seconds"))
}

fn complain(line: &str) {
    stdio::say(Stream::Error, line, Duration::ZERO);
}

fn start(
    backing: Arc<dyn Backing>,
    listeners: Listeners,
    own: Option<Tls>,
    settings: Settings,
) -> io::Result<SanGateway> {
    let size = backing.size();
    let gateway = Arc::new(Gateway::start(backing, settings)?);
    gateway.wait_cache(AT_FIRST); // so that, as a rule, the first read finds it
    let exports = Exports::new();
    exports
        .add("", gateway.backend(), Access::Everybody)
        .map_err(io::Error::other)?;
    let metrics_server = listeners.measure(&gateway, own.clone())?;
    let servers = listeners.serve(&exports, own)?;
    let addresses = servers
        .iter()
        .flat_map(|server| server.addresses().to_vec());
    let metrics = metrics_server
        .as_ref()
        .and_then(|metrics_server| metrics_server.addresses().first());
    Ok(SanGateway {
        addresses: addresses.collect(),
        metrics: metrics.map(|address| address.trim_start_matches("tcp:").into()),
        size,
        warm: gateway.is_warm(),
        running: Mutex::new(Some(Running {
            servers,
            metrics_server,
            gateway,
        })),
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
