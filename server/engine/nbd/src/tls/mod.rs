//! TLS as NBD has it: begun by the client with STARTTLS, before it may ask anything else where it is required.

mod client;
mod files;
mod name;
mod session;

pub use client::{ClientTls, explain};
pub use files::TlsFiles;
pub use name::of_certificate;
pub use session::TlsSession;

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

/// What a server needs for TLS. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tls {
    config: Arc<ServerConfig>,
    /// Clients that do not begin TLS get nothing; otherwise they may choose.
    pub required: bool,
}

impl Tls {
    /// From PEM: the server's certificate with its chain, its key, and who signs clients' certificates. With the latter a client
    /// must show one, and is known by the name in it.
    pub fn new(
        certificates: &[u8],
        key: &[u8],
        clients: Option<&[u8]>,
        required: bool,
    ) -> Result<Tls, String> {
        let provider = Arc::new(ring::default_provider());
        let chain = parse_certificates(certificates, "the certificate")?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| format!("the key: {e}"))?;
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| format!("TLS: {e}"))?;
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                for root in parse_certificates(pem, "the clients' authority")? {
                    roots
                        .add(root)
                        .map_err(|e| format!("the clients' authority: {e}"))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = verifier.build();
                builder.with_client_cert_verifier(
                    verifier.map_err(|e| format!("the clients' authority: {e}"))?,
                )
            }
        };
        let config = builder.with_single_cert(chain, key);
        Ok(Tls {
            config: Arc::new(config.map_err(|e| format!("the certificate and its key: {e}"))?),
            required,
        })
    }
}

fn parse_certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let parsed = parsed.map_err(|e| format!("{what}: {e}"))?;
    if parsed.is_empty() {
        return Err(format!("{what}: there is none in the file"));
    }
    Ok(parsed)
}
