//! `NbdServer`: exports of an engine's pools over NBD, by native threads that know no Python.
//!
//! What is asked of it from Python runs without the GIL where it may wait. The pools that it serves keep the arena attached until
//! it is stopped, so it is stopped before the engine is closed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pyo3::exceptions::{PyKeyError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use tmem_core::PoolSettings;
use tmem_nbd::backends::cache_object::{Caches, PREFIX};
use tmem_nbd::{
    Access, Budget, Client, ExportCounters, ExportError, ExportStatus, Exports, Limits, Listen,
    PoolExport, PoolExportSettings, Renewal, Reporter, Server, ServerCounters, Settings, Tls,
};

use crate::args;
use crate::engine::Engine;
use crate::pool::EnginePool;
use crate::snapshot::NbdSnapshot;

/// Certificate, key, and who vouches for clients.
type Pem = (Vec<u8>, Vec<u8>, Option<Vec<u8>>);

#[pyclass(frozen, module = "tmem_engine")]
pub struct NbdServer {
    /// One for Unix sockets, one for TCP; empty once stopped.
    servers: Mutex<Vec<Server>>,
    exports: Arc<Exports>,
    /// Of all servers together.
    budget: Arc<Budget>,
    addresses: Vec<String>,
}

/// The name of the client whose certificate this is, in DER.
#[pyfunction]
pub fn client_name(certificate: &[u8]) -> PyResult<String> {
    tmem_nbd::client_name(certificate).map_err(PyValueError::new_err)
}

#[pymethods]
impl NbdServer {
    #[new]
    #[pyo3(signature = (listen, *, connections=512, client_connections=256, handshakes=64, handshake_timeout=10.0,
        buffers=256 << 20, poll_microseconds=0, tls=None, insecure=false, renewal=None, turned_away=None))]
    #[allow(clippy::too_many_arguments)] // The signature Python sees.
    fn new(
        py: Python<'_>,
        listen: Vec<String>,
        connections: usize,
        client_connections: usize,
        handshakes: usize,
        handshake_timeout: f64,
        buffers: usize,
        poll_microseconds: u64,
        tls: Option<Pem>,
        insecure: bool,
        renewal: Option<Py<PyAny>>,
        turned_away: Option<Py<PyAny>>,
    ) -> PyResult<NbdServer> {
        let parsed: Result<Vec<Listen>, String> = listen.iter().map(|text| text.parse()).collect();
        let listen = parsed.map_err(PyValueError::new_err)?;
        let tls = tls.map(|pem| self::tls(&pem).map_err(PyValueError::new_err));
        let patience = Budget::default().patience();
        let handshake_timeout = Duration::try_from_secs_f64(handshake_timeout).map_err(|why| {
            PyValueError::new_err(format!("handshake_timeout is {handshake_timeout}: {why}"))
        })?;
        let settings = Settings {
            limits: Limits {
                connections,
                of_one_client: client_connections,
                handshakes,
            },
            handshake_timeout,
            budget: Arc::new(Budget::new(buffers, patience)),
            poll: Duration::from_micros(poll_microseconds),
            tls: tls.transpose()?,
            insecure,
            ..Settings::default()
        };
        let budget = settings.budget.clone();
        let exports = Exports::new();
        let servers = py.detach(|| Server::start_each(listen, &exports, settings))?;
        if let Some(source) = renewal {
            for server in &servers {
                server.renew_tls(self::renewal(source.clone_ref(py)));
            }
        }
        if let Some(told) = turned_away {
            for server in &servers {
                server.report_to(reporter(told.clone_ref(py)));
            }
        }
        let addresses = servers
            .iter()
            .flat_map(|server| server.addresses().to_vec());
        Ok(NbdServer {
            addresses: addresses.collect(),
            servers: Mutex::new(servers),
            budget,
            exports,
        })
    }

    #[getter]
    fn addresses(&self) -> Vec<String> {
        self.addresses.clone()
    }

    #[allow(clippy::too_many_arguments)] // The signature Python sees.
    #[pyo3(signature = (name, pool, oid, size, *, draining=false, multi_conn=false, allow=None))]
    fn add(
        &self,
        py: Python<'_>,
        name: &str,
        pool: &EnginePool,
        oid: &Bound<'_, PyAny>,
        size: &Bound<'_, PyAny>,
        draining: bool,
        multi_conn: bool,
        allow: Option<Vec<String>>,
    ) -> PyResult<()> {
        let oid = args::oid(oid)?;
        let size = args::number(size, "size", 0, u64::MAX)?;
        let pool = pool.core(py)?;
        let settings = PoolExportSettings {
            multi_conn,
            ..PoolExportSettings::default()
        };
        let export = PoolExport::new(pool, oid, size, settings)
            .map_err(|refusal| PyValueError::new_err(refusal.to_string()))?;
        let exports = &self.exports;
        py.detach(|| {
            exports.add(name, Arc::new(export), access(allow))?;
            exports.drain(name, draining)
        })
        .map_err(raise)
    }

    /// Serve ephemeral pools to gateways, as the exports under `cache/`. `refusal` is asked why a client may not have a pool.
    fn serve_caches(&self, py: Python<'_>, engine: &Engine, refusal: Py<PyAny>) -> PyResult<()> {
        let admission = move |client: &Client, name: &str, settings: &PoolSettings, made: bool| {
            let who = client.name();
            let asked = Python::attach(|py| -> PyResult<String> {
                let arguments = (who, name, &settings.owner, settings.shared, made);
                refusal.call1(py, arguments)?.extract(py)
            });
            match asked {
                Ok(why) if why.is_empty() => Ok(()),
                Ok(why) => Err(why),
                Err(error) => Err(error.to_string()),
            }
        };
        let caches = Caches::new(engine.store(py)?, Box::new(admission));
        self.exports
            .add_prefix(PREFIX, Arc::new(caches))
            .map_err(raise)
    }

    #[pyo3(signature = (name, *, force=false))]
    fn remove(&self, py: Python<'_>, name: &str, force: bool) -> PyResult<()> {
        py.detach(|| self.exports.remove(name, force).map(drop))
            .map_err(raise)
    }

    /// An export's blocks as they are now; `shadow` keeps those that change, and goes with the snapshot.
    fn snapshot(&self, py: Python<'_>, name: &str, shadow: &EnginePool) -> PyResult<NbdSnapshot> {
        let shadow = shadow.core(py)?;
        let saving = py.detach(|| {
            let export = self.exports.backend(name)?;
            let saving = export.snapshot(shadow);
            saving.map_err(|why| ExportError::Invalid(format!("export {name:?}: {why}")))
        });
        saving.map(NbdSnapshot::new).map_err(raise)
    }

    fn resize(&self, py: Python<'_>, name: &str, size: &Bound<'_, PyAny>) -> PyResult<()> {
        let size = args::number(size, "size", 0, u64::MAX)?;
        py.detach(|| self.exports.resize(name, size)).map_err(raise)
    }

    fn drain(&self, py: Python<'_>, name: &str, draining: bool) -> PyResult<()> {
        py.detach(|| self.exports.drain(name, draining))
            .map_err(raise)
    }

    fn allow(&self, py: Python<'_>, name: &str, allow: Option<Vec<String>>) -> PyResult<()> {
        py.detach(|| self.exports.allow(name, access(allow)))
            .map_err(raise)
    }

    fn exports<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        for status in py.detach(|| self.exports.list()) {
            dict.set_item(status.name.clone(), described(py, &status)?)?;
        }
        Ok(dict)
    }

    fn counters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        let counted: Vec<ServerCounters> = self.lock().iter().map(Server::counters).collect();
        let sum = |of: fn(&ServerCounters) -> u64| counted.iter().map(of).sum::<u64>();
        dict.set_item("connections", sum(|each| each.connections))?;
        dict.set_item("connected", sum(|each| each.connected))?;
        dict.set_item("handshakes", sum(|each| each.handshakes))?;
        dict.set_item("turned_away", sum(|each| each.turned_away))?;
        dict.set_item("dropped", sum(|each| each.dropped))?;
        dict.set_item("timed_out", sum(|each| each.timed_out))?;
        dict.set_item("kept_out", sum(|each| each.kept_out))?;
        dict.set_item("full", sum(|each| each.full))?;
        dict.set_item("client_full", sum(|each| each.client_full))?;
        dict.set_item("stalled", self.budget.stalled())?;
        dict.set_item("buffer_bytes", self.budget.used())?;
        dict.set_item("buffer_waiters", self.budget.waiting())?;
        dict.set_item("not_opened", sum(|each| each.not_opened))?;
        dict.set_item("broken", sum(|each| each.broken))?;
        Ok(dict)
    }

    /// Stop; whether every connection came to its end within the grace. Stopping twice does nothing.
    fn stop(&self, py: Python<'_>, grace: f64) -> PyResult<bool> {
        let grace = Duration::try_from_secs_f64(grace)
            .map_err(|why| PyValueError::new_err(format!("grace is {grace}: {why}")))?;
        let servers = std::mem::take(&mut *self.lock());
        Ok(py.detach(|| {
            std::thread::scope(|scope| {
                let stopping: Vec<_> = servers
                    .into_iter()
                    .map(|server| scope.spawn(move || server.stop(grace)))
                    .collect();
                // All are waited for, whatever the first says.
                let stopped: Vec<_> = stopping.into_iter().map(|one| one.join()).collect();
                stopped.into_iter().all(|one| one.unwrap_or(false))
            })
        }))
    }
}

impl NbdServer {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Server>> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Names of clients, or None for anybody.
fn access(allow: Option<Vec<String>>) -> Access {
    allow.map_or(Access::Everybody, Access::Identities)
}

/// What `renewed` of a Python object says, where that can be used; `refused` is told why not.
fn renewal(source: Py<PyAny>) -> Box<Renewal> {
    Box::new(move || {
        Python::attach(|py| {
            let source = source.bind(py);
            let asked = || -> PyResult<Option<Tls>> {
                let Some(pem) = source.call_method0("renewed")?.extract::<Option<Pem>>()? else {
                    return Ok(None);
                };
                match tls(&pem) {
                    Ok(made) => Ok(Some(made)),
                    Err(why) => source.call_method1("refused", (why,)).map(|_| None),
                }
            };
            asked().unwrap_or_else(|error| {
                error.write_unraisable(py, Some(source));
                None
            })
        })
    })
}

/// Calls a Python function with an address and why its client was turned away.
fn reporter(told: Py<PyAny>) -> Box<Reporter> {
    Box::new(move |address, why| {
        Python::attach(|py| {
            if let Err(error) = told.call1(py, (address, why)) {
                error.write_unraisable(py, Some(told.bind(py)));
            }
        });
    })
}

fn tls((certificate, key, clients): &Pem) -> Result<Tls, String> {
    Tls::new(certificate, key, clients.as_deref(), true)
}

fn raise(error: ExportError) -> PyErr {
    let why = error.to_string();
    match error {
        ExportError::Unknown(name) => PyKeyError::new_err(name),
        ExportError::Exists(_) | ExportError::Invalid(_) => PyValueError::new_err(why),
        ExportError::InUse { clients, .. } => PyRuntimeError::new_err(clients),
    }
}

fn described<'py>(py: Python<'py>, status: &ExportStatus) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("size", status.size)?;
    dict.set_item("draining", status.draining)?;
    let clients: PyResult<Vec<_>> = status.clients.iter().map(|one| client(py, one)).collect();
    dict.set_item("clients", PyList::new(py, clients?)?)?;
    dict.set_item("counters", counters(py, &status.counters)?)?;
    Ok(dict)
}

fn client<'py>(py: Python<'py>, client: &Client) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("address", &client.address)?;
    dict.set_item("tls", client.tls)?;
    dict.set_item("identity", client.identity.as_deref().unwrap_or(""))?;
    Ok(dict)
}

fn counters<'py>(py: Python<'py>, counted: &ExportCounters) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    let fields = [
        ("reads", counted.reads),
        ("read_bytes", counted.read_bytes),
        ("writes", counted.writes),
        ("written_bytes", counted.written_bytes),
        ("trims", counted.trims),
        ("trimmed_bytes", counted.trimmed_bytes),
        ("others", counted.others),
        ("errors", counted.errors),
        ("no_space", counted.no_space),
        ("io_errors", counted.io_errors),
        ("attached", counted.attached),
        ("refused", counted.refused),
    ];
    for (name, value) in fields {
        dict.set_item(name, value)?;
    }
    Ok(dict)
}
