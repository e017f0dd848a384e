//! The Python package `tmem_engine`, whose native module this is: thin bindings of tmem-core.
//!
//! What each part is for: `engine` and `pool` are the two classes of a store, `nbd` serves pools as block devices; `args` turns Python values into the core's and
//! names what is wrong with them, `dicts` the core's numbers into Python's; `buffers` is the only file with `unsafe`; `errors` holds the exception classes the
//! opener brought along and the guard that turns a panic into one of them; `packing` is the codec of batches that travel;
//! `san` is the gateway of a SAN volume, which knows no engine.
//!
//! Every call that touches pages converts its arguments, releases the GIL once, calls the core once, and converts the
//! answer. The module imports nothing of ours: SDK and daemon each bring their own error tree.

mod args;
mod buffers;
mod dicts;
mod engine;
mod errors;
mod nbd;
mod packing;
mod pool;
mod san;
mod settings;
mod snapshot;

#[pyo3::pymodule(gil_used = true)]
mod _native {
    use pyo3::exceptions::PyRuntimeWarning;
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::engine::{Engine, set_lock_wait};
    #[pymodule_export]
    use crate::nbd::{NbdServer, client_name};
    #[pymodule_export]
    use crate::packing::{pack, unpack};
    #[pymodule_export]
    use crate::pool::EnginePool;
    #[pymodule_export]
    use crate::san::SanGateway;
    #[pymodule_export]
    use crate::snapshot::NbdSnapshot;

    /// Whether only this machine can reach a host.
    #[pyfunction]
    fn is_loopback(host: &str) -> bool {
        tmem_nbd::is_loopback(host)
    }

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        if cfg!(debug_assertions) {
            let category = module.py().get_type::<PyRuntimeWarning>();
            let message = c"tmem_engine is a debug build: correct, but many times slower than a release build";
            PyErr::warn(module.py(), &category, message, 1)?;
        }
        Ok(())
    }
}
