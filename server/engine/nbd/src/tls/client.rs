//! The client's end of TLS: how it knows the server, and shows who it is.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::{AlertDescription, CertificateError, ClientConfig, Error, RootCertStore};

use super::parse_certificates;

/// Files in PEM. They are read for each connection, so that they may be renewed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTls {
    /// Certificates that vouch for the server's.
    pub ca: PathBuf,
    /// This client's certificate with its chain, and its key.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// A file that nobody but its owner can have written.
pub fn read(path: &Path) -> Result<Vec<u8>, String> {
    let named = path.display();
    let wrong = |error: io::Error| format!("{named}: {error}");
    let mut file = File::open(path).map_err(wrong)?;
    let found = file.metadata().map_err(wrong)?;
    let (mode, group) = (found.mode(), found.gid());
    let anyone = mode & 0o002 != 0;
    let others = mode & 0o020 != 0 && ![0, rustix::process::getegid().as_raw()].contains(&group);
    if found.is_file() && (anyone || others) {
        let who = match anyone {
            true => "anyone".into(),
            false => format!("group {group}"),
        };
        let mode = mode & 0o7777;
        return Err(format!(
            "{named}: {who} may write it (mode {mode:04o}): chmod go-w {named}"
        ));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(wrong)?;
    Ok(bytes)
}

impl ClientTls {
    /// What the files say now; in words what is wrong with them.
    pub fn load(&self) -> Result<Arc<ClientConfig>, String> {
        let mut roots = RootCertStore::empty();
        let named = self.ca.display();
        for root in parse_certificates(&read(&self.ca)?, &named.to_string())? {
            roots.add(root).map_err(|e| format!("{named}: {e}"))?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| format!("TLS: {e}"))?
            .with_root_certificates(roots);
        let Some((cert, key)) = &self.own else {
            return Ok(Arc::new(builder.with_no_client_auth()));
        };
        let chain = parse_certificates(&read(cert)?, &cert.display().to_string())?;
        let pem = read(key)?;
        let secret = PrivateKeyDer::from_pem_slice(&pem);
        let secret = secret.map_err(|e| format!("{}: {e}", key.display()))?;
        let config = builder.with_client_auth_cert(chain, secret).map_err(|e| {
            let (cert, key) = (cert.display(), key.display());
            format!("{cert} and {key} are not a certificate and its key: {e}")
        })?;
        Ok(Arc::new(config))
    }
}

/// In words for the user what TLS had against a connection; None where it was not TLS.
pub fn explain(error: &io::Error) -> Option<String> {
    let inner = error.get_ref()?.downcast_ref::<Error>()?;
    Some(match inner {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "the server's certificate is not from a trusted authority".into()
        }
        Error::InvalidCertificate(why) => format!("the server's certificate is not valid: {why}"),
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "the server requires a client certificate".into()
        }
        Error::AlertReceived(why) => format!("the server ended TLS: {why:?}"),
        other => format!("TLS: {other}"),
    })
}
