//! What a server needs for TLS, in files that may be renewed while it runs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::Tls;
use super::client::read;

/// Files in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate with its chain, and its key.
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Who vouches for clients, which must then show a certificate.
    pub client_ca: Option<PathBuf>,
}

/// Changes when a file does.
type Stamp = Vec<Option<(u64, u64, i64, i64)>>;

impl TlsFiles {
    /// What the files say now; in words what is wrong with them.
    pub fn load(&self) -> Result<Tls, String> {
        let clients = self.client_ca.as_deref().map(read).transpose()?;
        let (cert, key) = (read(&self.cert)?, read(&self.key)?);
        Tls::new(&cert, &key, clients.as_deref(), true).map_err(|why| {
            let named: Vec<_> = self
                .paths()
                .map(|path| path.display().to_string())
                .collect();
            format!("{why} ({})", named.join(", "))
        })
    }

    /// To be asked before each handshake. What cannot be used changes nothing, and is `told` once.
    pub fn renewal(
        &self,
        told: impl Fn(&str) + Send + 'static,
    ) -> Box<dyn Fn() -> Option<Tls> + Send> {
        let (files, seen) = (self.clone(), Mutex::new(self.stamp()));
        Box::new(move || {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            let now = files.stamp();
            if *seen == now {
                return None;
            }
            *seen = now;
            files.load().inspect_err(|why| told(why)).ok()
        })
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        let files = [&self.cert, &self.key].into_iter();
        files.chain(&self.client_ca).map(PathBuf::as_path)
    }

    fn stamp(&self) -> Stamp {
        let of = |path: &Path| {
            let found = fs::metadata(path).ok()?;
            Some((found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
        };
        self.paths().map(of).collect()
    }
}
